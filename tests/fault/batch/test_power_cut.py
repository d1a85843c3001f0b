"""The disk at a power cut, and calls of the system that fail: what is under a final name is whole, and a rerun ends it.

A power cut: OUT is on an ext4 of its own in a file; at random moments the run is stopped, the file is copied, which is
the disk as it is then without what only memory holds, and the copy is mounted elsewhere. Failing calls: strace has the
n-th rename, sync or write fail, or kill the process, for every n until a run passes untouched.

Only `make soak` runs them, as they take minutes: fifty moments, and each call. Where it may not mount, or there is no
strace, they say so.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kit.inputs import draw_photos
from kit.outputs import read_rows_by_id
from kit.programs import environment

from clip.batch.verify import verify
from clip.jobs.verify import VerifyJob

MOMENTS = int(os.environ.get("CLIP_SOAK_POWER", "0"))  # and as many calls, one after another, or all where it is 50
ALL = 50
IMAGES = 300
DISK_MB = 48
STOP_S = 60.0
CALLS = "rename,renameat2,fsync,write"
# Of a run that was cut off, and of no damage.
UNFINISHED = ("parts are not there", "the run is not finished", "holds no complete listing")

pytestmark = pytest.mark.skipif(not MOMENTS, reason="takes minutes: make soak runs it")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_photos(tmp_path_factory.mktemp("photos"), [f"{n:03}.png" for n in range(IMAGES)])


def command(photos: Path, out: Path, *flags: str) -> list[str]:
    options = ["-m", "sketch", "--shard-size", "20", "--batch-size", "5", "--save-seconds", "0", "--progress", "none"]
    return [sys.executable, "-m", "clip", "embed", str(photos), "-o", str(out), "--threads", "1", *options, *flags]


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[Path, str], Path]]:
    """Mount an ext4 in a file, which is made if it is not there. Skips where that is not allowed."""
    if os.name == "nt" or os.geteuid() != 0 or not shutil.which("mkfs.ext4"):
        pytest.skip("needs root and mkfs.ext4 to mount a disk of its own")
    places: list[Path] = []

    def mount(image: Path, name: str) -> Path:
        if not image.exists():
            image.write_bytes(b"")
            os.truncate(image, DISK_MB * 2**20)
            subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
        place = tmp_path / name
        place.mkdir()
        # The journal is written by syncs alone, so that a copy is of one moment.
        done = subprocess.run(["mount", "-o", "loop,commit=600", image, place], capture_output=True, check=False)
        if done.returncode:
            pytest.skip(f"loop devices cannot be mounted here: {done.stderr!r}")
        places.append(place)
        return place

    yield mount
    for place in places:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Stop a process, and wait until no thread of it is in a call any more."""
    process.send_signal(signal.SIGSTOP)
    deadline = time.monotonic() + STOP_S
    while process.poll() is None:
        tasks = Path(f"/proc/{process.pid}/task").glob("*/stat")
        if all(task.read_text().rpartition(")")[2].split()[0] == "T" for task in tasks):
            return
        assert time.monotonic() < deadline
        time.sleep(0.001)


def run(words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, env=environment(), capture_output=True, text=True, check=False)


def find_damage(out: Path) -> list[str]:
    """What verify finds, but what an unfinished run lacks."""
    wrong = [str(one) for one in verify(VerifyJob(output=out)).problems]
    return [one for one in wrong if not any(words in one for words in UNFINISHED)]


def check_and_finish(photos: Path, out: Path) -> None:
    """Nothing in an output is damaged, and the same command ends its run."""
    if (out / "manifest.json").exists():
        assert find_damage(out) == []
    done = run(command(photos, out))
    assert done.returncode == 0, done.stderr
    assert verify(VerifyJob(output=out)).problems == ()
    assert len(read_rows_by_id(out)) == IMAGES
    left = {path.name for path in out.rglob("*") if path.name.endswith(".tmp") or path.name == "_journal"}
    assert left == set()


def test_a_power_cut_leaves_whole_files_and_the_next_run_ends_it(
    mounted: Callable[[Path, str], Path], photos: Path, tmp_path: Path
) -> None:
    image = tmp_path / "disk.img"
    disk = mounted(image, "disk")
    copies: list[Path] = []
    chance = random.Random(0)
    process = subprocess.Popen(command(photos, disk / "out"), env=environment(), stderr=subprocess.DEVNULL)
    try:
        while not (disk / "out/manifest.json").exists():
            assert process.poll() is None
            time.sleep(0.001)
        while process.poll() is None and len(copies) < MOMENTS:
            time.sleep(chance.random() * 0.1)
            stop(process)
            copies.append(tmp_path / f"cut-{len(copies)}.img")
            shutil.copyfile(image, copies[-1])
            process.send_signal(signal.SIGCONT)
        assert process.wait() == 0
    finally:
        process.kill()
        process.wait()
    for number, copy in enumerate(copies):
        check_and_finish(photos, mounted(copy, f"after-{number}") / "out")
    assert len(copies) == MOMENTS


@pytest.mark.parametrize("how", ["error=EIO", "error=ENOSPC", "signal=KILL"])
def test_whichever_call_fails_the_next_run_ends_it(how: str, tmp_path: Path) -> None:
    if not shutil.which("strace"):
        pytest.skip("needs strace")
    few = draw_photos(tmp_path / "few", [f"{n}.png" for n in range(6)])
    # The first calls are those of the interpreter; a failed one of these ends it before it begins.
    numbers = range(1, 10_000) if MOMENTS >= ALL else random.Random(how).sample(range(1, 150), MOMENTS)
    for number in numbers:
        out = tmp_path / f"out-{number}"
        inject = ["-e", f"trace={CALLS}", "-e", f"inject={CALLS}:{how}:when={number}"]
        trace = ["strace", "-f", "--seccomp-bpf", "-qq", "-o", os.devnull, *inject]
        done = run([*trace, *command(few, out, "--shard-size", "2")])
        if "ptrace" in done.stderr:
            pytest.skip(f"strace may not trace here: {done.stderr}")
        if (out / "manifest.json").exists():
            assert find_damage(out) == [], number
        again = run(command(few, out, "--shard-size", "2"))
        assert again.returncode == 0, again.stderr
        assert verify(VerifyJob(output=out)).problems == ()
        assert len(read_rows_by_id(out)) == len(list(few.iterdir()))
        if done.returncode == 0 and how == "signal=KILL":
            break  # there was no such call any more
        shutil.rmtree(out)


def test_a_part_of_0_bytes_counts_as_absent(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(command(photos, out)).returncode == 0
    (out / "embeddings/part-00003.parquet").write_bytes(b"")
    assert [one.where for one in verify(VerifyJob(output=out)).problems if "parts are not there" in one.what]
    check_and_finish(photos, out)
