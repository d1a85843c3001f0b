"""A disk that is full, read-only, broken or gone: a line says so, nothing stands half, and the run can be gone on with.

Runs are processes that tests/forks.py forks. Limits and calls that fail work on every system; where it lets a process
mount disks that nobody else sees, some are really full or read-only too.
"""

import errno
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import pytest
from kit import checkpoints, forks, formula
from kit.jobs import embed_job

import clip
from clip.errors import StoreError

PICTURES, SHARD_SIZE = 7, 4
GOOD = [f"{n:02}.png" for n in range(PICTURES)]
COUNTS = {"read": PICTURES + 1, "written": PICTURES, "failed": 1, "ignored": {}}
FLAGS = ["--shard-size", str(SHARD_SIZE), "--threads", "1", "--progress", "none"]


class Job(NamedTuple):
    server: forks.Server
    photos: Path
    weights: Path

    def run(self, out: Path, script: str = "", **names: object) -> forks.Ended:
        """A run that executes a script first, in which the names have these values."""
        first = "".join(f"{name} = {value!r}\n" for name, value in names.items()) + script
        return self.server.embed(self.photos, "-o", out, "-m", self.weights, *FLAGS, first=first)

    def seen(self, out: Path) -> Path:
        """Where this process finds what a run wrote, on whichever disk."""
        return self.server.root / out.relative_to("/")


class Found(NamedTuple):
    """What stands in an output."""

    rows: list[dict[str, Any]]
    failures: list[dict[str, Any]]
    counts: dict[str, Any] | None
    files: list[str]


def found(out: Path) -> Found:
    rows, failures = (pq.read_table(out / name).to_pylist() for name in ("embeddings", "failures"))
    counts = json.loads((out / "manifest.json").read_text())["counts"]
    return Found(rows, failures, counts, sorted(str(path.relative_to(out)) for path in out.rglob("*")))


def mounting() -> list[str]:
    """A command under which another may mount what nobody else sees; empty where the system has none."""
    for wrapper in (["unshare", "--user", "--map-root-user", "--mount"], ["unshare", "--mount"]):
        mount = [*wrapper, "mount", "-t", "tmpfs", "clip", tempfile.gettempdir()]
        if shutil.which("unshare") and subprocess.run(mount, capture_output=True, check=False).returncode == 0:
            return wrapper
    return []


MOUNTING = mounting()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("disk")


@pytest.fixture(scope="module")
def photos(folder: Path) -> Path:
    """Two shards, a failure in the first."""
    photos = folder / "photos"
    photos.mkdir()
    for n, name in enumerate(GOOD):
        formula.picture(n, 40, 40).save(photos / name)
    (photos / "01.broken.jpg").write_bytes(b"no image")
    return photos


@pytest.fixture(scope="module")
def weights(folder: Path) -> Path:
    return checkpoints.write(folder, texts=False)


@pytest.fixture(scope="module")
def job(photos: Path, weights: Path) -> Iterator[Job]:
    """What one of its processes mounts the others see, and nobody else."""
    with forks.Server(*MOUNTING) as server:
        yield Job(server, photos, weights)


@pytest.fixture(scope="module")
def whole(job: Job, folder: Path) -> Found:
    """A run that nothing disturbed."""
    assert job.run(folder / "whole").code == 3
    whole = found(folder / "whole")
    assert [row["id"] for row in whole.rows] == GOOD
    assert [row["id"] for row in whole.failures] == ["01.broken.jpg"]
    assert whole.counts == COUNTS
    return whole


def assert_says(ended: forks.Ended, out: Path, number: int) -> None:
    """It failed, with a line that names a path in the output and the reason."""
    assert ended.code == 1, ended
    (line,) = ended.said.splitlines()
    assert re.match(rf"clip: {re.escape(str(out))}(/\S+)?: ", line), ended
    assert f": cannot be written ({os.strerror(number)})" in line, ended


def parts(out: Path) -> dict[str, int]:
    """The shards that are done, and which files they are."""
    return {path.name: path.stat().st_ino for path in out.glob("embeddings/part-*.parquet")}


def assert_nothing_is_half(out: Path) -> None:
    """Whatever stands under a final name is whole, a shard that is done has its failures, and no part is in work."""
    assert [*out.glob("*/.*")] == []
    for path in [*out.rglob("part-*.parquet"), *out.rglob("shard-*.parquet")]:
        pq.read_table(path)
    for path in out.rglob("[!.]*.json"):
        json.loads(path.read_bytes())
    for name in parts(out):
        assert (out / "failures" / name).exists(), name


