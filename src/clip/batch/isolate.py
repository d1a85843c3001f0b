"""Items to pixels: in the thread that asks, or in a process of its own. Knows nothing about models.

Such a process may crash, hang or eat memory without harm to the job. It decodes one image at a time, so the one that
kills it is known. If it had decoded others before, the image is tried once more in a fresh one: what broke the first
may have been left behind by an earlier image. No torch is needed for exact pixels.
"""

from __future__ import annotations

import importlib
import math
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError
from ..records import Failure, Item, Member, Pixels
from .decode import Decoding

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from contextlib import AbstractContextManager


START_S = 120.0  # for a process to begin, on a machine that is busy or swaps
ORPHAN_S = 30.0  # beyond the limit, after which a process whose parent is gone ends itself
END_S = 5.0  # for a killed process to be gone
# Pillow holds up to four bytes a pixel, twice while it resizes; a progressive JPEG's coefficients take six.
MEMORY_PER_PIXEL, MEMORY_BASE = 16, 512_000_000
WORK = f"import sys; from {__name__} import work; work(int(sys.argv[1]))"


class IsolatedDecoder:
    """Decodes in processes, one for each thread that calls it."""

    def __init__(
        self,
        decoding: Decoding,
        max_seconds: float,
        reserve: Callable[[int], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """`max_seconds` is for opening an image, and again for decoding each frame; waiting in `reserve` not counted.

        Raises:  InputError on Windows.
        """
        if os.name == "nt":
            raise InputError(
                "`isolate`",
                "not on Windows",
                "Linux or macOS",
                "Decode in threads, without it.",
            )
        self._decoding = decoding
        self._max_seconds = max_seconds
        self._reserve = reserve
        self._own = threading.local()
        self._processes: set[_Process] = set()
        self._starting = threading.Lock()
        self._closed = False

    def __call__(self, entry: Item | Member) -> list[Pixels | Failure]:
        """One entry of a source -> what `Decoding` makes of it; one failure, whatever its frames, if that kills it.

        Raises:  OSError where no process can be started.
        """
        while True:
            process = self._process()
            fresh = process.decoded == 0
            found = process.decode(entry, self._max_seconds, self._reserve)
            if not process.alive:
                ended = self._drop(process)
                if found is None and (fresh or self._closed):
                    message = f"the process that decodes it {ended}, expected pixels. Leave it out, or repair it."
                    return [_failure(entry, ChildProcessError, message)]
            if found is not None:
                return found

    def close(self) -> None:
        """End all processes at once; calls under way return."""
        with self._starting:
            self._closed = True
            for process in self._processes:
                process.kill()
            for process in self._processes:
                process.end()

    def _process(self) -> _Process:
        process: _Process | None = getattr(self._own, "process", None)
        if process is None or not process.alive:
            process = _Process(self._decoding, self._max_seconds)
            with self._starting:
                self._processes.add(process)
                if self._closed:
                    process.kill()
            self._own.process = process
        return process

    def _drop(self, process: _Process) -> str:
        process.kill()
        self._own.process = None
        with self._starting:
            self._processes.discard(process)
        return process.end()


def _failure(entry: Item | Member, error: type[Exception], message: str) -> Failure:
    return Failure(entry.id, entry.path, "decode", error.__name__, message)


class _Process:
    """A process that decodes, seen from outside."""

    def __init__(self, decoding: Decoding, max_seconds: float) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-P", "-c", WORK, str(theirs.fileno())]
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or "." for path in sys.path)}
            self._process = subprocess.Popen(
                command,
                env=environment,
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # what libraries print there is in no failure row's place
                process_group=0,  # Ctrl-C is for us; we end it
            )
        self._connection = Connection(ours.detach())
        self.decoded = 0
        self.alive = True
        try:
            self._connection.send((decoding, max_seconds))
            if not self._connection.poll(START_S):
                raise TimeoutError
            self._connection.recv()
        except (OSError, EOFError) as exc:
            self.kill()
            raise ChildProcessError(
                f"a process to decode in: {self.end()} before it was ready, expected it to begin. "
                'Look at what `python -c "import clip.decoders"` says, or run without --isolate.'
            ) from exc

    def decode(
        self, entry: Item | Member, max_seconds: float, reserve: Callable[[int], AbstractContextManager[None]]
    ) -> list[Pixels | Failure] | None:
        """What became of an image; None if the process died of it. It is not alive after a time-out."""
        try:
            with ExitStack() as held:
                self._connection.send(entry)
                while self._connection.poll(max_seconds):
                    found = self._connection.recv()
                    if not isinstance(found, int):
                        self.decoded += 1
                        return found
                    held.close()  # the frame before is done
                    held.enter_context(reserve(found))
                    self._connection.send(None)
        except (OSError, EOFError):
            self.alive = False
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(END_S)  # by itself, so that what it tells of its end is its own
            return None
        self.alive = False
        message = f"not decoded after {max_seconds:g} s, expected less. Leave it out, or raise --max-seconds."
        return [_failure(entry, TimeoutError, message)]

    def kill(self) -> None:
        self.alive = False
        self._process.kill()

    def end(self) -> str:
        """How the process ended, in words."""
        with suppress(subprocess.TimeoutExpired):
            code = self._process.wait(END_S)
            if code >= 0:
                return f"ended with code {code}"
            with suppress(ValueError):
                return f"was ended by {signal.Signals(-code).name}"
            return f"was ended by signal {-code}"
        return "does not end"


def work(descriptor: int) -> None:
    """What such a process does: items in, pixels or failures out, until nobody is there any more."""
    connection = Connection(descriptor)
    decoding, max_seconds = connection.recv()
    limit_bytes = MEMORY_BASE + MEMORY_PER_PIXEL * decoding.limits.max_pixels
    if decoding.options.pixels == "fast":
        importlib.import_module("torch")  # before the limit, as its libraries map some gigabytes
    _limit_memory(limit_bytes)

    def watch() -> None:
        # The alarm's own action ends the process, whatever holds Python's lock, if nobody is there to do it.
        signal.alarm(math.ceil(max_seconds + ORPHAN_S))

    @contextmanager
    def reserve(size_bytes: int) -> Generator[None]:
        signal.alarm(0)
        connection.send(size_bytes)
        connection.recv()
        watch()
        yield

    connection.send(None)
    with suppress(EOFError, OSError):
        while True:
            entry = connection.recv()
            watch()
            found = decoding(entry, reserve)
            signal.alarm(0)
            connection.send([_with_limit(outcome, limit_bytes) for outcome in found])


def _with_limit(outcome: Pixels | Failure, limit_bytes: int) -> Pixels | Failure:
    if not isinstance(outcome, Failure) or outcome.error != MemoryError.__name__:
        return outcome
    message = f"needs more than {limit_bytes:,} bytes of memory, expected less. Leave it out, or shrink it."
    return replace(outcome, message=message)


def _limit_memory(limit_bytes: int) -> None:
    """Let this process have so many bytes more than it has; only where the system keeps such limits."""
    import resource  # here, as Windows has none

    with suppress(OSError, ValueError, IndexError):
        has_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        ours = [limit for limit in (has_bytes + limit_bytes, soft, hard) if limit != resource.RLIM_INFINITY]
        resource.setrlimit(resource.RLIMIT_AS, (min(ours), hard))
