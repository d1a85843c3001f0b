"""kill -9 at every point where a file comes to be, and at random times: resumed, a run equals one that was not killed.

One process imports everything once and forks a child for each run, so that a kill costs half a second. Points are found
by wrapping what the operating system is asked for; nothing in the package knows of them.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import checkpoints
import formula
import pyarrow.parquet as pq
import pytest

PICTURES, SHARD_SIZE = 11, 4
GOOD = [f"{n:02}.png" for n in range(PICTURES)]
RANDOM_KILLS = 24
LIMIT_S = 300

RUNS = """
import json, os, random, signal, sys, time, warnings
import clip
from clip import pipeline  # all modules, before the first fork
from pathlib import Path

photos, weights, folder, shard_size, random_kills = sys.argv[1:]
Path(folder).mkdir(exist_ok=True)

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def arm(name, number, after):
    original, calls = getattr(os, name), [0]
    def wrapped(*args, **kwargs):
        calls[0] += 1
        if calls[0] == number and not after:
            die()
        result = original(*args, **kwargs)
        if calls[0] == number:
            die()
        return result
    setattr(os, name, wrapped)

def arm_write(number):
    import pyarrow.parquet as pq
    original, calls = pq.write_table, [0]
    def half(table, file, **options):
        calls[0] += 1
        if calls[0] == number:
            file.write(b"PAR1 and then")
            file.flush()
            die()
        original(table, file, **options)
    pq.write_table = half

def run(out, prepare=None, delay=None):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            if prepare:
                prepare()
            job = clip.EmbedJob(source=photos, output=out, model=weights, shard_size=int(shard_size), threads=1)
            clip.embed(job)
            code = 0
        finally:
            os._exit(code)
    if delay is not None:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def parts(out):
    return {str(path.relative_to(out)): path.stat().st_ino for path in Path(out).glob("embeddings/part-*.parquet")}

def tell(name, out, killed):
    before = parts(out)
    print(json.dumps({"name": name, "killed": killed, "before": before, "resumed": run(out)}), flush=True)

started = time.monotonic()
assert run(folder + "/whole") == 0
took = time.monotonic() - started
for call in ("fsync", "replace", "mkdir", "rename"):
    for after in (False, True):
        for number in range(1, 100):
            name = f"{'after' if after else 'before'}-{call}-{number}"
            killed = run(f"{folder}/{name}", lambda: arm(call, number, after))
            if killed == 0:
                break  # there was no such call any more
            tell(name, f"{folder}/{name}", killed)
for number in range(1, 100):
    name = f"in-write-{number}"
    killed = run(f"{folder}/{name}", lambda: arm_write(number))
    if killed == 0:
        break
    tell(name, f"{folder}/{name}", killed)
chance = random.Random(0)
for number in range(int(random_kills)):
    name = f"random-{number}"
    killed = run(f"{folder}/{name}", delay=chance.random() * took)
    tell(name, f"{folder}/{name}", killed)
"""


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[dict[str, Any]]]]:
    """The folder of all runs, and what was told of each that was killed and resumed."""
    folder = tmp_path_factory.mktemp("kill")
    photos = folder / "photos"
    photos.mkdir()
    for n, name in enumerate(GOOD):
        formula.picture(n, 40, 40).save(photos / name)
    (photos / "05.broken.jpg").write_bytes(b"no picture")
    weights = checkpoints.write(folder, texts=False)
    arguments = [str(part) for part in (photos, weights, folder / "out", SHARD_SIZE, RANDOM_KILLS)]
    ran = subprocess.run(
        [sys.executable, "-c", RUNS, *arguments], stdout=subprocess.PIPE, text=True, check=True, timeout=LIMIT_S
    )
    yield folder / "out", [json.loads(line) for line in ran.stdout.splitlines()]


def contents(out: Path) -> dict[str, list[dict[str, Any]]]:
    return {name: pq.read_table(out / name).to_pylist() for name in ("embeddings", "failures")}


def test_there_were_points_to_kill_at(outputs: tuple[Path, list[dict[str, Any]]]) -> None:
    names = [told["name"] for told in outputs[1]]
    for kind, least in {"before-fsync": 15, "after-fsync": 15, "before-replace": 8, "after-replace": 8}.items():
        assert sum(name.startswith(kind) for name in names) >= least, kind
    assert sum(name.startswith("in-write") for name in names) >= 8
    assert sum(told["killed"] == -9 for told in outputs[1]) >= 60


def test_after_a_kill_and_a_resume_everything_is_there_once(outputs: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, runs = outputs
    whole = contents(folder / "whole")
    assert [row["id"] for row in whole["embeddings"]] == GOOD
    assert [row["id"] for row in whole["failures"]] == ["05.broken.jpg"]
    for told in runs:
        assert told["resumed"] == 0, told
        out = folder / told["name"]
        assert contents(out) == whole, told["name"]
        counts = json.loads((out / "manifest.json").read_text())["counts"]
        assert counts == {"read": 12, "written": 11, "failed": 1, "ignored": {}}, told["name"]


def test_shards_that_were_written_are_not_written_again(outputs: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, runs = outputs
    kept = 0
    for told in runs:
        for part, inode in told["before"].items():
            assert (folder / told["name"] / part).stat().st_ino == inode, (told["name"], part)
            kept += 1
    assert kept > 40


def test_nothing_of_a_killed_process_is_left(outputs: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, runs = outputs
    for told in runs:
        left = {str(path.relative_to(folder / told["name"])) for path in (folder / told["name"]).rglob("*")}
        expected = {str(path.relative_to(folder / "whole")) for path in (folder / "whole").rglob("*")}
        assert left == expected, told["name"]
