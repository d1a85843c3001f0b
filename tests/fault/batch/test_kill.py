"""kill -9 at every point where a file comes to be, and at random times: resumed, a run equals one that was not killed.

One process imports everything once and forks a child for each run, so that a kill costs half a second. Points are found
by wrapping what the operating system is asked for; nothing in the package knows of them. The same for an update of an
output whose images were added, changed and removed. `make soak` kills a thousand times at random instead of 12.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from kit import ROOT, checkpoints, formula

PICTURES, SHARD_SIZE = 11, 4
GOOD = [f"{n:02}.png" for n in range(PICTURES)]
ADDED = [f"{n:02}.new.png" for n in range(5)]  # a shard and a part of one
RANDOM_KILLS = int(os.environ.get("CLIP_SOAK_KILLS", "12"))  # half of them in runs, half in updates
TOLERANCE = 1e-5
LIMIT_S = 10 * (300 + 5 * RANDOM_KILLS)  # ten times what they take

RUNS = """
import json, os, random, shutil, signal, sys, time, warnings
import clip
from clip.batch import embed  # all modules, before the first fork
from kit.jobs import embed_job
from pathlib import Path

photos, changed, weights, folder, shard_size, random_kills = sys.argv[1:]
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
    original, calls = pq.ParquetWriter.write_table, [0]
    def half(self, table, **options):
        calls[0] += 1
        original(self, table, **options)
        if calls[0] == number:
            die()
    pq.ParquetWriter.write_table = half

def run(out, prepare=None, delay=None, update=False):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            if prepare:
                prepare()
            source = changed if update else photos
            clip.embed(embed_job(
                source=source, output=out, model=weights, shard_size=int(shard_size), threads=1, update=update
            ))
            code = 0
        finally:
            os._exit(code)
    if delay is not None:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def parts(out):
    return {str(path.relative_to(out)): path.stat().st_ino for path in Path(out).glob("embeddings/part-*.parquet")}

def killed_at(name, update, **how):
    out = f"{folder}/{'update' if update else 'run'}-{name}"
    if update:
        shutil.copytree(folder + "/whole", out)
    killed = run(out, update=update, **how)
    before = parts(out)
    told = {"name": os.path.basename(out), "killed": killed, "before": before, "resumed": run(out, update=update)}
    print(json.dumps(told), flush=True)
    return killed

