"""Be interrupted where an exception is lost: in a finalizer, and in code that asks for an attribute."""

import os
import signal
import sys
import time

from clip.cli.signals import InterruptedBySignal, interruptible

LIMIT_S = 60.0


class Finalized:
    """Sends a signal when it is removed."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


class LookedAt:
    """Sends a signal when a library asks whether it is closed."""

    @property
    def closed(self) -> bool:
        """Whether it could be read."""
        os.kill(os.getpid(), signal.SIGTERM)
        return True


def lose(where: str) -> None:
    """Have the exception of a signal raised where nobody gets it."""
    if where == "finalizer":
        Finalized()
        return
    try:
        _ = LookedAt().closed
    except InterruptedBySignal:
        return


try:
    with interruptible():
        lose(sys.argv[1])
        begun = time.monotonic()
        while time.monotonic() - begun < LIMIT_S:
            time.sleep(0.001)
except InterruptedBySignal as exc:
    time.sleep(0.3)  # no second one comes
    print(exc.code)
