"""A disk that is full, read-only, broken or gone: a line says so, no file is half, and the run can be resumed.

Runs are processes that tests/kit/forks.py forks. Limits and calls that fail work on every system; where it lets a
process mount disks that nobody else sees, some are really full or read-only too.
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
from kit import forks
from kit.inputs import draw_photos, number_names
from kit.jobs import embed_job

import clip
from clip.errors import StoreError

IMAGES, SHARD_SIZE = 7, 4
GOOD = number_names(IMAGES)
COUNTS = {"read": IMAGES + 1, "written": IMAGES, "failed": 1, "ignored": {}}
FLAGS = ["--shard-size", str(SHARD_SIZE), "--threads", "1", "--progress", "none"]


class Job(NamedTuple):
    server: forks.Server
    photos: Path
    weights: Path

    def run(self, out: Path, *first: forks.Step) -> forks.Ended:
        """A run after these steps."""
        return self.server.embed(self.photos, "-o", out, "-m", self.weights, *FLAGS, first=[*first])

    def seen(self, out: Path) -> Path:
        """Where this process finds what a run wrote, on whichever disk."""
        return self.server.root / out.relative_to("/")


class Found(NamedTuple):
    """What is in an output."""

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
    return draw_photos(folder / "photos", GOOD, height=40, broken=["01.broken.jpg"])


@pytest.fixture(scope="module")
def job(photos: Path, weights: Path) -> Iterator[Job]:
    """What one of its processes mounts the others see, and nobody else."""
    with forks.Server("serve_embed", *MOUNTING) as server:
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


def assert_says(ended: forks.Ended, out: Path, number: int, verb: str = "written") -> None:
    """It failed, with a line that names a path in the output and the reason, and maybe one of what is kept."""
    assert ended.code == 1, ended
    line, *kept = ended.said.splitlines()
    assert [" images are kept; " in each for each in kept] in ([], [True]), ended
    assert re.match(rf"clip: {re.escape(str(out))}(/\S+)?: ", line), ended
    assert re.search(rf": cannot be {verb} \((\[Errno {number}\] )?{os.strerror(number)}", line), ended


def parts(out: Path) -> dict[str, int]:
    """The shards that are done, and which files they are."""
    return {path.name: path.stat().st_ino for path in out.glob("embeddings/part-*.parquet")}


def assert_nothing_is_half(out: Path) -> None:
    """Whatever has a final name is whole, a shard that is done has its failures, and no part is in work."""
    assert [*out.glob("*/.*")] == []
    for path in [*out.rglob("part-*.parquet"), *out.rglob("shard-*.parquet")]:
        pq.read_table(path)
    for path in out.rglob("[!.]*.json"):
        json.loads(path.read_bytes())
    for name in parts(out):
        assert (out / "failures" / name).exists(), name


def assert_resumes(job: Job, out: Path, whole: Found, *first: forks.Step) -> None:
    """The same command again gives what an undisturbed run gives, and does nothing twice."""
    seen = job.seen(out)
    before = parts(seen)
    ended = job.run(out, *first)
    assert ended.code == 3, ended
    assert found(seen) == whole
    assert {name: parts(seen)[name] for name in before} == before


ROOMS = ["bytes of a file", *(["pages of a disk", "files on a disk"] if MOUNTING else [])]


@pytest.mark.parametrize("room", ROOMS)
def test_a_run_without_room_is_resumed_when_there_is_some(job: Job, folder: Path, whole: Found, room: str) -> None:
    """Room for a little more each time, until all fits."""
    kept = set[int]()
    for level in range(1, 100):
        disk = folder / f"{level} {room}"
        out = disk / "out"
        options = f"size={4 * level}k,nr_inodes=1000" if room == "pages of a disk" else f"size=1m,nr_inodes={level + 1}"
        full: list[forks.Step] = [("mount", disk, options)]
        still: list[forks.Step] = []
        more: list[forks.Step] = [("remount", disk, "size=1m,nr_inodes=1000")]
        error = errno.ENOSPC
        if room == "bytes of a file":
            full = still = [("limit_files", 200 * (level - 1))]
            more, error = [], errno.EFBIG
        ended = job.run(out, *full)
        if ended.code == 3:
            break
        assert_says(ended, out, error)
        assert_nothing_is_half(job.seen(out))
        before = parts(job.seen(out))
        assert_says(job.run(out, *still), out, error)
        assert_nothing_is_half(job.seen(out))
        assert parts(job.seen(out)) == before
        kept.add(len(before))
        assert_resumes(job, out, whole, *more)
    assert level > 9
    assert kept >= ({0} if room == "bytes of a file" else {0, 1})  # a listing's file is larger than a part


# How often a run calls them at least; each time is one after which they fail.
CALLS = {"fsync": 18, "replace": 10, "rename": 1, "mkdir": 6, "open": 10, "create": 10, "write": 10}


@pytest.mark.parametrize("call", CALLS)
def test_a_run_on_a_disk_that_breaks_is_resumed_when_it_is_repaired(
    job: Job, folder: Path, whole: Found, call: str
) -> None:
    for number in range(1, 100):
        out = folder / f"{call} {number}"
        ended = job.run(out, ("fail_calls", out, [call], number, errno.EIO))
        if ended.code == 3:
            break  # there was no such call any more
        assert_says(ended, out, errno.EIO)
        assert_nothing_is_half(out)
        assert_resumes(job, out, whole)
    assert number > CALLS[call]
    assert found(out) == whole


def test_an_output_that_is_removed_under_the_job_fails_it(job: Job, folder: Path, whole: Found) -> None:
    """At each image, among them the first and the last of a shard."""
    for moment in range(1, COUNTS["read"] + 1):
        out = folder / f"removed at {moment}"
        ended = job.run(out, ("at", moment, "remove", out))
        assert_says(ended, out, errno.ENOENT, "(?:written|read)")  # the listing is read for each shard
        assert not out.exists()
        assert_resumes(job, out, whole)


READ_ONLY = ["calls", *(["mount"] if MOUNTING else [])]


@pytest.mark.parametrize("by", READ_ONLY)
def test_a_read_only_output_fails_a_run_with_something_to_write_and_stays_as_it_is(
    job: Job, folder: Path, whole: Found, by: str
) -> None:
    disk = folder / f"read-only by {by}"
    out = disk / "out"
    empty: forks.Step = ("mount", disk, "ro")
    again: forks.Step = ("remount", disk, "ro")
    writable: list[forks.Step] = [("remount", disk, "rw")]
    if by == "calls":
        disk.mkdir()
        empty = again = ("fail_calls", out, list(CALLS), 0, errno.EROFS)
        writable = []
    assert_says(job.run(out, empty), out, errno.EROFS)
    assert not job.seen(out).exists()
    assert_resumes(job, out, whole, *writable)
    assert job.run(out, again).said.startswith("nothing to do: ")
    assert_resumes(job, out, whole, *writable)


@pytest.mark.parametrize("by", READ_ONLY)
def test_an_output_that_becomes_read_only_under_the_job_fails_it(job: Job, folder: Path, whole: Found, by: str) -> None:
    """As the system does it with a disk on which it finds an error."""
    # A failure counts at once, and vectors when there are some: here at the end of a shard, as that is one batch.
    for moment, done in ((1, 0), (SHARD_SIZE, 1), (SHARD_SIZE + 1, 2), (COUNTS["read"], 2)):
        disk = folder / f"read-only by {by} at {moment}"
        out = disk / "out"
        if by == "mount":
            ended = job.run(out, ("mount", disk, "size=1m"), ("at", moment, "remount", disk, "ro"))
        else:
            refused: forks.Step = ("fail_calls", out, [*CALLS, "unlink"], 10**9, errno.EROFS)
            ended = job.run(out, refused, ("at", moment, "fail_from_now_on"))
        assert ended.code == 1, ended
        line, *kept = ended.said.splitlines()
        assert [" images are kept; " in each for each in kept] in ([], [True]), ended
        assert str(out) in line
        assert os.strerror(errno.EROFS) in line
        for left in job.seen(out).glob("*/.*"):  # nothing can be removed from such a disk
            assert left.name.endswith(".tmp")
        assert len(parts(job.seen(out))) == done
        assert_resumes(job, out, whole, *([("remount", disk, "rw")] if by == "mount" else []))
        assert_nothing_is_half(job.seen(out))


def test_the_error_is_one_of_ours(photos: Path, weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    job = embed_job(source=photos, output=out, model=str(weights), threads=1)
    with pytest.raises(StoreError, match=rf"{out}/\S+: cannot be written \({os.strerror(errno.ENOENT)}\)"):
        clip.embed(job, lambda _: shutil.rmtree(out, ignore_errors=True))
    assert clip.embed(job).written == IMAGES


def test_an_image_on_a_disk_that_cannot_be_read_is_a_failure_row(job: Job, weights: Path, tmp_path: Path) -> None:
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
