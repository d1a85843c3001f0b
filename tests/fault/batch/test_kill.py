"""kill -9 at every point where a file comes to be, and at random times: resumed, a run equals one that was not killed.

One process imports everything once and forks a child for each run, so that a kill costs half a second. Points are found
by wrapping what the operating system is asked for; nothing in the package knows of them. The same for an update of an
output whose images were added, changed and removed. `make soak` kills a thousand times at random instead of 12.
"""

import json
import os
import random
import shutil
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from kit import forks
from kit.inputs import draw_photos, number_names

IMAGES, SHARD_SIZE = 11, 4
GOOD = number_names(IMAGES)
ADDED = [f"{n:02}.new.png" for n in range(5)]  # a shard and a part of one
RANDOM_KILLS = int(os.environ.get("CLIP_SOAK_KILLS", "12"))  # half of them in runs, half in updates
TOLERANCE = 1e-5
DONE = 3  # the code of a run that came to its end, with a failure

Run = dict[str, Any]  # name, code of the killed run, parts that it left with their inodes, code of the resumed one


class Kills:
    """Runs and updates of one folder, each killed once and resumed."""

    def __init__(self, server: forks.Server, folder: Path, photos: Path, changed: Path, weights: Path) -> None:
        self.server, self.folder = server, folder
        self.inputs = {False: photos, True: changed}
        self.flags = ["-m", str(weights), "--shard-size", str(SHARD_SIZE), "--threads", "1", "--progress", "none"]
        self.runs: list[Run] = []

    def embed(self, out: Path, update: bool, *first: forks.Step, kill_after_s: float | None = None) -> int:
        flags = [*self.flags, *(["--update"] if update else [])]
        return self.server.embed(self.inputs[update], "-o", out, *flags, first=[*first], kill_after_s=kill_after_s).code

    def kill(self, name: str, update: bool, *first: forks.Step, kill_after_s: float | None = None) -> int:
        """Kill a run, resume it, and return the first one's code."""
        out = self.folder / f"{'update' if update else 'run'}-{name}"
        if update:
            shutil.copytree(self.folder / "whole", out)
        code = self.embed(out, update, *first, kill_after_s=kill_after_s)
        parts = {str(path.relative_to(out)): path.stat().st_ino for path in out.glob("embeddings/part-*.parquet")}
        self.runs.append({"name": out.name, "killed": code, "before": parts, "resumed": self.embed(out, update)})
        return code

    def kill_at_calls(self, update: bool) -> None:
        soak = RANDOM_KILLS > 100
        # A rename comes right behind a sync; so an update's are tried in the soak only.
        syncs = ("fsync",) if soak or not update else ()
        for call in (*syncs, "replace", "mkdir", "rename"):
            # After one is nearly before the next, so few of these are tried, and all in the soak.
            for after in (False, True) if soak or (call == "replace" and not update) else (False,):
                # Every other sync: of a file, then of its folder, which is tried again before the next rename.
                for number in range(1, 100, 2 if call == "fsync" and RANDOM_KILLS < 100 else 1):
                    name = f"{'after' if after else 'before'}-{call}-{number}"
                    if self.kill(name, update, ("kill_at_call", call, number, after)) == DONE:
                        break  # there was no such call any more

    def kill_while_saving(self) -> None:
        """Kill where pieces of a journal come to be: one part, saved after each batch of two."""
        self.flags += ["--save-seconds", "0", "--batch-size", "2", "--shard-size", "20", "--workers", "1"]
        assert self.embed(self.folder / "saved-whole", False) == DONE
        for call in ("replace", "mkdir"):
            for number in range(1, 100):
                if self.kill(f"saving-{call}-{number}", False, ("kill_at_call", call, number, False)) == DONE:
                    break

    def kill_everywhere(self) -> None:
        assert self.embed(self.folder / "whole", False) == DONE
        # A fresh run: there is nothing to be updated.
        assert self.embed(self.folder / "whole-changed", True) == DONE
        chance = random.Random(0)
        for update in (False, True):
            self.kill_at_calls(update)
            for number in range(1, 100):
                if self.kill(f"in-write-{number}", update, ("kill_in_write", number)) == DONE:
                    break
            started = time.monotonic()
            assert self.kill("not", update) == DONE
            took_s = (time.monotonic() - started) / 2
            for number in range(RANDOM_KILLS // 2):
                self.kill(f"random-{number}", update, kill_after_s=chance.random() * took_s)
        self.kill_while_saving()


@pytest.fixture(scope="module")
def outputs(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Run]]:
    """The folder of all runs, and what happened in each that was killed and resumed."""
    folder = tmp_path_factory.mktemp("kill")
    photos = draw_photos(folder / "photos", GOOD, height=40, broken=["05.broken.jpg"])
    changed = folder / "changed"
    shutil.copytree(photos, changed)
    draw_photos(changed, ["01.png"], first=60, height=40)  # in the first shard
    (changed / "02.png").unlink()
    draw_photos(changed, ADDED, first=70, height=40)
    (folder / "out").mkdir()
    with forks.Server("serve_embed") as server:
        kills = Kills(server, folder / "out", photos, changed, weights)
        kills.kill_everywhere()
    return folder / "out", kills.runs


