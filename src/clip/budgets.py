"""Bounds on what a run may hold and how long a part of it may take: budgets of bytes, allowances of seconds.

Neither knows threads from processes: who holds bytes, and what is waited for, is the caller's affair.
"""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

STEP_S = 0.25  # in which a wait is counted, and as much as a pause of the machine may count


class Hold:
    """Bytes of one entry that a budget counts, from before they are read until they are released."""

    __slots__ = ("_budget", "is_passed", "size_bytes")

    def __init__(self, budget: ByteBudget) -> None:
        self._budget = budget
        self.size_bytes = 0
        self.is_passed = False

    def grow(self, size_bytes: int) -> None:
        """Wait until that many bytes more may be held. Raises: CancelledError where the budget is closed."""
        if (granted := self._budget.ask(self, size_bytes)) is not None:
            granted.result()

    async def grow_later(self, size_bytes: int) -> None:
        """Do the same as `grow` in a task."""
        if (granted := self._budget.ask(self, size_bytes, in_task=True)) is not None:
            await asyncio.wrap_future(granted)

    def charge(self, size_bytes: int) -> None:
        """Count bytes that are held already."""
        self._budget.add(self, size_bytes)

    def pass_on(self) -> None:
        """Say that the entry is with those who decode it, and who release it whatever else waits."""
        self._budget.move(self)

    def release(self) -> None:
        """Give the bytes back; a second time is no error."""
        self._budget.remove(self)


class _Request(NamedTuple):
    hold: Hold
    size_bytes: int
    in_task: bool
    granted: Future[None]


class ByteBudget:
    """A limit to the bytes that are held at the same time.

    A request that does not fit waits until enough is released. It is granted nevertheless where nothing else is held,
    and where the consumer waits for it and no decoder holds anything, as then nothing would ever be released. So at
    most the limit and the largest single entry are held.

    The bytes of an entry have a `Hold`, which goes with them: made before they are read, passed on to those who decode,
    released when they are decoded. One thread consumes: it passes entries on, and says what it waits for.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._held = 0
        self._passed = 0  # of these, with decoders
        self._requests: list[_Request] = []
        self._is_waiting = False  # the consumer
        self._wanted: Hold | None = None  # what it waits for; None for whatever a thread reads next
        self._is_closed = False
        self._lock = threading.Lock()

    @property
    def held_bytes(self) -> int:
        """How many bytes are held."""
        return self._held

    def is_over(self) -> bool:
        """Whether more is held than the limit, so that what is ahead should be passed on before more is taken."""
        return self._held > self.limit_bytes

    def hold(self, size_bytes: int = 0) -> Hold:
        """Wait until that many bytes may be held, and return who holds them. Raises: CancelledError if it is closed."""
        hold = Hold(self)
        hold.grow(size_bytes)
        return hold

    def hold_waited(self, size_bytes: int) -> Hold:
        """Do the same in the consumer's thread, which can do nothing until it is granted."""
        hold = Hold(self)
        if (granted := self.ask(hold, size_bytes)) is not None:
            with self.waiting_for(hold):
                granted.result()
        return hold

    @contextmanager
    def reserve(self, size_bytes: int) -> Generator[None]:
        """Wait until `size_bytes` may be held, and hold them during the block."""
        hold = self.hold(size_bytes)
        try:
            yield
        finally:
            hold.release()

    @contextmanager
    def waiting_for(self, hold: Hold | None) -> Generator[None]:
        """Say that the consumer can do nothing until this is granted; with None, whatever a thread asks for."""
        with self._lock:
            self._is_waiting, self._wanted = True, hold
        self._grant()
        try:
            yield
        finally:
            with self._lock:
                self._is_waiting, self._wanted = False, None

    def end_wait(self) -> None:
        """Say that the consumer has what it waited for, if that was whatever comes next: it may not run for a while."""
        with self._lock:
            self._is_waiting = self._is_waiting and self._wanted is not None

    def close(self) -> None:
        """Refuse all that waits and all that comes: nobody consumes any more."""
        with self._lock:
            self._is_closed = True
            requests, self._requests = self._requests, []
        for request in requests:
            request.granted.cancel()

    def ask(self, hold: Hold, size_bytes: int, *, in_task: bool = False) -> Future[None] | None:
        """Add bytes to a hold; return what ends when they are granted, None if they are. For `Hold` alone."""
        with self._lock:
            if self._is_closed:
                raise CancelledError
            if self._fits(hold, size_bytes):
                self._count(hold, size_bytes)
                return None
            request = _Request(hold, size_bytes, in_task, Future())
            self._requests.append(request)
        self._grant()  # the consumer may be waiting for it already
        return request.granted

    def add(self, hold: Hold, size_bytes: int) -> None:
        """Add bytes to a hold, whether they fit or not. For `Hold` alone."""
        with self._lock:
            self._count(hold, size_bytes)

    def move(self, hold: Hold) -> None:
        """Count a hold as passed on. For `Hold` alone."""
        with self._lock:
            if not hold.is_passed:
                hold.is_passed = True
                self._passed += hold.size_bytes

    def remove(self, hold: Hold) -> None:
        """Give back what a hold has. For `Hold` alone."""
        with self._lock:
            self._count(hold, -hold.size_bytes)
            waits = bool(self._requests)
        if waits:
            self._grant()

    def _count(self, hold: Hold, size_bytes: int) -> None:
        hold.size_bytes += size_bytes
        self._held += size_bytes
        self._passed += size_bytes if hold.is_passed else 0

    def _fits(self, hold: Hold, size_bytes: int) -> bool:
        # Nothing always fits: the consumer itself makes empty holds, for which it must not wait.
        return not size_bytes or self._held + size_bytes <= self.limit_bytes or self._held == hold.size_bytes

    def _may_exceed(self, request: _Request) -> bool:
        wanted = request.hold is self._wanted if self._wanted is not None else not request.in_task
        return self._is_waiting and self._passed == 0 and wanted

    def _grant(self) -> None:
        granted: list[Future[None]] = []
        with self._lock:
            waiting: list[_Request] = []
            for request in self._requests:
                if not (self._fits(request.hold, request.size_bytes) or self._may_exceed(request)):
                    waiting.append(request)
                elif request.granted.set_running_or_notify_cancel():  # else a task that was ended asked for it
                    self._count(request.hold, request.size_bytes)
                    granted.append(request.granted)
            self._requests = waiting
        for future in granted:
            future.set_result(None)


class Allowance:
    """Seconds that something may take, counted in the steps of the loop that waits for it.

    A step counts at most its own length. So a pause of the whole machine, or of all of a job (SIGSTOP, a suspended
    laptop, a virtual machine that is moved), counts as one step however long it was: no clock tells it from work.

        while not connection.poll(allowance.begin_step()):
            if allowance.end_step():
                ...  # it took too long
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.left_s = seconds
        self._clock = clock
        self._step_s = 0.0
        self._began = 0.0

    def begin_step(self) -> float:
        """Return how long to wait before the allowance is looked at again."""
        self._step_s, self._began = min(STEP_S, self.left_s), self._clock()
        return self._step_s

    def end_step(self) -> bool:
        """Count a step that brought nothing. Returns whether nothing is left."""
        self.left_s -= min(self._step_s, max(0.0, self._clock() - self._began))
        return self.left_s <= 0