assert run(folder + "/whole") == 0
assert run(folder + "/whole-changed", update=True) == 0  # a fresh run: there is nothing to be updated
chance = random.Random(0)
for update in (False, True):
    # A rename comes right behind a sync; so an update's are tried in the soak only.
    syncs = ("fsync",) if int(random_kills) > 100 or not update else ()
    for call in (*syncs, "replace", "mkdir", "rename"):
        # After one is nearly before the next, so few of these are tried, and all in the soak.
        for after in (False, True) if int(random_kills) > 100 or (call == "replace" and not update) else (False,):
            # Every other sync: of a file, then of its folder, which is tried again before the next rename.
            for number in range(1, 100, 2 if call == "fsync" and int(random_kills) < 100 else 1):
                name = f"{'after' if after else 'before'}-{call}-{number}"
                if killed_at(name, update, prepare=lambda: arm(call, number, after)) == 0:
                    break  # there was no such call any more
    for number in range(1, 100):
        if killed_at(f"in-write-{number}", update, prepare=lambda: arm_write(number)) == 0:
            break
    started = time.monotonic()
    assert killed_at("not", update) == 0
    took = (time.monotonic() - started) / 2
    for number in range(int(random_kills) // 2):
        killed_at(f"random-{number}", update, delay=chance.random() * took)
"""


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[dict[str, Any]]]]:
    """The folder of all runs, and what was told of each that was killed and resumed."""
    folder = tmp_path_factory.mktemp("kill")
    photos = folder / "photos"
    photos.mkdir()
    for n, name in enumerate(GOOD):
        formula.picture(n, 40, 40).save(photos / name)
    (photos / "05.broken.jpg").write_bytes(b"no image")
    shutil.copytree(photos, folder / "changed")
    formula.picture(60, 40, 40).save(folder / "changed/01.png")  # in the first shard
    (folder / "changed/02.png").unlink()
    for n, name in enumerate(ADDED):
        formula.picture(70 + n, 40, 40).save(folder / "changed" / name)
    weights = checkpoints.write(folder, texts=False)
    arguments = [str(part) for part in (photos, folder / "changed", weights, folder / "out", SHARD_SIZE, RANDOM_KILLS)]
    paths = os.pathsep.join([str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])])
    ran = subprocess.run(
        [sys.executable, "-c", RUNS, *arguments],
        env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=LIMIT_S,
    )
    yield folder / "out", [json.loads(line) for line in ran.stdout.splitlines()]


def contents(out: Path) -> dict[str, list[dict[str, Any]]]:
    return {name: pq.read_table(out / name).to_pylist() for name in ("embeddings", "failures")}


def by_id(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    found = {row["id"]: {name: value for name, value in row.items() if name != "path"} for row in rows}
    assert len(found) == len(rows), "an id stands twice"
    return found


def test_there_were_points_to_kill_at(outputs: tuple[Path, list[dict[str, Any]]]) -> None:
    names = [told["name"] for told in outputs[1]]
    for what in ("run", "update"):
        for kind, least in {"before-replace": 8, "before-rename": 1, "before-mkdir": 1}.items():
            assert sum(name.startswith(f"{what}-{kind}") for name in names) >= least, (what, kind)
        assert sum(name.startswith(f"{what}-in-write") for name in names) >= 8, what
        assert sum(told["killed"] == -9 and told["name"].startswith(what) for told in outputs[1]) >= 30, what
    assert sum(name.startswith("run-before-fsync") for name in names) >= 10
    assert sum(name.startswith("run-after-replace") for name in names) >= 10


def test_after_a_kill_and_a_resume_everything_is_there_once(outputs: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, runs = outputs
    whole = contents(folder / "whole")
    assert [row["id"] for row in whole["embeddings"]] == GOOD
    assert [row["id"] for row in whole["failures"]] == ["05.broken.jpg"]
    for told in runs:
        if told["name"].startswith("run"):
            assert told["resumed"] == 0, told
            out = folder / told["name"]
            assert contents(out) == whole, told["name"]
            counts = json.loads((out / "manifest.json").read_text())["counts"]
            assert counts == {"read": 12, "written": 11, "failed": 1, "ignored": {}}, told["name"]


def test_an_update_that_was_killed_ends_in_what_a_fresh_run_gives(outputs: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, runs = outputs
    fresh = {name: by_id(rows) for name, rows in contents(folder / "whole-changed").items()}
    assert sorted(fresh["embeddings"]) == sorted([*ADDED, *GOOD[:2], *GOOD[3:]])
    for told in runs:
        if told["name"].startswith("update"):
            assert told["resumed"] == 0, told
            out = folder / told["name"]
            found = {name: by_id(rows) for name, rows in contents(out).items()}
            for own_id, row in found["embeddings"].items():
                vector, expected = row.pop("embedding"), fresh["embeddings"][own_id]["embedding"]
                assert max(abs(a - b) for a, b in zip(vector, expected, strict=True)) < TOLERANCE, (
                    told["name"],
                    own_id,
                )
            assert found["failures"] == fresh["failures"], told["name"]
            rows = {own_id: {**row, "embedding": 0} for own_id, row in fresh["embeddings"].items()}
            assert {own_id: {**row, "embedding": 0} for own_id, row in found["embeddings"].items()} == rows, told[
                "name"
            ]
            counts = json.loads((out / "manifest.json").read_text())["counts"]
            assert counts == {"read": 16, "written": 15, "failed": 1, "ignored": {}}, told["name"]


def test_shards_that_were_written_are_not_written_again(outputs: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, runs = outputs
    kept = 0
    for told in runs:
        # What stood before an update was copied; only the first part has to be done again.
        of_update = told["name"].startswith("update")
        for part, inode in told["before"].items():
            if not (of_update and part.endswith("00000.parquet")):
                assert (folder / told["name"] / part).stat().st_ino == inode, (told["name"], part)
                kept += 1
    assert kept > 80


def test_nothing_of_a_killed_process_is_left(outputs: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, runs = outputs
    for told in runs:
        whole = folder / ("update-not" if told["name"].startswith("update") else "whole")
        left = {str(path.relative_to(folder / told["name"])) for path in (folder / told["name"]).rglob("*")}
        expected = {str(path.relative_to(whole)) for path in whole.rglob("*")}
        assert left == expected, told["name"]
