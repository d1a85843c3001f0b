"""One job at a time on an output: a lock that outlives no job. Knows nothing about what is in the folder.

The lock is a record (host, pid, when the process began, a count) that its owner counts up every few seconds. On the
same host it is stale when its process is gone; on another, over a network disk, when its count has stood still for a
while on this host's own monotonic clock: no two clocks are compared, and none that is set back matters.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from ..atomic_files import TEMPORARY, remove_temporaries, translate_os_errors
from ..errors import StoreBusyError, StoreError

if TYPE_CHECKING:
    from collections.abc import Generator

LOCK, GUARD = ".lock", ".lock.guard"  # the record, and what is held for the moment of reading and replacing it
HEARTBEAT_S = 5.0
STALE_S = 30.0  # six heartbeats
ENDED_STATES = ("Z", "X")  # man 5 proc
LOOK_S = 1.0  # between looks at another host's count

_log = logging.getLogger("clip")


class Lock:
    """A lock that is held."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK
        self._owner = secrets.token_hex(8)
        self._count = 0
        self._over = threading.Event()

    def check(self) -> None:
        """Raise StoreBusyError where another job has taken the lock over, or had, because this one stood still.

        Raises:  StoreError where the folder cannot be read.
        """
        with translate_os_errors(self._path):
            record = _read(self._path)
            if record is None:
                self._path.parent.stat()  # where all of the output is gone, that is what is told
        if record is None or record["owner"] != self._owner:
            other = "another job" if record is None else _who(record)
            raise StoreBusyError(
                self._path.parent,
                f"{other} has taken it over while this job stood still",
                "to hold it",
                "Run again when that job is done.",
            )

    def _write(self) -> None:
        record = {
            "host": socket.gethostname(),
            "processes": process_space(),
            "pid": os.getpid(),
            "began": process_began(os.getpid()),
            "owner": self._owner,
            "count": self._count,
        }
        temporary = self._path.with_name(f"{LOCK}.{self._owner}{TEMPORARY}")
        temporary.write_text(json.dumps(record))
        temporary.replace(self._path)

    def _beat(self) -> None:
        while not self._over.wait(HEARTBEAT_S):
            self._count += 1
            try:
                with FileLock(self._path.with_name(GUARD)):
                    self.check()
                    self._write()
            except (OSError, StoreError) as exc:
                _log.debug("%s: no heartbeat (%s)", self._path, exc)  # the next commit says what it means

    def _release(self) -> None:
        try:
            record = _read(self._path)
            if record is not None and record["owner"] == self._owner:
                self._path.unlink(missing_ok=True)  # the guard stays: another job may be waiting for it
        except OSError as exc:
            # What the job has to say is more to the point; the lock of a process that is gone is taken over.
            _log.debug("%s: cannot be removed (%s)", self._path, exc)


@contextmanager
def locked(folder: Path) -> Generator[Lock]:
    """Hold a folder's lock. A stale one is taken over, which over a network disk takes half a minute to find out.

    Raises:  StoreBusyError where another job is at work there, StoreError where the folder cannot be written.
    """
    lock = Lock(folder)
    with translate_os_errors(folder):
        _acquire(lock, folder)
    beat = threading.Thread(target=lock._beat, name="clip-lock", daemon=True)  # pyright: ignore[reportPrivateUsage]
    beat.start()
    try:
        yield lock
    finally:
        lock._over.set()  # pyright: ignore[reportPrivateUsage]
        beat.join()  # first, or a heartbeat under way would write the record once more
        lock._release()  # pyright: ignore[reportPrivateUsage]


def _acquire(lock: Lock, folder: Path) -> None:
    watched, since = None, time.monotonic()
    while True:
        with FileLock(folder / GUARD):
            record = _read(folder / LOCK)
            stood_still = record is not None and record == watched and time.monotonic() - since >= STALE_S
            if record is None or _is_gone(record) or stood_still:
                remove_temporaries(folder, LOCK.removeprefix("."))
                if record is not None:
                    _log.warning("%s: taking over the lock of %s, which is gone", folder, _who(record))
                lock._write()  # pyright: ignore[reportPrivateUsage]
                return
        if (record["processes"] is not None and record["processes"] == process_space()) or watched not in (
            None,
            record,
        ):
            raise StoreBusyError(
                folder,
                f"{_who(record)} is at work there",
                "no other job",
                "Wait for it, or choose another output.",
            )
        if watched is None:
            _log.warning("%s: locked by %s; looking for %.0f s whether it lives", folder, _who(record), STALE_S)
            watched = record
        time.sleep(LOOK_S)


def _read(path: Path) -> dict[str, Any] | None:
    """The record; None where there is none, or what is there is not ours."""
    try:
        record = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    complete = isinstance(record, dict) and {"host", "processes", "pid", "began", "owner", "count"} <= record.keys()
    return record if complete else None


def _is_gone(record: dict[str, Any]) -> bool:
    """Whether the owner is a process of this machine that no longer runs."""
    here = record["processes"] is not None and record["processes"] == process_space()
    return here and process_began(record["pid"]) != record["began"]


def _who(record: dict[str, Any]) -> str:
    return f"process {record['pid']} on {record['host']}"


def process_space() -> str | None:
    """What tells one set of process ids from another: this boot and this container; None where that is not told."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"  # noqa: PTH115  the link leads to no file
    except OSError:
        return None


def process_began(pid: int) -> str | None:
    """When a process began, in ticks since boot, so that a number used again is no match; None where it is not told.

    A process that has ended and that nobody has waited for yet is gone too.
    """
    try:
        state, *numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return None if state in ENDED_STATES else numbers[18]