def contents(out: Path) -> dict[str, list[dict[str, Any]]]:
    return {name: pq.read_table(out / name).to_pylist() for name in ("embeddings", "failures")}


def by_id(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    found = {row["id"]: {name: value for name, value in row.items() if name != "path"} for row in rows}
    assert len(found) == len(rows), "an id occurs twice"
    return found


def test_there_were_points_to_kill_at(outputs: tuple[Path, list[Run]]) -> None:
    names = [run["name"] for run in outputs[1]]
    for what in ("run", "update"):
        for kind, least in {"before-replace": 8, "before-rename": 1, "before-mkdir": 1}.items():
            assert sum(name.startswith(f"{what}-{kind}") for name in names) >= least, (what, kind)
        assert sum(name.startswith(f"{what}-in-write") for name in names) >= 8, what
        assert sum(run["killed"] == -9 and run["name"].startswith(what) for run in outputs[1]) >= 30, what
    assert sum(name.startswith("run-saving-replace") for name in names) >= 16
    assert sum(name.startswith("run-before-fsync") for name in names) >= 10
    assert sum(name.startswith("run-after-replace") for name in names) >= 10


def test_after_a_kill_and_a_resume_everything_is_there_once(outputs: tuple[Path, list[Run]]) -> None:
    folder, runs = outputs
    whole = contents(folder / "whole")
    assert [row["id"] for row in whole["embeddings"]] == GOOD
    assert [row["id"] for row in whole["failures"]] == ["05.broken.jpg"]
    for run in runs:
        if run["name"].startswith("run"):
            assert run["resumed"] == DONE, run
            out = folder / run["name"]
            expected = contents(folder / "saved-whole") if "saving" in run["name"] else whole
            assert contents(out) == expected, run["name"]
            counts = json.loads((out / "manifest.json").read_text())["counts"]
            assert counts == {"read": 12, "written": 11, "failed": 1, "ignored": {}}, run["name"]


def test_an_update_that_was_killed_ends_in_what_a_fresh_run_gives(outputs: tuple[Path, list[Run]]) -> None:
    folder, runs = outputs
    fresh = {name: by_id(rows) for name, rows in contents(folder / "whole-changed").items()}
    assert sorted(fresh["embeddings"]) == sorted([*ADDED, *GOOD[:2], *GOOD[3:]])
    for run in runs:
        if run["name"].startswith("update"):
            assert run["resumed"] == DONE, run
            out = folder / run["name"]
            found = {name: by_id(rows) for name, rows in contents(out).items()}
            for own_id, row in found["embeddings"].items():
                vector, expected = row.pop("embedding"), fresh["embeddings"][own_id]["embedding"]
                assert max(abs(a - b) for a, b in zip(vector, expected, strict=True)) < TOLERANCE, (run["name"], own_id)
            assert found["failures"] == fresh["failures"], run["name"]
            rows = {own_id: {**row, "embedding": 0} for own_id, row in fresh["embeddings"].items()}
            assert {own_id: {**row, "embedding": 0} for own_id, row in found["embeddings"].items()} == rows, run["name"]
            counts = json.loads((out / "manifest.json").read_text())["counts"]
            assert counts == {"read": 16, "written": 15, "failed": 1, "ignored": {}}, run["name"]


def test_shards_that_were_written_are_not_written_again(outputs: tuple[Path, list[Run]]) -> None:
    folder, runs = outputs
    kept = 0
    for run in runs:
        # What stood before an update was copied; only the first part has to be done again.
        of_update = run["name"].startswith("update")
        for part, inode in run["before"].items():
            if not (of_update and part.endswith("00000.parquet")):
                assert (folder / run["name"] / part).stat().st_ino == inode, (run["name"], part)
                kept += 1
    assert kept > 80


def test_nothing_of_a_killed_process_is_left(outputs: tuple[Path, list[Run]]) -> None:
    folder, runs = outputs
    for run in runs:
        name = "saved-whole" if "saving" in run["name"] else "whole"
        whole = folder / ("update-not" if run["name"].startswith("update") else name)
        left = {str(path.relative_to(folder / run["name"])) for path in (folder / run["name"]).rglob("*")}
        expected = {str(path.relative_to(whole)) for path in whole.rglob("*")}
        assert left == expected, run["name"]
