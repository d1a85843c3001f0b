"""Which shards are still to be written, and which of them an actor gets next. Knows nothing of Ray."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import ClipError

if TYPE_CHECKING:
    from collections.abc import Sequence

TASK_S = 60.0  # of work that an actor gets at a time, so that it seldom waits for the driver
MOST_LOST = 3  # actors that a shard may cost, before its images are isolated, and again after that


@dataclass(frozen=True)
class Task:
    """Shards that one actor writes before it asks for more."""

    shards: tuple[int, ...]
    isolated: bool = False  # each image is decoded in a process that it may kill


class Schedule:
    """The shards of a run that are missing, those that actors have, and what shards have cost."""

    def __init__(self, missing: Sequence[int], actors: int) -> None:
        self._waiting = deque(missing)
        self._alone: deque[int] = deque()  # of a task whose actor was lost: one of them may be the reason
        self._taken: set[Task] = set()
        self._lost: Counter[int] = Counter()  # actors, by the shard that they had
        self._actors = actors
        self._shard_s: float | None = None  # that a shard takes

    @property
    def is_over(self) -> bool:
        """Whether all shards are written."""
        return not (self._waiting or self._alone or self._taken)

    def take(self) -> Task | None:
        """Return what an idle actor does next; None where nothing waits."""
        if self._alone:
            shard = self._alone.popleft()
            task = Task((shard,), isolated=self._lost[shard] >= MOST_LOST)
        elif self._waiting:
            task = Task(tuple(self._waiting.popleft() for _ in range(self._choose_size())))
        else:
            return None
        self._taken.add(task)
        return task

    def finish(self, task: Task, seconds: float) -> None:
        """Note that the shards of a task are written, and how long that took."""
        self._taken.remove(task)
        if not task.isolated:
            self._shard_s = seconds / len(task.shards)

    def lose(self, task: Task, reason: str) -> None:
        """Note that an actor was lost with a task, which others are to do. A shard that was alone is held to account.

        Raises:  ClipError for one that has cost too many actors, though its images were isolated.
        """
        self._taken.remove(task)
        if len(task.shards) == 1:
            (shard,) = task.shards
            self._lost[shard] += 1
            if self._lost[shard] >= 2 * MOST_LOST:
                found = f"ended {self._lost[shard]} actors, though its images were isolated; the last one: {reason}"
                remedy = "Look at that node's memory and disk, then run again: finished shards are kept."
                raise ClipError(f"shard {shard}", found, "an actor that writes it", remedy)
        self._alone.extend(task.shards)

    def _choose_size(self) -> int:
        """Return how many shards are a task: a minute's work, and little enough that all actors end together."""
        if self._shard_s is None:
            return 1
        of_time = int(TASK_S / max(self._shard_s, 1e-3))
        return max(1, min(of_time, len(self._waiting) // (4 * self._actors)))
