"""Handle Ctrl-C and SIGTERM: the first one ends a command in order, the second one at once.

The main thread may be busy: with an image that hangs its decoder, with a batch of a large model. So another thread
watches for signals, and ends the process where an orderly end takes too long.
"""

from __future__ import annotations

import math
import os
import select
import signal
import socket
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator
    from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
EXIT_SIGNAL = 128  # plus the signal's number, as shells have it
GRACE_S = 8.0  # for an orderly end; people and schedulers wait about 10 s
FORCED = b"ended without waiting for what was under way; finished parts are kept\n"


class InterruptedBySignal(BaseException):
    """Raised by a signal, so that what is open is cleaned up."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.code = EXIT_SIGNAL + number


class _Delay:
    """Whether signals have to wait, and which one is waiting."""

    on = False
    number: int | None = None


@contextmanager
def interruptible() -> Generator[None]:
    """Have the first signal raise InterruptedBySignal in here; the second, or eight seconds, end the process."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    came: list[int] = []

    def interrupt(number: int, _frame: FrameType | None) -> None:
        came.append(number)
        if len(came) > 1:
            return  # the watching thread ends the process
        if _Delay.on:
            _Delay.number = number
        else:
            raise InterruptedBySignal(number)

    handlers = {number: signal.signal(number, interrupt) for number in SIGNALS}
    wakeup = signal.set_wakeup_fd(theirs.fileno())
    threading.Thread(target=_watch, args=(ours,), name="clip-signals", daemon=True).start()
    try:
        yield
    finally:
        if not came:  # else the thread watches until the process ends
            signal.set_wakeup_fd(wakeup)
            for number, handler in handlers.items():
                signal.signal(number, handler)
            theirs.close()


@contextmanager
def undisturbed() -> Generator[None]:
    """Delay the exception of a signal: inside the import of torch it may abort the process (1 in 266 tries).

    The signal itself is seen at once, so an import that takes too long is ended too.
    """
    _Delay.on = True
    try:
        yield
    finally:
        _Delay.on = False
        number, _Delay.number = _Delay.number, None
        if number is not None:
            raise InterruptedBySignal(number)


def _watch(signals: socket.socket) -> None:
    """End the process at the second signal, or a while after the first."""
    first: int | None = None
    deadline = math.inf
    with signals:
        while select.select([signals], [], [], None if first is None else max(0.0, deadline - time.monotonic()))[0]:
            number = int.from_bytes(signals.recv(1), "big")
            if not number:
                return  # the other end was closed: the command is over
            if number in SIGNALS and first is not None:
                os._exit(EXIT_SIGNAL + first)
            if number in SIGNALS:  # other signals have other handlers
                first, deadline = number, time.monotonic() + GRACE_S
    os.write(2, FORCED)
    os._exit(EXIT_SIGNAL + (first or 0))
