"""Decode images in separate processes, which may crash, hang or use up memory without harm to the job.

A process decodes one image at a time, so the image that kills it is known; the socket costs 0.3 ms an image. If the
process had decoded others before, the image is tried once more in a fresh one, as an earlier image may have damaged the
first. Exact pixels need no torch.
"""

from __future__ import annotations

import importlib
import io
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

from ..budgets import Allowance
from ..errors import InputError, ResourceError
from ..records import Failure, Item, Member, Pixels
from .decode import Decoding

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from contextlib import AbstractContextManager


START_S = 120.0  # for a process to start, on a machine that is busy or swaps
PIECE_BYTES = 1_000_000  # of an image's file, as it is sent
END_S = 5.0  # for a killed process to end
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
        """Allow `max_seconds` to open an image, and again to decode each frame; waiting in `reserve` does not count.

        Raises:  InputError on Windows.
        """
        if os.name == "nt":
            raise InputError("`isolate`", "found Windows", "Linux or macOS", "Leave it out, to decode in threads.")
        self._decoding = decoding
        self._max_seconds = max_seconds
        self._reserve = reserve
        self._own = threading.local()
        self._processes: set[_Process] = set()
        self._starting = threading.Lock()
        self._closed = False

    def __call__(self, entry: Item | Member) -> list[Pixels | Failure]:
        """Return what `Decoding` makes of an entry; one failure, whatever its frames, if it kills its process.

        Raises:  ResourceError where no process can be started, OSError for one that ends before it is ready.
        """
        while True:
            process = self._process()
            fresh = process.decoded == 0
            outcomes = process.decode(entry, self._max_seconds, self._reserve)
            if not process.alive:
                ending = self._drop(process)
                if outcomes is None and (fresh or self._closed):
                    message = f"the process that decodes it {ending}, expected pixels. Leave it out, or repair it."
                    return [Failure.of(entry, "decode", ChildProcessError(message))]
            if outcomes is not None:
                return outcomes

    def close(self) -> None:
        """End all processes at once; calls that are waiting for one return."""
        with self._starting:
            self._closed = True
            for process in self._processes:
                process.kill()
            for process in self._processes:
                process.end()

    def _process(self) -> _Process:
        process: _Process | None = getattr(self._own, "process", None)
        if process is None or not process.alive:
            process = _Process(self._decoding)
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


class _Process:
    """A process that decodes, as its parent sees it."""

    def __init__(self, decoding: Decoding) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-P", "-c", WORK, str(theirs.fileno())]
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or "." for path in sys.path)}
            try:
                self._process = subprocess.Popen(
                    command,
                    env=environment,
                    pass_fds=(theirs.fileno(),),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,  # libraries print there what the failure row says
                    process_group=0,  # Ctrl-C goes to the parent, which ends it
                )
            except OSError as exc:
                ours.close()
                remedy = "Raise the limit on processes (ulimit -u, or the container's pids), or leave `isolate` out."
                raise ResourceError("a process to decode in", f"cannot be started ({exc})", remedy=remedy) from exc
        self._connection = Connection(ours.detach())
        self.decoded = 0
        self.alive = True
        try:
            self._connection.send(decoding)
            if not self._wait(START_S):
                raise TimeoutError
            self._connection.recv()
        except (OSError, EOFError) as exc:
            self.kill()
            raise ChildProcessError(
                f"a process to decode in: {self.end()} before it was ready, expected it to start. "
                f'Run `python -c "import {__name__}"` to see why, or leave out isolate.'
            ) from exc

    def decode(
        self, entry: Item | Member, max_seconds: float, reserve: Callable[[int], AbstractContextManager[None]]
    ) -> list[Pixels | Failure] | None:
        """Return the outcomes of an image; None if the process died of it. After a time-out it is not alive."""
        try:
            with ExitStack() as reserved:
                self._send(entry)
                while self._wait(max_seconds):
                    answer = self._connection.recv()
                    if not isinstance(answer, int):
                        self.decoded += 1
                        return answer
                    reserved.close()  # the frame before is done
                    reserved.enter_context(reserve(answer))
                    self._connection.send(None)
        except (OSError, EOFError):
            self.alive = False
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(END_S)  # before anyone kills it, so that its exit code is from the crash
            return None
        self.alive = False
        message = f"not decoded after {max_seconds:g} s, expected less. Leave it out, or raise max_seconds."
        return [Failure.of(entry, "decode", TimeoutError(message))]

    def _wait(self, max_seconds: float) -> bool:
        """Wait for an answer. Returns whether there is one in that time, in which a pause of the machine is none."""
        allowance = Allowance(max_seconds)
        while not self._connection.poll(allowance.begin_step()):
            if allowance.end_step():
                return False
        return True

    def _send(self, entry: Item | Member) -> None:
        """Send an item, and the bytes of a member in pieces, as a pickle would hold them once more."""
        data = memoryview(entry.data if isinstance(entry, Member) else b"")
        self._connection.send((entry.item, len(data)) if isinstance(entry, Member) else (entry, None))
        for start in range(0, len(data), PIECE_BYTES):
            self._connection.send_bytes(data[start : start + PIECE_BYTES])

    def kill(self) -> None:
        self.alive = False
        self._process.kill()

    def end(self) -> str:
        """Wait for the process, and return how it ended, in words."""
        with suppress(subprocess.TimeoutExpired):
            code = self._process.wait(END_S)
            if code >= 0:
                return f"ended with code {code}"
            with suppress(ValueError):
                return f"was ended by {signal.Signals(-code).name}"
            return f"was ended by signal {-code}"
        return "does not end"


