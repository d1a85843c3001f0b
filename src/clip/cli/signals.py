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
import sys
import time
import weakref
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from ..parallel import start_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
EXIT_SIGNAL = 128  # plus the signal's number, as shells have it
IMPORTING = "<frozen importlib"  # how the names of the files begin whose frames are in each import
LOOK_AGAIN_S = 0.05  # whether the import is over, or the exception was lost
GRACE_S = 8.0  # for an orderly end; people and schedulers wait about 10 s
FORCED = b"ended without waiting for what was under way; what was saved is kept\n"


class InterruptedBySignal(BaseException):
    """Raised by a signal, so that what is open is cleaned up."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.code = EXIT_SIGNAL + number


@contextmanager
def interruptible() -> Generator[None]:
    """Have the first signal raise InterruptedBySignal in here; the second, or eight seconds, end the process.

    Inside an import the exception waits until that is over: in torch's it aborted the process in 1 of 266 tries. The
    signal itself is seen at once, so an import that takes too long is ended too. Where the exception is lost, as those
    in finalizers and in calls from libraries are (1 of 19 runs on a busy machine), it is raised anew.

    Raises:  ResourceError where the system starts no thread.
    """
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    came: list[int] = []
    raised: list[weakref.ref[InterruptedBySignal]] = []
    is_over = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        came.append(number)
        if len(came) == 1:  # else the watching thread ends the process
            if hasattr(signal, "setitimer"):
                signal.signal(signal.SIGALRM, raise_until_seen)
                signal.setitimer(signal.ITIMER_REAL, LOOK_AGAIN_S, LOOK_AGAIN_S)
            raise_until_seen(number, frame)

    def raise_until_seen(_number: int, frame: FrameType | None) -> None:
        is_on_its_way = bool(raised) and raised[-1]() is not None  # else nobody holds it any more
        if is_over or is_on_its_way or (_is_importing(frame) and hasattr(signal, "setitimer")):
            return
        interruption = InterruptedBySignal(came[0])
        raised.append(weakref.ref(interruption))
        try:
            raise interruption
        finally:
            del interruption  # as its traceback holds this frame

    handlers = {number: signal.signal(number, interrupt) for number in SIGNALS}
    wakeup = signal.set_wakeup_fd(theirs.fileno())
    unraisable, sys.unraisablehook = sys.unraisablehook, _say_nothing_of_interruptions(sys.unraisablehook)
    start_thread(partial(_watch, ours), "clip-signals")
    try:
        yield
        if came:  # during an import that was the last thing
            raise InterruptedBySignal(came[0])
    finally:
        is_over = True
        sys.unraisablehook = unraisable
        if came and hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        if not came:  # else the thread watches until the process ends
            signal.set_wakeup_fd(wakeup)
            for number, handler in handlers.items():
                signal.signal(number, handler)
            theirs.close()


def _say_nothing_of_interruptions(hook: Callable[[Any], None]) -> Callable[[Any], None]:
    def report(unraisable: Any) -> None:
        if not isinstance(unraisable.exc_value, InterruptedBySignal):  # it is raised anew
            hook(unraisable)

    return report


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith(IMPORTING):
            return True
        frame = frame.f_back
    return False


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
        os._exit(EXIT_SIGNAL + (first or 0))  # before the socket is closed, as each alarm is still written to it
