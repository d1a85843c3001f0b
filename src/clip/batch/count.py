"""Check that read = written + failed: compare what a plan lists with what the parts of each shard hold.

`clip embed` checks every shard at the end of a run, `clip verify` checks it again, both by `Count.find_error`. Three
numbers have to agree: the entries that are listed, the entries that the reader counted (kept in the part's metadata),
and the rows and failure rows.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..object_paths import map_objects
from ..records import ContainerPart, Shard
from ..store.parts import EMBEDDINGS, FAILURES, Parts

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..jobs.options import Frames
    from ..store.plan import Plan


@dataclass(frozen=True)
class Expected:
    """How many entries a shard has by the plan."""

    entries: int | None  # of a container its members, ignored ones included; None where it does not say how many
    container: str | None = None  # its id, where the shard is one
    limit: int | None = None  # of a container: how many images and failures to take at most

    @classmethod
    def of(cls, shard: Shard) -> Expected:
        """Count the entries of a shard, of a container its members."""
        container = next((entry for entry in shard.entries if isinstance(entry, ContainerPart)), None)
        if container is None:
            return cls(len(shard.entries))
        return cls(container.members, container.id, container.limit)


@dataclass(frozen=True)
class Count:
    """How many outcomes the two parts of a shard hold, and how many the reader counted."""

    rows: int
    failures: int
    ignored: int  # members of a container that are no images
    read: int | None  # entries and further frames; None in parts of version 0.1.0
    frames: int  # of these, frames beyond the first of their file
    ends_early: bool  # whether one failure stands for all members that could not be reached any more

    def find_error(self, expected: Expected, frames: Frames) -> str | None:
        """Say what is wrong; None where each entry became a row or a failure row.

        A container that says how many members it has is held to it: outcomes and ignored members are exactly as many,
        unless one failure stands for those that could not be reached, or the run's limit was reached first.
        """
        outcomes = self.rows + self.failures
        found = f"{self.rows:,} rows and {self.failures:,} failures"
        if self.read is not None and self.read != outcomes:
            return f"{found}, expected {self.read:,} together, as many as were read"
        entries = outcomes - self.frames
        members = entries - self.ends_early + self.ignored
        limited = expected.limit is not None and entries >= expected.limit
        too_few = expected.entries is not None and members < expected.entries and not (self.ends_early or limited)
        too_many = expected.limit is not None and entries > expected.limit
        too_many |= expected.entries is not None and members > expected.entries
        if self.read is None and frames == "all":
            too_many = False  # version 0.1.0 did not count frames
        if not (too_few or too_many):
            return None
        of_entries = f" of {entries:,} entries" if self.frames else ""
        ignored = f" and {self.ignored:,} ignored" if self.ignored else ""
        most = expected.limit if expected.entries is None else expected.entries
        return f"{found}{of_entries}{ignored}, expected {most:,} together, as many as are listed"


def count_expected(plan: Plan, index: int) -> Expected:
    """Count the entries of a shard of a plan. Raises: StoreError where it cannot be read."""
    return Expected.of(plan.shard(index)) if plan.containers else Expected(plan.summary(index).entries)


def count_shard(parts: Parts, index: int, expected: Expected) -> Count:
    """Count what the parts of a shard hold, by their footers. Raises: StoreError for a part that cannot be read."""
    embeddings, failures = (parts.path(folder, index) for folder in (EMBEDDINGS, FAILURES))
    summary, failed = parts.summarise(embeddings), parts.summarise(failures).rows
    ends_early = bool(failed and expected.container) and (
        expected.container in parts.read(failures, ["id"]).column("id").to_pylist()
    )
    ignored = sum(summary.ignored.values())
    return Count(summary.rows, failed, ignored, summary.read, summary.frames, ends_early)


def count_ignored(parts: Parts, indices: Iterable[int]) -> Counter[str]:
    """Count what was passed over while some shards were read, by reason. Raises: as `count_shard`."""
    ignored: Counter[str] = Counter()
    paths = (parts.path(EMBEDDINGS, index) for index in indices)
    for summary in map_objects(parts.summarise, paths, parts.output):
        ignored.update(summary.ignored)
    return ignored


def find_unfinished(parts: Parts, plan: Plan, count: int) -> list[int]:
    """Return which of `count` parts of a run have a shard that is not written. Raises: as `count_shard`."""
    unfinished: set[int] = set()
    for index in range(plan.shards):
        if index % count not in unfinished and not is_written(parts, index, plan.summary(index).fingerprint):
            unfinished.add(index % count)
    return sorted(unfinished)


def is_written(parts: Parts, index: int, fingerprint: str) -> bool:
    """Whether the two files of a shard are there, with the fingerprint of its listing. Raises: as `count_shard`."""
    paths = [parts.path(folder, index) for folder in (EMBEDDINGS, FAILURES)]
    return all(path.exists() for path in paths) and {parts.summarise(path).fingerprint for path in paths} == {
        fingerprint
    }
