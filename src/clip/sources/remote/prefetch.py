"""Images on servers, read ahead of the decoders: items in, members with their bytes out, in the same order.

Many requests are under way at a time, for what they take is waiting; they need no threads of their own. What they hold
is bounded by a budget, which the oldest may exceed, so that it is never waited for in vain. Entries that are here
already pass through, and where all are, nothing is started. Knows nothing about servers or pixels.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, TypeVar

from ...errors import InputError
from ...records import Failure, Item, Member
from .client import begun, fetched, is_remote, prepare

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable
    from concurrent.futures import Future

T = TypeVar("T")

HELD_BYTES = 256_000_000  # encoded, that are here before their turn
AHEAD = 4  # entries for each reader


def prefetched(entries: Iterable[Item | T], max_bytes: int, readers: int) -> Generator[Item | Member | Failure | T]:
    """The same entries; one on a server with its bytes, or as the reason why it cannot be read.

    Closing the iterator ends what is under way.
    """
    waiting: deque[tuple[Item | T, Future[bytes] | None]] = deque()
    requests = _Requests(max_bytes, readers)
    held = 0
    try:
        for entry in entries:
            if isinstance(entry, Item) and is_remote(entry.path):
                waiting.append((entry, requests.begin(entry.path)))
            elif not waiting:
                yield entry
                continue
            else:
                waiting.append((entry, None))
                held += _size_of(entry)
            while waiting and (len(waiting) > AHEAD * readers or held > HELD_BYTES):
                held -= _size_of(waiting[0][0])
                yield requests.outcome(*waiting.popleft())
        while waiting:
            yield requests.outcome(*waiting.popleft())
    finally:
        for _, future in waiting:
            if future is not None:
                future.cancel()


def _size_of(entry: object) -> int:
    return len(entry.data) if isinstance(entry, Member) else 0


class _Requests:
    """Requests under way, the oldest first."""

    def __init__(self, max_bytes: int, readers: int) -> None:
        self._max_bytes = max_bytes
        self._turn = asyncio.Semaphore(readers)
        self._budget = _Budget(HELD_BYTES)
        self._numbers = count()

    def begin(self, url: str) -> Future[bytes]:
        with suppress(InputError):
            prepare(url)  # here, as it may take a while in which no other request could go on
        return begun(self._read(url, next(self._numbers)))

    async def _read(self, url: str, number: int) -> bytes:
        async with self._turn:
            return await fetched(url, self._max_bytes, partial(self._budget.reserve, number))

    def outcome(self, entry: Item | T, future: Future[bytes] | None) -> Item | Member | Failure | T:
        """What became of the oldest."""
        if future is None or not isinstance(entry, Item):
            return entry
        try:
            error = future.exception()
        finally:
            future.cancel()
        begun(self._budget.release())
        if error is not None:  # whatever it is: what becomes of one image never ends a run
            return Failure(entry.id, entry.path, "read", type(error).__name__, str(error))
        return Member(entry, future.result())


class _Budget:
    """Bytes that may be held; known only to where requests run."""

    def __init__(self, limit_bytes: int) -> None:
        self._free = limit_bytes
        self._oldest = 0
        self._held: dict[int, int] = {}
        self._changed = asyncio.Condition()

    async def reserve(self, number: int, size_bytes: int) -> None:
        """Wait until so many bytes are free, or all older requests have been taken."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._free >= size_bytes or self._oldest == number)
            self._free -= size_bytes
            self._held[number] = self._held.get(number, 0) + size_bytes

    async def release(self) -> None:
        """Let go of what the oldest held."""
        async with self._changed:
            self._free += self._held.pop(self._oldest, 0)
            self._oldest += 1
            self._changed.notify_all()
