"""What can go wrong in a run: steps that a fork of `serve_embed` takes before it begins.

They wrap what the operating system is asked for; nothing in the package knows of them.
"""

import io
import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from typing import Any, NoReturn


def kill() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def umask(mask: int) -> None:
    os.umask(mask)


def meet(together: float) -> None:
    """Begin at a moment of the monotonic clock."""
    while time.monotonic() < together:
        pass


def at(moment: int, deed: str, *arguments: Any) -> None:
    """Do another of these, once, when so many images are read, or as many more as are told together."""
    from clip.batch import embed as module

    embed = module.embed

    def disturbed(job: Any, progress: Any) -> Any:
        is_done = False

        def disturb(now: Any) -> None:
            nonlocal is_done
            if now.read >= moment and not is_done:
                is_done = True
                globals()[deed](*arguments)
            progress(now)

        return embed(job, disturb)

    module.embed = disturbed


def wait(reached: str, over: str) -> None:
    """Make one file, and wait until somebody makes the other."""
    open(reached, "w").close()
    while not os.path.exists(over):
        time.sleep(0.01)


def remove(out: str) -> None:
    shutil.rmtree(out)


def set_clock_back() -> None:
    """Set the clock back by an hour each time that it is read."""
    now = time.time()

    def back() -> float:
        nonlocal now
        now -= 3600
        return now

    time.time, time.time_ns = back, lambda: int(1e9 * back())


# Disks.


def limit_files(size_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, size_bytes))


def mount(disk: str, options: str) -> None:
    subprocess.run(["mkdir", "-p", disk], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "clip", disk], check=True)


def remount(disk: str, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", disk], check=True)


class FailingCalls:
    """Calls that fail from the `number`th on, of those that go to paths below `out`."""

    def __init__(self, out: str, number: int, error: int) -> None:
        self.out, self.number, self.error = out, number, error
        self.calls = 0

    def count(self, path: Any) -> None:
        path = os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else str(path)
        if path.startswith(self.out):
            self.calls += 1
            if self.calls >= self.number:
                raise OSError(self.error, os.strerror(self.error), path)

    def wrap(self, name: str) -> None:
        original = getattr(os, name)

        def wrapped(path: Any, *args: Any, **kwargs: Any) -> Any:
            if name != "open" or args[0] & (os.O_WRONLY | os.O_RDWR) or os.path.isdir(path):  # not to read a file
                self.count(path)
            return original(path, *args, **kwargs)

        setattr(os, name, wrapped)


failing: list[FailingCalls] = []


def fail_calls(out: str, calls: Sequence[str], number: int, error: int) -> None:
    """Fail calls of `os`, and "create" and "write" of files, from the `number`th on."""
    state = FailingCalls(out, number, error)
    failing.append(state)
    io_open = io.open

    class File(io.FileIO):
        def write(self, data: Any) -> int:
            state.count(self.name)
            return super().write(data)

    def open_to_write(path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if "w" not in mode or not str(path).startswith(out):
            return io_open(path, mode, *args, **kwargs)
        if "create" in calls:
            state.count(path)
        file = io.BufferedWriter(File(path, "w") if "write" in calls else io.FileIO(path, "w"))
        return file if "b" in mode else io.TextIOWrapper(file)

    io.open = open_to_write
    for name in {*calls} - {"create", "write"}:
        state.wrap(name)


def fail_from_now_on() -> None:
    for state in failing:
        state.number = 0


# Kills.


def kill_at_call(name: str, number: int, after: bool = False) -> None:
    """Kill the process right before a call of `os`, or after it."""
    original = getattr(os, name)
    calls = 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number and not after:
            kill()
        result = original(*args, **kwargs)
        if calls == number:
            kill()
        return result

    setattr(os, name, wrapped)


def kill_in_write(number: int) -> None:
    """Kill the process when a table of a Parquet file is written and the file is not closed."""
    import pyarrow.parquet as pq

    original = pq.ParquetWriter.write_table
    calls = 0

    def half(self: Any, table: Any, **options: Any) -> None:
        nonlocal calls
        calls += 1
        original(self, table, **options)
        if calls == number:
            kill()

    pq.ParquetWriter.write_table = half


def kill_at_member(place: int) -> None:
    """Kill the process when so many members of archives, tables or servers are read."""
    from clip import records
    from clip.sources import members
    from clip.sources.remote import prefetch

    calls = 0

    class Dying(records.Member):
        __slots__ = ()

        def __init__(self, *values: Any) -> None:
            nonlocal calls
            calls += 1
            if calls == place:
                kill()
            records.Member.__init__(self, *values)

    members.Member = prefetch.Member = Dying
