"""Make batches of what many requests bring, and run them on the model in one thread.

A batch is as large as the model's, or as large as what waits when the thread is free; with images still being decoded
it waits a few milliseconds more. So an idle server answers at once, and a busy one fills its batches by itself: they
gather while the batch before runs. Sizes are powers of four, or the model's: for each other size OpenVINO would keep
weights packed for it, 216 MB of ViT-B/32 (LOG 2026-11-28).
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..parallel import start_thread
from ..vectors import usable_norms

if TYPE_CHECKING:
    from collections.abc import Callable

_log = logging.getLogger("clip")


class EngineError(Exception):
    """The model failed on an item, or gave numbers that are no vector."""


@dataclass(frozen=True, eq=False)
class Tower:
    """A half of a model that runs batches of one shape of array."""

    encode: Callable[[np.ndarray], np.ndarray]  # (B, ...) -> float32 (B, D)
    batch_size: Callable[[], int]  # it falls where memory runs out
    coming: Callable[[], int] = lambda: 0  # images that are being decoded for it
    kind: str = "images"


@dataclass(frozen=True)
class _Waiting:
    array: np.ndarray
    future: Future[np.ndarray]
    since: float


class Batcher:
    """Runs batches in a thread of its own. Safe to call from any thread."""

    def __init__(self, wait_s: float, observe: Callable[[str, int, float], None] = lambda *_: None) -> None:
        """Wait up to `wait_s` for a batch to fill; `observe` gets kind, size and seconds of each batch."""
        self._wait_s, self._observe = wait_s, observe
        self._queues: dict[Tower, deque[_Waiting]] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._running_since: float | None = None
        self._thread = start_thread(self._run, "clip-batches")

    def submit(self, tower: Tower, array: np.ndarray) -> Future[np.ndarray]:
        """Return the future vector, float32 (D,), of an input of a tower. Cancelling it takes the input out."""
        future: Future[np.ndarray] = Future()
        with self._changed:
            self._queues.setdefault(tower, deque()).append(_Waiting(array, future, time.monotonic()))
            self._changed.notify()
        return future

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @property
    def busy_s(self) -> float:
        """Seconds since the batch began that runs now; 0 where none does."""
        since = self._running_since
        return 0.0 if since is None else time.monotonic() - since

    def restart(self) -> None:
        """Start another thread where the one that ran has died."""
        if not self.is_alive and not self._closed:
            self._thread = start_thread(self._run, "clip-batches")

    def close(self, wait_s: float = 0.0) -> bool:
        """End the thread after the batch that runs; return whether it ended in that time. What waits is cancelled."""
        with self._changed:
            self._closed = True
            waiting = [each for queue in self._queues.values() for each in queue]
            self._queues.clear()
            self._changed.notify()
        for each in waiting:
            each.future.cancel()
        self._thread.join(wait_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (taken := self._take()) is not None:
            tower, batch = taken
            self._running_since = time.monotonic()
            try:
                self._encode(tower, batch)
            finally:
                self._running_since = None
                for each in batch:
                    if not each.future.done():  # this thread dies of something that is no Exception
                        each.future.set_exception(EngineError("the model's thread ended"))

    def _take(self) -> tuple[Tower, list[_Waiting]] | None:
        """Wait for a batch, that of the input which has waited longest; None when all is over."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._closed or any(self._queues.values()))
                if self._closed:
                    return None
                tower = min((key for key, queue in self._queues.items() if queue), key=self._first_since)
                if not self._wait_for_more(tower):
                    continue
                queue, batch = self._queues[tower], list[_Waiting]()
                size = choose_size(len(queue), tower.batch_size())
                while queue and len(batch) < size:
                    each = queue.popleft()
                    if each.future.set_running_or_notify_cancel():
                        batch.append(each)
                if not queue:
                    del self._queues[tower]
                if batch:
                    return tower, batch

    def _first_since(self, tower: Tower) -> float:
        return self._queues[tower][0].since

    def _wait_for_more(self, tower: Tower) -> bool:
        """Wait until a batch is full, or nothing more comes, or its time is over; return whether there still is one."""
        deadline = time.monotonic() + self._wait_s
        while not self._closed and tower.coming() and len(self._queues.get(tower, ())) < tower.batch_size():
            left = deadline - time.monotonic()
            if left <= 0:
                break
            self._changed.wait(left)
        return bool(self._queues.get(tower))

    def _encode(self, tower: Tower, batch: list[_Waiting]) -> None:
        """Run a batch. One that fails is run again in halves, so that an input which fails alone costs no other."""
        started = time.monotonic()
        try:
            vectors = tower.encode(np.stack([each.array for each in batch]))
            if len(vectors) != len(batch):
                raise EngineError(f"the model gave {len(vectors)} vectors for {len(batch)} {tower.kind}")
        except Exception as exc:  # noqa: BLE001  whatever a library raises, the others in the batch get their vectors
            if len(batch) > 1:
                _log.warning("a batch of %d %s failed (%s); running it in halves", len(batch), tower.kind, exc)
                middle = len(batch) // 2
                self._encode(tower, batch[:middle])
                self._encode(tower, batch[middle:])
                return
            _log.exception("the model failed")
            error = EngineError(f"the model failed: {type(exc).__name__}")
            error.__cause__ = exc
            batch[0].future.set_exception(error)
            return
        self._observe(tower.kind, len(batch), time.monotonic() - started)
        _hand_out(batch, vectors)


def choose_size(waiting: int, batch_size: int) -> int:
    """Return how many of the inputs that wait to run at once."""
    return batch_size if waiting >= batch_size else 1 << (waiting.bit_length() - 1 & ~1)


def _hand_out(batch: list[_Waiting], vectors: np.ndarray) -> None:
    usable: Any = usable_norms(np.linalg.norm(vectors, axis=1))
    for each, vector, is_usable in zip(batch, vectors, usable, strict=True):
        if is_usable:
            each.future.set_result(vector)
        else:
            each.future.set_exception(EngineError("the model gave numbers that are no vector"))
