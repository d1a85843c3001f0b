"""Decode images ahead of the batches: threads take them in order, each hands its own to a process.

This is the one place of the room that knows how images are decoded: bytes in, `Pixels` or a `Failure` out.
"""

from __future__ import annotations

import io
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from PIL import Image

from ..batch.decode import Decoding
from ..batch.processes import isolate
from ..budgets import ByteBudget
from ..errors import ResourceError
from ..parallel import available_cores
from ..records import Failure, Item, Member, Pixels, Tokens
from ..sources.source import Source

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..jobs.serve import ServeJob
    from ..network.records import PreprocessSettings


class DecoderError(Exception):
    """No process could be started to decode in."""


class Decoders:
    """Decodes images for the models of one size of input."""

    def __init__(self, job: ServeJob, decoding: Decoding, observe: Callable[[float], None] = lambda _: None) -> None:
        """Start the threads; `observe` gets the seconds that each image took."""
        self._observe, self._decoding = observe, decoding
        self._budget = ByteBudget(job.decode_budget_bytes)
        self._processes = ExitStack()
        self._isolated = None
        if job.decoders == "processes":
            isolated = isolate(self._decoding, job.max_seconds, job.decode_budget_bytes)
            self._isolated = self._processes.enter_context(isolated)
        workers = job.workers or available_cores()
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="clip-decode")
        self._lock = threading.Lock()
        self.under_way = 0  # images that were handed in and are not done
        self.error: str | None = None  # why the last image found no process
        # Each thread starts its process before the first request needs it.
        self._starting = [self._pool.submit(self.check) for _ in range(workers)]

    def wait_started(self) -> None:
        """Wait until images can be decoded. Raises: DecoderError."""
        if not self._starting[0].result():
            raise DecoderError(self.error or "a tiny image cannot be decoded")

    def submit(self, entry: Item | Member) -> Future[list[Pixels | Failure]]:
        """Return the future outcomes of an image. Cancelling it drops an image that no thread has begun."""
        with self._lock:
            self.under_way += 1
        future = self._pool.submit(self._decode, entry)
        future.add_done_callback(self._count_down)
        return future

    def check(self) -> bool:
        """Decode a tiny image, and return whether that works; where it did not, this may have repaired it."""
        png = io.BytesIO()
        Image.new("RGB", (8, 8)).save(png, "PNG")
        with suppress(DecoderError):
            return isinstance(self._decode(make_member("check", png.getvalue()))[0], Pixels)
        return False

    def close(self) -> None:
        """Drop what waits, and end the processes at once."""
        self._budget.close()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._processes.close()

    def _decode(self, entry: Item | Member) -> list[Pixels | Failure]:
        started = time.monotonic()
        try:
            outcomes = self._isolated(entry) if self._isolated else self._decoding(entry, self._budget.reserve)
            images = [outcome for outcome in outcomes if not isinstance(outcome, Tokens)]
        except (ResourceError, OSError) as exc:
            self.error = str(exc)
            raise DecoderError(str(exc)) from exc
        self.error = None
        self._observe(time.monotonic() - started)
        return images

    def _count_down(self, _: object) -> None:
        with self._lock:
            self.under_way -= 1


def make_decoding(job: ServeJob, settings: PreprocessSettings) -> Decoding:
    """Return how the images of requests are decoded."""
    return Decoding(Source(()), settings, job.limits, job.decode)


def make_member(name: str, data: bytes) -> Member:
    """Return an encoded image as decoders take it."""
    return Member(Item(name, name, len(data)), data)