def assert_goes_on(job: Job, out: Path, whole: Found, script: str = "", **names: object) -> None:
    """The same command again gives what an undisturbed run gives, and does nothing twice."""
    seen = job.seen(out)
    before = parts(seen)
    ended = job.run(out, script, **names)
    assert ended.code == 3, ended
    assert found(seen) == whole
    assert {name: parts(seen)[name] for name in before} == before


LIMIT = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, ROOM))
"""
MOUNT = """
import subprocess
subprocess.run(["mkdir", "-p", DISK], check=True)
subprocess.run(["mount", "-t", "tmpfs", "-o", OPTIONS, "clip", DISK], check=True)
"""
REMOUNT = """
import subprocess
subprocess.run(["mount", "-o", "remount," + OPTIONS, DISK], check=True)
"""
ROOMS = ["bytes of a file", *(["pages of a disk", "files on a disk"] if MOUNTING else [])]


@pytest.mark.parametrize("room", ROOMS)
def test_a_run_without_room_goes_on_when_there_is_some(job: Job, folder: Path, whole: Found, room: str) -> None:
    """Room for a little more each time, until all fits."""
    kept = set[int]()
    for level in range(1, 100):
        disk = folder / f"{level} {room}"
        out = disk / "out"
        full, still, more, error = MOUNT, "", REMOUNT, errno.ENOSPC
        options = f"size={4 * level}k,nr_inodes=1000" if room == "pages of a disk" else f"size=1m,nr_inodes={level + 1}"
        if room == "bytes of a file":
            full, still, more, error = LIMIT, LIMIT, "", errno.EFBIG
        names: dict[str, Any] = dict(DISK=str(disk), OPTIONS=options, ROOM=200 * (level - 1))
        ended = job.run(out, full, **names)
        if ended.code == 3:
            break
        assert_says(ended, out, error)
        assert_nothing_is_half(job.seen(out))
        before = parts(job.seen(out))
        assert_says(job.run(out, still, **names), out, error)
        assert_nothing_is_half(job.seen(out))
        assert parts(job.seen(out)) == before
        kept.add(len(before))
        assert_goes_on(job, out, whole, more, DISK=str(disk), OPTIONS="size=1m,nr_inodes=1000")
    assert level > 9
    assert kept >= ({0} if room == "bytes of a file" else {0, 1})  # a listing's file is larger than a part


BREAK = """
import io, os

calls = 0

def count(path):
    global calls
    path = os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else str(path)
    if path.startswith(OUT):
        calls += 1
        if calls >= NUMBER:
            raise OSError(ERROR, os.strerror(ERROR), path)

def arm(name):
    original = getattr(os, name)
    def wrapped(path, *args, **kwargs):
        count(path)
        return original(path, *args, **kwargs)
    setattr(os, name, wrapped)

class File(io.FileIO):
    def write(self, data):
        count(self.name)
        return super().write(data)

def open_to_write(path, mode="r", *args, **kwargs):
    if "w" not in mode or not str(path).startswith(OUT):
        return io_open(path, mode, *args, **kwargs)
    if "create" in CALLS:
        count(path)
    file = io.BufferedWriter(File(path, "w") if "write" in CALLS else io.FileIO(path, "w"))
    return file if "b" in mode else io.TextIOWrapper(file)

io_open, io.open = io.open, open_to_write
for name in set(CALLS) - {"create", "write"}:
    arm(name)
"""
# How often a run calls them at least; each time is one after which they fail.
CALLS = {"fsync": 18, "replace": 10, "rename": 1, "mkdir": 6, "open": 10, "create": 10, "write": 10}


@pytest.mark.parametrize("call", CALLS)
def test_a_run_on_a_disk_that_breaks_goes_on_when_it_is_repaired(
    job: Job, folder: Path, whole: Found, call: str
) -> None:
    for number in range(1, 100):
        out = folder / f"{call} {number}"
        ended = job.run(out, BREAK, OUT=str(out), CALLS=[call], NUMBER=number, ERROR=errno.EIO)
        if ended.code == 3:
            break  # there was no such call any more
        assert_says(ended, out, errno.EIO)
        assert_nothing_is_half(out)
        assert_goes_on(job, out, whole)
    assert number > CALLS[call]
    assert found(out) == whole


AT = """
from clip.batch import embed as module

embed = module.embed

def disturbed(job, progress):
    def told(now):
        if now.read == MOMENT:
            disturb()
        progress(now)
    return embed(job, told)

module.embed = disturbed
"""
REMOVE = """
import shutil

def disturb():
    shutil.rmtree(OUT)
