"""Decode in separate processes, which write crops where the model reads them; they may crash without harm to the job.

A thread of the job drives each process: it sends a chunk of entries, waits, and gets rows and failures back. A process
that dies costs its chunk one more try, image by image in a fresh process; an image that kills that too is a failure
row. With a time limit images are isolated: a process decodes one at a time within limits of time and memory; asking the
parent costs 0.3 ms an image. Exact pixels need no torch.

Processes are started anew, not forked, as the job has threads. The system ends them with the job, however that ends,
and before it where memory is short.
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
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..budgets import Allowance, ByteBudget
from ..errors import InputError, ResourceError
from ..records import Failure, Item, Member, Row
from .crops import CropRing, map_crops
from .decode import Answer, Chunk, Decoding
from .prepare import prepare_entry

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from contextlib import AbstractContextManager

    from ..records import Pixels, Tokens

START_S = 120.0  # for a process to start, on a machine that is busy or swaps
PIECE_BYTES = 1_000_000  # of an image's file, as it is sent
END_S = 5.0  # for a killed process to end
SHARED = 4  # one part in so many of the byte budget is shared out, for small images to be decoded without asking
# Pillow holds up to four bytes a pixel, twice while it resizes; a progressive JPEG's coefficients take six.
MEMORY_PER_PIXEL, MEMORY_BASE = 16, 512_000_000
WORK = f"import sys; from {__name__} import work; work(*map(int, sys.argv[1:]))"


@dataclass(frozen=True)
class _Setting:
    """What a process has to know before it decodes."""

    decoding: Decoding
    max_seconds: float | None  # which an image may take; None where images are not isolated
    share_bytes: int  # which an image may take without asking
    place: tuple[int, ...]  # the shape of a place of the ring


class DecoderProcesses:
    """Decodes in processes, one for each thread that calls it."""

    def __init__(
        self, decoding: Decoding, ring: CropRing, *, workers: int, budget_bytes: int, max_seconds: float | None = None
    ) -> None:
        """Write crops into `ring`; the images that all processes decode hold `budget_bytes` together.

        With `max_seconds` an image may take so long to open, and again to decode each frame; waiting for the budget
        does not count.

        Raises:  InputError on Windows.
        """
        isolated = max_seconds is not None
        if os.name == "nt":
            item = "`isolate`" if isolated else "`decoders`"
            raise InputError(item, "found Windows", "Linux or macOS", "Leave it out, to decode in threads.")
        share = 0 if isolated else budget_bytes // (SHARED * workers)
        self._setting = _Setting(decoding, max_seconds, share, ring.place)
        self._budget = ByteBudget(budget_bytes - share * workers)
        self._ring = ring
        self._own = threading.local()
        self._processes: set[_Process] = set()
        self._starting = threading.Lock()
        self._closed = False

    def __call__(self, chunk: Chunk) -> Answer:
        """Return what `Decoding.decode_chunk` makes of a chunk; an image that kills its process is one failure.

        Raises:  ResourceError where no process can be started, OSError for one that ends before it is ready.
        """
        while True:
            process = self._process()
            fresh = process.decoded == 0
            answer = process.decode(chunk, self._budget.reserve)
            ending = "" if process.alive else self._drop(process)
            if answer is not None:
                return answer
            if self._closed or (fresh and len(chunk.entries) == 1):
                message = f"the process that decodes it {ending}, expected pixels. Leave it out, or repair it."
                return _fail(chunk, ChildProcessError(message))
            if len(chunk.entries) > 1:
                return self._decode_each(chunk)

    def _decode_each(self, chunk: Chunk) -> Answer:
        """Decode the entries of a chunk one by one, as one of them may have killed the process."""
        outcomes: list[Row | Failure] = []
        windows: list[np.ndarray] = []
        warned = stored_turned = 0
        for entry in chunk.entries:
            rows = sum(isinstance(outcome, Row) for outcome in outcomes)
            crops = chunk.crops[rows : rows + 1]
            answer = self(Chunk([entry], crops, chunk.start + rows))
            outcomes += answer.outcomes
            warned, stored_turned = warned + answer.warned, stored_turned + answer.stored_turned
            if answer.windows is not None:
                answer.windows[:, 0] += rows * crops.size
                windows.append(answer.windows)
        table = np.concatenate(windows) if windows else None
        return Answer(outcomes, [1] * len(outcomes), warned=warned, stored_turned=stored_turned, windows=table)

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
            try:
                process = _Process(self._setting, self._ring)
            except ChildProcessError:  # as where it is the first to go when memory is short; twice has another reason
                process = _Process(self._setting, self._ring)
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


@contextmanager
def isolate(
    decoding: Decoding, max_seconds: float, budget_bytes: int
) -> Generator[Callable[[Item | Member], list[Pixels | Tokens | Failure]]]:
    """Give a function that decodes one entry at a time in a process of its own, as DecoderProcesses does."""
    ring = CropRing(1, decoding.settings.resolution_px)
    processes = DecoderProcesses(decoding, ring, workers=1, budget_bytes=budget_bytes, max_seconds=max_seconds)
    try:
        yield lambda entry: prepare_entry(entry, processes)
    finally:
        processes.close()
        ring.close()


class _Process:
    """A process that decodes, as its parent sees it."""

    def __init__(self, setting: _Setting, ring: CropRing) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            if ring.descriptor is None:
                raise AssertionError("processes write into shared crops")
            handed = (theirs.fileno(), ring.descriptor)
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or "." for path in sys.path)}
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-c", WORK, *map(str, handed)],
                    env=environment,
                    pass_fds=handed,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,  # libraries print there what the failure row says
                    process_group=0,  # Ctrl-C goes to the parent, which ends it
                )
            except OSError as exc:
                ours.close()
                limit = "Raise the limit on processes (ulimit -u, or the container's pids)"
                remedy = f'{limit}, or pass `decoders="threads"`, without `isolate`.'
                raise ResourceError("a process to decode in", f"cannot be started ({exc})", remedy=remedy) from exc
        self._max_seconds = setting.max_seconds
        self._connection = Connection(ours.detach())
        self.decoded = 0
        self.alive = True
        try:
            self._connection.send(setting)
            if not self._wait(START_S):
                raise TimeoutError
            self._connection.recv()
        except (OSError, EOFError) as exc:
            self.kill()
            raise ChildProcessError(
                f"a process to decode in: {self.end()} before it was ready, expected it to start. "
                f'Run `python -c "import {__name__}"` to see why, or decode in threads.'
            ) from exc

    def decode(self, chunk: Chunk, reserve: Callable[[int], AbstractContextManager[None]]) -> Answer | None:
        """Return what became of a chunk; None if the process died of it. After a time-out it is not alive."""
        try:
            with ExitStack() as reserved:
                self._send(chunk)
                while self._max_seconds is None or self._wait(self._max_seconds):
                    answer = self._connection.recv()
                    if not isinstance(answer, int):
                        self.decoded += 1
                        return answer
                    reserved.close()  # the image before is done
                    reserved.enter_context(reserve(answer))
                    self._connection.send(None)
        except (OSError, EOFError):
            self.alive = False
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(END_S)  # before anyone kills it, so that its exit code is from the crash
            return None
        self.alive = False
        message = f"not decoded after {self._max_seconds:g} s, expected less. Leave it out, or raise max_seconds."
        return _fail(chunk, TimeoutError(message))

    def _wait(self, max_seconds: float) -> bool:
        """Wait for an answer. Returns whether there is one in that time, in which a pause of the machine is none."""
        allowance = Allowance(max_seconds)
        while not self._connection.poll(allowance.begin_step()):
            if allowance.end_step():
                return False
        return True

    def _send(self, chunk: Chunk) -> None:
        """Send items and failures, and the bytes of members in pieces, as a pickle would hold them once more."""
        entries = [(entry.item, len(entry.data)) if isinstance(entry, Member) else entry for entry in chunk.entries]
        self._connection.send((entries, chunk.start, len(chunk.crops)))
        for entry in chunk.entries:
            data = memoryview(entry.data if isinstance(entry, Member) else b"")
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


def _fail(chunk: Chunk, error: OSError) -> Answer:
    failed = [entry if isinstance(entry, Failure) else Failure.of(entry, "decode", error) for entry in chunk.entries]
    return Answer(list(failed), [1] * len(failed))


def work(socket_descriptor: int, ring_descriptor: int) -> None:
    """Run in a separate process: take chunks from the parent, decode them into its ring, until it is gone."""
    _volunteer_to_be_killed()
    if sys.platform != "linux":  # elsewhere SIGIO is ignored by default
        signal.signal(signal.SIGIO, lambda *_: os._exit(1))
    connection = Connection(socket_descriptor)
    setting: _Setting = connection.recv()
    decoding = setting.decoding
    crops = map_crops(ring_descriptor, setting.place)
    limit_bytes = MEMORY_BASE + MEMORY_PER_PIXEL * decoding.limits.max_pixels
    if decoding.options.pixels == "fast":
        importlib.import_module("torch")  # before the limit, as its libraries map some gigabytes
    if setting.max_seconds is not None:
        _limit_memory(limit_bytes)

    @contextmanager
    def reserve(size_bytes: int) -> Generator[None]:
        if size_bytes > setting.share_bytes:
            with _ending_with_parent(connection, on=False):
                connection.send(size_bytes)
                connection.recv()
        yield

    connection.send(None)
    with suppress(EOFError, OSError):
        while True:
            chunk = _receive(connection, crops)
            with _ending_with_parent(connection):
                answer = decoding.decode_chunk(chunk, reserve)
            outcomes = [_name_limit(outcome, limit_bytes) for outcome in answer.outcomes]
            connection.send(replace(answer, outcomes=outcomes))


def _receive(connection: Connection, crops: np.ndarray) -> Chunk:
    """Take a chunk from the parent; a Failure stands for a member for whose bytes this process has no memory."""
    listed, start, count = connection.recv()
    entries = [entry if isinstance(entry, (Item, Failure)) else _receive_member(connection, *entry) for entry in listed]
    return Chunk(entries, crops[start : start + count], start)


def _receive_member(connection: Connection, item: Item, size_bytes: int) -> Member | Failure:
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


def _name_limit(outcome: Row | Failure, limit_bytes: int) -> Row | Failure:
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
