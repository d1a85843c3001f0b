"""Locks that admit one job at a time to an output, or the parts of one job, and that no dead process keeps.

    .lock                  of a job that has the output for itself
    .lock.part-3-of-8      of a process that does one part of a job; others of the same number of parts are beside it
    .lock.plan             of the one process of these that lists the input, or writes the counts; the others wait

A lock is a record (host, pid, start of the process, a count) whose owner increases the count every few seconds. On
the same host it is stale once its process is gone. On another host, over a network disk, it is stale once its count has
not changed for a while by this host's monotonic clock: no two clocks are compared, and setting one back does no harm.

On an object store (`ObjectLock`) the record is an object that is put if it is absent, and afterwards only in the place
of the version that was seen. There is no guard: who has put a record looks again for those that it excludes, and may
withdraw.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import secrets
import socket
import threading
import time
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from ..atomic_files import TEMPORARY, read_regular, remove_temporaries, translate_os_errors
from ..errors import ResourceError, StoreBusyError, StoreError, StoreUnreachableError
from ..object_paths import ObjectPath
from ..parallel import start_thread

if TYPE_CHECKING:
    from collections.abc import Generator
    from contextlib import AbstractContextManager

    from ..jobs.part import PartOf

LOCK, GUARD = ".lock", ".lock.guard"  # the record; and a file lock, held while records are read and replaced
PLAN_LOCK, PART_LOCK = ".lock.plan", ".lock.part-{}-of-{}"
PART_LOCK_NAME = re.compile(r"\.lock\.part-\d+-of-(\d+)")
HEARTBEAT_S = 5.0
STALE_S = 30.0  # six heartbeats
PUTS = 3  # of a record, where a server gives no answer
OBJECT_HEARTBEAT_S, OBJECT_STALE_S = 15.0, 90.0  # a put costs money: a thousand for each machine in four hours
ENDED_STATES = ("Z", "X")  # man 5 proc
MAX_BYTES = 2**16  # of a record
LOOK_S = 1.0  # between looks at another host's count
WAIT_S = 0.2  # between looks of a process that waits for its turn

_log = logging.getLogger("clip")


@dataclass(frozen=True)
class Holding:
    """Who holds a lock; may be handed to processes on other machines that work for the holder."""

    path: Path
    owner: str

    def check(self) -> None:
        """Raise StoreBusyError where another job has, or had, taken the lock over, because this one stalled or ended.

        Raises:  StoreError where the folder cannot be read.
        """
        with translate_os_errors(self.path):
            record = _read(self.path)
            if record is None:
                self.path.parent.stat()  # where the whole output is gone, the error says so
        if record is None or record["owner"] != self.owner:
            other = "another job" if record is None else _name_owner(record)
            found = f"{other} has taken it over, as this job had stalled"
            raise StoreBusyError(self.path.parent, found, remedy="Run again when that job is done.")


class Lock:
    """A lock of a folder, that of the whole by default."""

    def __init__(self, folder: Path, name: str = LOCK, part: PartOf | None = None) -> None:
        self._path = folder / name
        self._part = part
        self._owner = secrets.token_hex(8)
        self._count = 0
        self._over = threading.Event()
        self._heart: threading.Thread | None = None

    def acquire(self) -> None:
        """Take the lock, and start its heartbeat. Raises: as `hold_lock`; ResourceError where no thread starts."""
        with translate_os_errors(self._path.parent):
            self._take()
        try:
            self._heart = start_thread(self._beat, "clip-lock")
        except ResourceError:
            self.release()
            raise

    def release(self) -> None:
        """Stop the heartbeat, and remove the record if it is still ours."""
        self._over.set()
        if self._heart is not None:
            self._heart.join()  # first, or a heartbeat in progress would write the record again
        try:
            record = _read(self._path)
            if record is not None and record["owner"] == self._owner:
                self._path.unlink(missing_ok=True)  # the guard stays, as another job may be waiting for it
        except (OSError, StoreError) as exc:
            # The job's own error says more, and the lock of a dead process is taken over.
            _log.debug("%s: cannot be removed (%s)", self._path, exc)

    @property
    def holding(self) -> Holding:
        """Who holds it, for those who must know that it is still held."""
        return Holding(self._path, self._owner)

    def _take(self) -> None:
        folder = self._path.parent
        waits = self._path.name == PLAN_LOCK
        watched: dict[str, tuple[dict[str, Any], float]] = {}
        is_said = False
        while True:
            rivals = self._try(watched)
            if not rivals:
                return
            alive = next((record for record, has_beaten in rivals if has_beaten or _is_local(record)), None)
            if alive is not None and not waits:
                found = f"{_name_owner(alive)} is at work there"
                raise StoreBusyError(folder, found, "no other job", "Wait for it, or choose another output.")
            if alive is None and not is_said:
                message = "%s: locked by %s; waiting %.0f s to see whether it is alive"
                _log.warning(message, folder, _name_owner(rivals[0][0]), self._stale_s)
                is_said = True
            time.sleep(WAIT_S if waits else LOOK_S)

    def _try(self, watched: dict[str, tuple[dict[str, Any], float]]) -> list[tuple[dict[str, Any], bool]]:
        """Take the lock, or return what keeps it out, as `_find_rivals` does."""
        with FileLock(check_guard(self._path.with_name(GUARD))):
            rivals = self._find_rivals(watched)
            if not rivals:
                remove_temporaries(self._path.parent, self._path.name.removeprefix("."))
                self._write()
        return rivals

    @property
    def _beat_s(self) -> float:
        return HEARTBEAT_S

    @property
    def _stale_s(self) -> float:
        return STALE_S

    def _remove_stale(self, path: Path, record: dict[str, Any]) -> bool:  # noqa: ARG002  a guard is held
        path.unlink(missing_ok=True)
        return True

    def _find_rivals(self, watched: dict[str, tuple[dict[str, Any], float]]) -> list[tuple[dict[str, Any], bool]]:
        """Return the locks that keep this one out, and which were seen to beat; remove those of owners that are gone.

        All are watched together: of a hundred machines that were lost none is waited for after another.
        """
        folder, rivals = self._path.parent, list[tuple[dict[str, Any], bool]]()
        for name in sorted(path.name for path in folder.iterdir()):
            record = _read(folder / name) if self._excludes(name) else None
            if record is None or record["owner"] == self._owner:
                continue
            before, since = watched.get(name, (None, 0.0))
            is_stale = _is_gone(record) or (record == before and time.monotonic() - since >= self._stale_s)
            if is_stale and self._remove_stale(folder / name, record):
                _log.warning("%s: taking over the lock of %s, which is gone", folder, _name_owner(record))
                continue
            if record != before:
                watched[name] = (record, time.monotonic())
            rivals.append((record, before is not None and before != record))
        return rivals

    def _excludes(self, name: str) -> bool:
        """Whether nobody may hold a lock of that name beside this one."""
        if self._path.name == PLAN_LOCK or name == self._path.name:
            return name == self._path.name
        other = PART_LOCK_NAME.fullmatch(name)
        if name == PLAN_LOCK:  # whose owner has a lock of its part too; here only what a killed one left
            return self._part is None
        return name == LOCK or (other is not None and (self._part is None or int(other[1]) != self._part.count))

    def _make_record(self) -> bytes:
        record = {
            "host": socket.gethostname(),
            "processes": read_process_space(),
            "pid": os.getpid(),
            "began": read_process_start(os.getpid()),
            "owner": self._owner,
            "count": self._count,
        }
        return json.dumps(record).encode()

    def _write(self) -> None:
        temporary = self._path.with_name(f"{self._path.name}.{self._owner}{TEMPORARY}")
        temporary.write_bytes(self._make_record())
        temporary.replace(self._path)

    def _guard(self) -> AbstractContextManager[object]:
        # A thousand parts would wait for each other; without, one that stalled goes on to its next `check`.
        is_free = self._part or isinstance(self._path, ObjectPath)
        return nullcontext() if is_free else FileLock(check_guard(self._path.with_name(GUARD)))

    def _beat(self) -> None:
        while not self._over.wait(self._beat_s):
            self._count += 1
            try:
                with self._guard():
                    self.holding.check()
                    self._write()
            except (OSError, StoreError) as exc:
                _log.debug("%s: no heartbeat (%s)", self._path, exc)  # the next `check` says why


class ObjectLock(Lock):
    """A lock on an object store."""

    def __init__(self, folder: ObjectPath, name: str = LOCK, part: PartOf | None = None) -> None:
        super().__init__(folder, name, part)
        self._object = folder / name
        self._etag = ""  # of the record as this lock wrote it

    @property
    def _beat_s(self) -> float:
        return OBJECT_HEARTBEAT_S

    @property
    def _stale_s(self) -> float:
        return OBJECT_STALE_S

    def _try(self, watched: dict[str, tuple[dict[str, Any], float]]) -> list[tuple[dict[str, Any], bool]]:
        is_put = False
        while not is_put:
            rivals = self._find_rivals(watched)
            if rivals:
                return rivals
            is_put = self._put(self._find_void())
        rivals = self._find_rivals(watched)  # of two that put records at the same time each sees the other's
        if rivals:
            self._object.unlink(missing_ok=True)
        return rivals

    def _put(self, etag: str | None) -> bool:
        """Put the record in the place of a version, or of nothing; return whether it is there."""
        data = self._make_record()
        for number in reversed(range(PUTS)):
            try:
                written = self._object.put_if(data, etag)
            except StoreUnreachableError:  # obstore does not repeat a put under a condition that may have been done
                if self._is_there(data):
                    return True
                if not number:
                    raise
                continue
            self._etag = written or self._etag
            return written is not None or self._is_there(data)
        return False

    def _find_void(self) -> str | None:
        """Return the version of what stands in the place of a record that was stale; None where there is nothing."""
        try:
            data, etag = self._object.read_object(MAX_BYTES)
        except FileNotFoundError:
            return None
        return etag if _parse(data) is None else None

    def _is_there(self, data: bytes) -> bool:
        """Whether a put that was answered by an error, or refused when it was repeated, has written the record."""
        try:
            there, etag = self._object.read_object(MAX_BYTES)
        except FileNotFoundError:
            return False
        self._etag = etag if there == data else self._etag
        return there == data

    def _write(self) -> None:
        if self._put(self._etag):
            return
        record, self._etag = self._object.read_object(MAX_BYTES)  # an earlier heartbeat that was answered too late
        if json.loads(record).get("owner") != self._owner:
            raise StoreBusyError(self._object.parent, "another job has taken it over")

    def _remove_stale(self, path: Path, record: dict[str, Any]) -> bool:
        """Remove a record unless its owner, or who takes it over too, has put another in its place meanwhile."""
        there = path if isinstance(path, ObjectPath) else self._object
        try:
            data, etag = there.read_object(MAX_BYTES)
        except FileNotFoundError:
            return True
        if _parse(data) != record or there.put_if(b"{}", etag) is None:
            return False
        if there != self._object:
            there.unlink()  # of its own name this lock replaces it, under a condition
        return True


@contextmanager
def hold_lock(folder: Path, part: PartOf | None = None) -> Generator[Holding]:
    """Hold a folder's lock in a `with` block, or that of one part. Taking over another host's takes half a minute.

    Raises:  StoreBusyError where another job is at work there, StoreError where the folder cannot be written.
    """
    name = LOCK if part is None else PART_LOCK.format(part.index, part.count)
    with _hold(_make_lock(folder, name, part)) as holding:
        yield holding


@contextmanager
def hold_plan_lock(folder: Path) -> Generator[Holding]:
    """Hold the lock of what one process does for all parts of a job; wait for it. Raises: as `hold_lock`."""
    with _hold(_make_lock(folder, PLAN_LOCK)) as holding:
        yield holding


def _make_lock(folder: Path, name: str, part: PartOf | None = None) -> Lock:
    return ObjectLock(folder, name, part) if isinstance(folder, ObjectPath) else Lock(folder, name, part)


@contextmanager
def _hold(lock: Lock) -> Generator[Holding]:
    lock.acquire()
    try:
        yield lock.holding
    finally:
        lock.release()


def check_guard(path: Path) -> Path:
    """Return the path of a file to lock. Raises: OSError for a link, as its target would be emptied, and for a pipe."""
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise OSError(errno.EINVAL, "a link, or not a regular file", str(path))
    return path


def _read(path: Path) -> dict[str, Any] | None:
    """Read the record; return None where there is none, or the file is not ours. Raises: OSError."""
    try:
        return _parse(read_regular(path, MAX_BYTES))
    except FileNotFoundError:
        return None


def _parse(data: bytes) -> dict[str, Any] | None:
    """Return the record that a file holds; None for anything else."""
    try:
        record = json.loads(data)
    except (ValueError, RecursionError):
        return None
    texts, optional = ("host", "owner"), ("processes", "began")
    usable = (
        isinstance(record, dict)
        and all(isinstance(record.get(name), str) for name in texts)
        and all(isinstance(record.get(name), (str, NoneType)) for name in optional)
        and all(type(record.get(name)) is int for name in ("pid", "count"))
    )
    return record if usable else None


def _is_local(record: dict[str, Any]) -> bool:
    """Return whether the owner's pid is one of the process ids that this process sees."""
    return record["processes"] is not None and record["processes"] == read_process_space()


def _is_gone(record: dict[str, Any]) -> bool:
    """Return whether the owner is a process of this machine that no longer runs."""
    return _is_local(record) and read_process_start(record["pid"]) != record["began"]


def _name_owner(record: dict[str, Any]) -> str:
    return f"process {record['pid']} on {record['host']}"


def read_process_space() -> str | None:
    """Return what distinguishes one set of process ids from another: this boot and container; None if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"  # noqa: PTH115  the link leads to no file
    except OSError:
        return None


def read_process_start(pid: int) -> str | None:
    """Return when a process began, in ticks since boot, so that a reused pid does not match; None if unknown.

    A process that has ended but has not been waited for counts as gone.
    """
    try:
        state, *numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return None if state in ENDED_STATES else numbers[18]
