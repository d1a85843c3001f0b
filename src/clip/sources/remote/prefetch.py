"""Read images on servers ahead of the decoders: items in, members with their bytes out, in the same order.

Many requests run at a time, as most of their time is waiting; they need no threads of their own. Their bytes are held
in a budget, which whoever takes the members releases. Entries on this machine pass through, and if all are, nothing is
started.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from ...budgets import ByteBudget, Hold
from ...errors import InputError
from ...records import Failure, Item, Member, count_values
from .client import fetch, is_remote, prepare, start

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable
    from concurrent.futures import Future

T = TypeVar("T")

AHEAD = 4  # entries for each reader


def prefetch(
    entries: Iterable[Item | T], max_bytes: int, readers: int, budget: ByteBudget | None = None
) -> Generator[Item | Member | Failure | T]:
    """Yield the entries in order; an item on a server becomes a member, with its bytes, or a failure.

    A member's bytes are held in `budget` from before they come. Closing the iterator ends the running requests.
    """
    waiting: deque[tuple[Item | T, _Request | None]] = deque()
    requests = _Requests(max_bytes, readers, budget or ByteBudget(sys.maxsize))
    try:
        for entry in entries:
            if isinstance(entry, Item) and is_remote(entry.path):
                waiting.append((entry, requests.start(entry.path)))
            elif not waiting:
                yield requests.take(entry, None)
                continue
            else:
                waiting.append((entry, None))
            while waiting and (len(waiting) > AHEAD * readers or requests.budget.is_over()):
                yield requests.take(*waiting.popleft())
        while waiting:
            yield requests.take(*waiting.popleft())
    finally:
        for _, request in waiting:
            if request is not None:
                request.answer.cancel()


class _Request(NamedTuple):
    answer: Future[bytes]
    held: Hold


class _Requests:
    """The running requests, the oldest first."""

    def __init__(self, max_bytes: int, readers: int, budget: ByteBudget) -> None:
        self.budget = budget
        self._max_bytes = max_bytes
        self._turn = asyncio.Semaphore(readers)

    def start(self, url: str) -> _Request:
        with suppress(InputError):
            prepare(url)  # in this thread, as it may take long, and would stop the other requests
        held = self.budget.hold()
        return _Request(start(self._read(url, held)), held)

    async def _read(self, url: str, held: Hold) -> bytes:
        async with self._turn:
            return await fetch(url, self._max_bytes, held.grow_later)

    def take(self, entry: Item | T, request: _Request | None) -> Item | Member | Failure | T:
        """Wait for the oldest request, and return its outcome; an entry without a request passes."""
        if request is None or not isinstance(entry, Item):
            return entry
        try:
            with self.budget.waiting_for(request.held):
                error = request.answer.exception()
        finally:
            request.answer.cancel()
        if error is not None:  # of any type: a single image never ends a run
            request.held.release()
            return Failure.of(entry, "read", error)
        request.held.charge(count_values(entry.values))
        return Member(entry, request.answer.result(), request.held)
