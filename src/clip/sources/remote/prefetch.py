"""Read images on servers ahead of the decoders: items in, members with their bytes out, in the same order.

Many requests run at a time, as most of their time is waiting; they need no threads of their own. The bytes that wait
for their turn have a budget. The oldest request may exceed it: otherwise it could wait for the others for ever.
Entries on this machine pass through, and if all are, nothing is started.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, TypeVar

from ...errors import InputError
from ...records import Failure, Item, Member, count_bytes
from .client import fetch, is_remote, prepare, start

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable
    from concurrent.futures import Future

T = TypeVar("T")

HELD_BYTES = 256_000_000  # encoded, that are here before their turn
AHEAD = 4  # entries for each reader


def prefetch(
    entries: Iterable[Item | T], max_bytes: int, readers: int, held_bytes: int = HELD_BYTES
) -> Generator[Item | Member | Failure | T]:
    """Yield the entries in order; an item on a server becomes a member, with its bytes, or a failure.

    Closing the iterator ends the running requests.
    """
    waiting: deque[tuple[Item | T, Future[bytes] | None]] = deque()
    requests = _Requests(max_bytes, readers, held_bytes)
    held = 0
    try:
        for entry in entries:
            if isinstance(entry, Item) and is_remote(entry.path):
                waiting.append((entry, requests.start(entry.path)))
            elif not waiting:
                yield entry
                continue
            else:
                waiting.append((entry, None))
                held += count_bytes(entry)
            while waiting and (len(waiting) > AHEAD * readers or held > held_bytes):
                held -= count_bytes(waiting[0][0])
                yield requests.take(*waiting.popleft())
        while waiting:
            yield requests.take(*waiting.popleft())
    finally:
        for _, future in waiting:
            if future is not None:
                future.cancel()


class _Requests:
    """The running requests, the oldest first."""

    def __init__(self, max_bytes: int, readers: int, held_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._turn = asyncio.Semaphore(readers)
        self._budget = _Budget(held_bytes)
        self._numbers = count()

    def start(self, url: str) -> Future[bytes]:
        with suppress(InputError):
            prepare(url)  # in this thread, as it may take long, and would stop the other requests
        return start(self._read(url, next(self._numbers)))

    async def _read(self, url: str, number: int) -> bytes:
        async with self._turn:
            return await fetch(url, self._max_bytes, partial(self._budget.reserve, number))

    def take(self, entry: Item | T, future: Future[bytes] | None) -> Item | Member | Failure | T:
        """Wait for the oldest request, and return its outcome; an entry without a request passes."""
        if future is None or not isinstance(entry, Item):
            return entry
        try:
            error = future.exception()
        finally:
            future.cancel()
        start(self._budget.release())
        if error is not None:  # of any type: a single image never ends a run
            return Failure.of(entry, "read", error)
        return Member(entry, future.result())


class _Budget:
    """Bytes that may be held; used only in the thread where requests run."""

    def __init__(self, limit_bytes: int) -> None:
        self._free = limit_bytes
        self._oldest = 0
        self._held: dict[int, int] = {}
        self._changed = asyncio.Condition()

    async def reserve(self, number: int, size_bytes: int) -> None:
        """Wait until this many bytes are free, or all older requests have been taken."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._free >= size_bytes or self._oldest == number)
            self._free -= size_bytes
            self._held[number] = self._held.get(number, 0) + size_bytes

    async def release(self) -> None:
        """Free the bytes of the oldest request."""
        async with self._changed:
            self._free += self._held.pop(self._oldest, 0)
            self._oldest += 1
            self._changed.notify_all()