"""


def test_an_output_that_is_removed_under_the_job_fails_it(job: Job, folder: Path, whole: Found) -> None:
    """At each image, among them the first and the last of a shard."""
    for moment in range(1, COUNTS["read"] + 1):
        out = folder / f"removed at {moment}"
        ended = job.run(out, AT + REMOVE, MOMENT=moment, OUT=str(out))
        assert_says(ended, out, errno.ENOENT)
        assert not out.exists()
        assert_goes_on(job, out, whole)


REFUSE = """
def disturb():
    global NUMBER
    NUMBER = 0
"""
MAKE_READ_ONLY = """
import subprocess

def disturb():
    subprocess.run(["mount", "-o", "remount,ro", DISK], check=True)
"""
READ_ONLY = ["calls", *(["mount"] if MOUNTING else [])]


@pytest.mark.parametrize("by", READ_ONLY)
def test_a_read_only_output_fails_the_run_and_stays_as_it_is(job: Job, folder: Path, whole: Found, by: str) -> None:
    disk = folder / f"read-only by {by}"
    out = disk / "out"
    names: dict[str, Any] = dict(DISK=str(disk), OUT=str(out), CALLS=list(CALLS), NUMBER=0, ERROR=errno.EROFS)
    if by == "calls":
        disk.mkdir()
    empty, again, writable = (MOUNT, REMOUNT, REMOUNT) if by == "mount" else (BREAK, BREAK, "")
    assert_says(job.run(out, empty, **names, OPTIONS="ro"), out, errno.EROFS)
    assert not job.seen(out).exists()
    assert_goes_on(job, out, whole, writable, **names, OPTIONS="rw")
    assert_says(job.run(out, again, **names, OPTIONS="ro"), out, errno.EROFS)
    assert_goes_on(job, out, whole, writable, **names, OPTIONS="rw")


@pytest.mark.parametrize("by", READ_ONLY)
def test_an_output_that_becomes_read_only_under_the_job_fails_it(job: Job, folder: Path, whole: Found, by: str) -> None:
    """As the system does it with a disk on which it finds an error."""
    for moment in (1, SHARD_SIZE, SHARD_SIZE + 1, COUNTS["read"]):
        disk = folder / f"read-only by {by} at {moment}"
        out = disk / "out"
        names: dict[str, Any] = dict(DISK=str(disk), OUT=str(out), MOMENT=moment)
        if by == "mount":
            ended = job.run(out, MOUNT + AT + MAKE_READ_ONLY, **names, OPTIONS="size=1m")
        else:
            refused: dict[str, Any] = dict(CALLS=[*CALLS, "unlink"], NUMBER=10**9, ERROR=errno.EROFS)
            ended = job.run(out, BREAK + AT + REFUSE, **names, **refused)
        assert ended.code == 1, ended
        assert ended.said.count("\n") == 1, ended.said
        line = ended.said
        assert str(out) in line
        assert os.strerror(errno.EROFS) in line
        for left in job.seen(out).glob("*/.*"):  # nothing can be removed from such a disk
            assert left.name.endswith(".tmp")
        assert len(parts(job.seen(out))) == (moment - 1) // SHARD_SIZE
        assert_goes_on(job, out, whole, REMOUNT if by == "mount" else "", DISK=str(disk), OPTIONS="rw")
        assert_nothing_is_half(job.seen(out))


def test_the_error_is_one_of_ours(photos: Path, weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    job = embed_job(source=photos, output=out, model=str(weights), threads=1)
    with pytest.raises(StoreError, match=rf"{out}/\S+: cannot be written \({os.strerror(errno.ENOENT)}\)"):
        clip.embed(job, lambda _: shutil.rmtree(out, ignore_errors=True))
    assert clip.embed(job).written == PICTURES


def test_a_picture_on_a_disk_that_cannot_be_read_is_a_failure_row(job: Job, weights: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    shutil.copytree(job.photos, photos)
    (photos / "03.png").unlink()
    (photos / "03.png").symlink_to("/proc/self/mem")  # a file whose first byte is one that nobody can read
    ended = Job(job.server, photos, weights).run(tmp_path / "out")
    assert ended.code == 3, ended
    out = found(tmp_path / "out")
    assert [row["id"] for row in out.rows] == [name for name in GOOD if name != "03.png"]
    failed = {row["id"]: (row["stage"], row["error"]) for row in out.failures}
    assert failed == {"03.png": ("read", "OSError"), "01.broken.jpg": ("open", "ImageError")}
    assert os.strerror(errno.EIO) in out.failures[1]["message"]
    assert out.counts == {"read": 8, "written": 6, "failed": 2, "ignored": {}}