def work(descriptor: int) -> None:
    """Run in a separate process: take entries from the parent, send back pixels or failures, until it is gone."""
    _volunteer_to_be_killed()
    if sys.platform != "linux":  # elsewhere SIGIO is ignored by default
        signal.signal(signal.SIGIO, lambda *_: os._exit(1))
    connection = Connection(descriptor)
    decoding = connection.recv()
    limit_bytes = MEMORY_BASE + MEMORY_PER_PIXEL * decoding.limits.max_pixels
    if decoding.options.pixels == "fast":
        importlib.import_module("torch")  # before the limit, as its libraries map some gigabytes
    _limit_memory(limit_bytes)

    @contextmanager
    def reserve(size_bytes: int) -> Generator[None]:
        with _ending_with_parent(connection, on=False):
            connection.send(size_bytes)
            connection.recv()
        yield

    connection.send(None)
    with suppress(EOFError, OSError):
        while True:
            entry = _receive(connection)
            with _ending_with_parent(connection):
                outcomes = [entry] if isinstance(entry, Failure) else decoding(entry, reserve)
            connection.send([_name_limit(outcome, limit_bytes) for outcome in outcomes])


def _receive(connection: Connection) -> Item | Member | Failure:
    """Take an entry from the parent; a Failure where this process has no memory for its bytes."""
    item, size_bytes = connection.recv()
    if size_bytes is None:
        return item
    whole = io.BytesIO()
    error = None
    for _ in range(0, size_bytes, PIECE_BYTES):
        piece = connection.recv_bytes()
        try:
            whole.write(piece if error is None else b"")
        except MemoryError as exc:
            error, whole = exc, io.BytesIO()
    return Member(item, whole.getvalue()) if error is None else Failure.of(item, "read", error)


@contextmanager
def _ending_with_parent(connection: Connection, *, on: bool = True) -> Generator[None]:
    """Have the system end this process when its parent is gone, even while a library holds Python's lock.

    Its end of the socket closes then, and SIGIO says so, whose default action on Linux ends a process. Nothing else
    comes while an image is decoded: what comes is asked for. A timer would also count the time that all is paused.
    """
    _signal_input(connection, on=on)
    try:
        if on and connection.poll():
            raise EOFError("the parent is gone")  # before the system was asked to say so
        yield
    finally:
        _signal_input(connection, on=not on)


def _signal_input(connection: Connection, *, on: bool) -> None:
    import fcntl  # here, as Windows has none

    descriptor = connection.fileno()
    fcntl.fcntl(descriptor, fcntl.F_SETOWN, os.getpid())
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_ASYNC if on else flags & ~os.O_ASYNC)


def _volunteer_to_be_killed() -> None:
    """Have Linux, where memory is short, kill this process, whose image becomes a failure row, and not the job."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _name_limit(outcome: Pixels | Failure, limit_bytes: int) -> Pixels | Failure:
    if not isinstance(outcome, Failure) or outcome.error != MemoryError.__name__:
        return outcome
    message = f"needs more than {limit_bytes:,} bytes of memory, expected less. Leave it out, or shrink it."
    return replace(outcome, message=message)


def _limit_memory(limit_bytes: int) -> None:
    """Let this process use that many bytes more than now, where the system can limit it."""
    import resource  # here, as Windows has none

    with suppress(OSError, ValueError, IndexError):
        has_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        ours = [limit for limit in (has_bytes + limit_bytes, soft, hard) if limit != resource.RLIM_INFINITY]
        resource.setrlimit(resource.RLIMIT_AS, (min(ours), hard))
