"""What a run finds in its output: listings, plans, parts and locks of others, of killed runs, of none, put right."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from kit import checkpoints
from kit.inputs import draw_photos, number_names
from kit.jobs import embed_job
from kit.outputs import read_vectors, write_part

import clip
from clip.atomic_files import atomic_write
from clip.batch import part_in_work as part_module
from clip.batch import planning
from clip.batch.decode import Decoding
from clip.batch.verify import verify
from clip.errors import InputError, StoreBusyError, StoreError, TooManyFailuresError
from clip.jobs.verify import VerifyJob
from clip.records import Failure, Item
from clip.sources.source import Source
from clip.store.lock import hold_lock, read_process_start
from clip.store.plan import Plan
from clip.store.writer import StoreWriter


class KilledError(BaseException):
    """What stands for a kill: nothing of ours catches it."""


def draw(folder: Path, count: int, first: int = 0, prefix: str = "") -> Path:
    return draw_photos(folder, [f"{prefix}{name}" for name in number_names(count)], first=first)


def run(source: Path, output: Path, weights: Path, **choices: Any) -> clip.EmbedReport:
    choices = {"threads": 1, "shard_size": 4} | choices
    return clip.embed(embed_job(source=source, output=output, model=str(weights), **choices))


def check_is_of(output: Path, source: Path, weights: Path) -> None:
    fresh = output.with_name(f"{output.name}-fresh")
    run(source, fresh, weights)
    found, expected = read_vectors(output), read_vectors(fresh)
    shutil.rmtree(fresh)
    assert found.keys() == expected.keys()
    assert all(np.abs(found[name] - expected[name]).max() < 1e-5 for name in found)
    assert verify(VerifyJob(output=output)).problems == ()


def killed(monkeypatch: pytest.MonkeyPatch, where: Any, name: str, call: Any) -> None:
    """Do something, and be killed where that function is called."""

    def kill(*_: Any, **__: Any) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(where, name, kill)
        with pytest.raises(KilledError):
            call()


def test_a_listing_of_another_folder_is_not_taken_for_this_ones(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = draw(tmp_path / "one", 8), draw(tmp_path / "other", 8, first=50)
    out = tmp_path / "out"
    killed(monkeypatch, StoreWriter, "begin", lambda: run(one, out, weights))
    run(other, out, weights)
    check_is_of(out, other, weights)
    with pytest.raises(StoreError, match="8 changed since"):
        run(one, out, weights)


def test_a_plan_survives_being_killed_twice_between_two_renames(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, out = draw(tmp_path / "photos", 11), tmp_path / "out"
    run(photos, out, weights)
    draw(photos, 1, first=60, prefix="more")
    run(photos, out, weights, update=True)
    (photos / "03.png").unlink()
    rename = Path.rename

    def kill(self: Path, target: Path) -> Path:
        if self.name in ("_plan.merged", "_plan.new"):
            raise KilledError
        return rename(self, target)

    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", kill)
            with pytest.raises(KilledError):
                run(photos, out, weights, update=True)
    run(photos, out, weights, update=True)
    check_is_of(out, photos, weights)


@pytest.mark.parametrize("where", ["begin", "adopt"])
def test_overwriting_that_was_killed_is_gone_on_with(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    one, other = draw(tmp_path / "one", 10), draw(tmp_path / "other", 11, first=50, prefix="x")
    out = tmp_path / "out"
    run(one, out, weights)
    owner = {"begin": StoreWriter, "adopt": Plan}[where]
    killed(monkeypatch, owner, where, lambda: run(other, out, weights, overwrite=True, shard_size=6))
    run(other, out, weights, overwrite=where == "begin", shard_size=6)
    check_is_of(out, other, weights)
    sizes = [pq.read_metadata(path).num_rows for path in sorted((out / "embeddings").iterdir())]
    assert sizes == [6, 5], "the new run's shards, in its order"


def test_parts_that_no_plan_has_any_more_go(weights: Path, tmp_path: Path) -> None:
    photos, out = draw(tmp_path / "photos", 11), tmp_path / "out"
    run(photos, out, weights)
    draw(photos, 1, first=60, prefix="more")
    run(photos, out, weights, update=True)
    assert len(list((out / "embeddings").iterdir())) == 4
    shutil.rmtree(out / "_plan")
    run(photos, out, weights)
    assert len(list((out / "embeddings").iterdir())) == len(list((out / "failures").iterdir())) == 3
    check_is_of(out, photos, weights)


@pytest.mark.parametrize("folder", ["embeddings", "failures"])
@pytest.mark.parametrize("update", [False, True])
def test_a_shard_is_done_when_both_its_parts_are_of_its_listing(
    weights: Path, tmp_path: Path, folder: str, update: bool
) -> None:
    photos, out = draw(tmp_path / "photos", 8), tmp_path / "out"
    run(photos, out, weights)
    (out / folder / "part-00000.parquet").unlink()
    assert run(photos, out, weights, update=update).resumed == 4
    other = pq.read_table(out / folder / "part-00001.parquet").replace_schema_metadata({"clip.mark": "of another"})
    write_part(out / folder / "part-00000.parquet", other)
    assert run(photos, out, weights, update=update).resumed == 4
    check_is_of(out, photos, weights)


@pytest.mark.parametrize("folder", ["embeddings", "failures"])
@pytest.mark.parametrize("update", [False, True])
def test_a_finished_part_is_not_believed_by_its_footer(
    weights: Path, tmp_path: Path, folder: str, update: bool
) -> None:
    photos, out = draw(tmp_path / "photos", 8), tmp_path / "out"
    run(photos, out, weights)
    part = out / folder / "part-00001.parquet"
    whole = part.read_bytes()
    length = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    for place in range(4, length, 97):
        part.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(
            StoreError, match=rf"{folder}/part-00001\.parquet: cannot be read .* Remove it, and run the"
        ):
            run(photos, out, weights, update=update)
    part.unlink()
    assert run(photos, out, weights, update=update).resumed == 4
    check_is_of(out, photos, weights)
    assert verify(VerifyJob(output=out)).problems == ()


def test_what_was_read_is_counted_before_a_run_is_said_to_be_over(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = draw(tmp_path / "photos", 5)
    add = part_module.PartInWork.add
    monkeypatch.setattr(
        part_module.PartInWork, "add", lambda self, block: add(self, replace(block, outcomes=block.outcomes[:1]))
    )
    with pytest.raises(StoreError, match="holds 1 rows and 0 failures, expected 4 together, as many as were read"):
        run(photos, tmp_path / "out", weights)
    assert json.loads((tmp_path / "out/manifest.json").read_text())["counts"] is None


def test_a_run_that_is_done_again_is_not_over_meanwhile(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, out = draw(tmp_path / "photos", 8), tmp_path / "out"
    run(photos, out, weights)
    (out / "embeddings/part-00001.parquet").unlink()
    killed(monkeypatch, StoreWriter, "part", lambda: run(photos, out, weights))
    assert json.loads((out / "manifest.json").read_text())["counts"] is None


def test_two_writers_of_one_file_do_not_share_a_temporary_one(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "file") as first:
        first.write(b"first")
        with atomic_write(tmp_path / "file") as second:
            second.write(b"2")
    assert (tmp_path / "file").read_bytes() == b"first"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_a_lock_that_is_gone_is_lost(tmp_path: Path) -> None:
    with hold_lock(tmp_path) as lock:
        lock.check()
        (tmp_path / ".lock").unlink()
        with pytest.raises(StoreBusyError, match="another job has taken it over"):
            lock.check()


def test_a_job_whose_lock_was_taken_while_it_listed_replaces_nothing(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, out = draw(tmp_path / "photos", 8), tmp_path / "out"
    run(photos, out, weights)
    before = {path: path.stat().st_ino for path in out.rglob("*.parquet")}
    shards = Source.shards

    def taken_over(self: Source, *arguments: Any) -> Any:
        yield from shards(self, *arguments)
        record = json.loads((out / ".lock").read_text())
        (out / ".lock").write_text(json.dumps({**record, "owner": "another"}))

    monkeypatch.setattr(Source, "shards", taken_over)
    with pytest.raises(StoreBusyError):
        run(photos, out, weights, overwrite=True)
    assert {path: path.stat().st_ino for path in before} == before


def test_a_process_that_nobody_waited_for_holds_no_lock() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    deadline = time.monotonic() + 20
    while read_process_start(child.pid) is not None:
        assert time.monotonic() < deadline, "it has ended, and its parent has not asked"
        time.sleep(0.01)
    assert Path(f"/proc/{child.pid}").exists()
    child.wait()


def test_a_lock_that_cannot_be_removed_does_not_hide_what_went_wrong(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink = Path.unlink

    def refuse(self: Path, missing_ok: bool = False) -> None:
        if self.name == ".lock":
            raise OSError(30, "Read-only file system", str(self))
        unlink(self, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    assert run(draw(tmp_path / "photos", 3), tmp_path / "out", weights).written == 3


def test_times_beyond_what_a_plan_can_hold_end_no_run(weights: Path, tmp_path: Path) -> None:
    photos = draw(tmp_path / "photos", 2)
    os.utime(photos / "00.png", ns=(0, 2**63 + 10**9))
    if (photos / "00.png").stat().st_mtime_ns < 2**63:
        os.utime(photos / "00.png", (0, 2**40))  # as late as this file system goes
    assert run(photos, tmp_path / "out", weights).written == 2


def test_a_picture_that_does_not_fit_into_memory_is_a_failure_row(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = draw(tmp_path / "photos", 3)
    read = Source.read

    def refuse(self: Source, item: Item, max_bytes: int = 0) -> bytes:
        if item.id == "01.png":
            raise MemoryError
        return read(self, item, max_bytes)

    monkeypatch.setattr(Source, "read", refuse)
    assert run(photos, tmp_path / "out", weights).failed == 1
    (row,) = pq.read_table(tmp_path / "out/failures").to_pylist()
    assert (row["id"], row["stage"], row["error"]) == ("01.png", "read", "MemoryError")


def test_a_time_for_a_picture_that_no_clock_holds_is_refused() -> None:
    for seconds in (float("inf"), 1e7, 0, -1, float("nan")):
        with pytest.raises(InputError, match="max_seconds"):
            embed_job(source="a", output="b", isolate=True, max_seconds=seconds)


def test_failures_that_an_update_keeps_count(weights: Path, tmp_path: Path) -> None:
    photos, out = draw(tmp_path / "photos", 4), tmp_path / "out"
    for name in ("01.broken.png", "02.broken.png"):
        (photos / name).write_bytes(b"broken")
    run(photos, out, weights, shard_size=10)
    (photos / "00.png").unlink()
    (photos / "03.broken.png").write_bytes(b"broken")
    with pytest.raises(TooManyFailuresError, match="more than 2 of"):
        run(photos, out, weights, shard_size=10, update=True, max_failures="2")
    assert run(photos, out, weights, shard_size=10, update=True, max_failures="3").failed == 3


def test_failures_stand_in_the_order_of_the_input(tmp_path: Path) -> None:
    photos = draw(tmp_path / "photos", 6)
    for n in (1, 3, 5):
        (photos / f"0{n}.png").write_bytes(b"broken")
    weights = checkpoints.write(tmp_path, texts=False, projection=0.0)
    clip.embed(embed_job(source=photos, output=tmp_path / "out", model=str(weights), threads=1))
    table = pq.read_table(tmp_path / "out/failures")
    assert table["id"].to_pylist() == [f"0{n}.png" for n in range(6)]
    assert table["stage"].to_pylist() == ["encode", "open"] * 3


def test_a_plain_run_over_what_was_updated_has_nothing_to_do(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, out = draw(tmp_path / "photos", 5), tmp_path / "out"
    decode = Decoding.__call__

    def refuse(self: Decoding, item: Any, *others: Any) -> Any:
        found = decode(self, item, *others)
        if item.id == "02.png":
            return [Failure(item.id, item.path, "read", "OSError", "the disk was away")]
        return found

    monkeypatch.setattr(Decoding, "__call__", refuse)
    run(photos, out, weights, hashes=True)
    draw(photos, 1, first=60, prefix="more")
    run(photos, out, weights, hashes=True, update=True)
    monkeypatch.setattr(Decoding, "__call__", lambda *_: pytest.fail("an image was read"))
    monkeypatch.setattr(planning, "_hash_content", lambda *_: pytest.fail("a file was hashed"))
    assert run(photos, out, weights, hashes=True).resumed == 6


def test_vectors_asked_for_by_several_threads_are_right(weights: Path, tmp_path: Path) -> None:
    photos, out = draw(tmp_path / "photos", 9), tmp_path / "out"
    run(photos, out, weights)
    expected = np.stack([read_vectors(out)[f"{n:02}.png"] for n in range(9)])
    for _ in range(5):
        shutil.rmtree(out / "_index", ignore_errors=True)
        found: list[np.ndarray] = []
        threads = [threading.Thread(target=lambda: found.append(clip.Store(out).vectors())) for _ in range(6)]  # noqa: B023
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 6
        assert all(np.allclose(array, expected, atol=1e-6) for array in found)


def test_an_output_of_any_name_is_written_and_read(weights: Path, tmp_path: Path) -> None:
    photos = draw(tmp_path / "photos", 3)
    out = tmp_path / os.fsdecode(b"out \xe9")
    run(photos, out, weights)
    draw(photos, 1, first=60, prefix="more")
    assert run(photos, out, weights, update=True).written == 4
    assert clip.Store(out).vectors().shape == (4, 32)
    assert verify(VerifyJob(output=out, sample=2)).problems == ()


def test_a_listing_that_cannot_be_read_says_what_to_do(weights: Path, tmp_path: Path) -> None:
    photos, out = draw(tmp_path / "photos", 8), tmp_path / "out"
    run(photos, out, weights)
    (out / "_plan/shard-00001.parquet").write_bytes(b"PAR1")
    report = verify(VerifyJob(output=out))
    assert any("Remove" in problem.what and "_plan" in problem.what for problem in report.problems)
    with pytest.raises(StoreError, match=r"Remove .*_plan, and run again"):
        run(photos, out, weights)
    shutil.rmtree(out / "_plan")
    assert run(photos, out, weights).resumed == 8


def test_a_job_says_what_it_was_asked_for_with_stop(weights: Path, tmp_path: Path) -> None:
    photos = draw(tmp_path / "photos", 2)
    (photos / "00.png").write_bytes(b"broken")
    with pytest.raises(TooManyFailuresError, match="expected at most 0"):
        run(photos, tmp_path / "out", weights, on_failure="stop")
    assert dataclasses.asdict(embed_job(source="a", output="b"))["on_failure"] == "record"
