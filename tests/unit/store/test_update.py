"""Updating an output gives the result of a fresh run, and leaves unchanged parts untouched."""

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit import formula
from kit.inputs import draw_photos
from kit.jobs import change_job, embed_job

import clip
from clip.batch import embed as embed_module
from clip.batch.decode import Decoding
from clip.batch.verify import verify
from clip.errors import InputError, StoreError, StoreMismatchError
from clip.jobs.embed import EmbedJob, Progress
from clip.jobs.verify import VerifyJob
from clip.records import Failure, Item, Shard
from clip.store import listed
from clip.store.part_writer import PartWriter
from clip.store.writer import StoreWriter

TOLERANCE = 1e-5
SHARD_SIZE = 4
NAMES = [f"{n:02}.png" for n in range(11)]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Eleven images and one that is none, in three shards of four."""
    return draw_photos(tmp_path / "photos", NAMES, broken=["05.broken.jpg"])


def draw(path: Path, number: int) -> None:
    formula.picture(number, 40, 30).save(path, "PNG")


def make_job(photos: Path, output: Path, weights: Path, **choices: Any) -> EmbedJob:
    choices = {"threads": 1, "shard_size": SHARD_SIZE} | choices
    return embed_job(source=str(photos), output=output, model=str(weights), **choices)


def parts(output: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in output.glob("embeddings/part-*.parquet")}


def contents(output: Path) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Vectors and failures by id, as the parts have them; each id once."""
    tables = [
        [pq.read_table(path) for path in sorted((output / name).iterdir())] for name in ("embeddings", "failures")
    ]
    rows, failures = ([row for table in folder for row in table.to_pylist()] for folder in tables)
    assert len({row["id"] for row in (*rows, *failures)}) == len(rows) + len(failures)
    return {row["id"]: row["embedding"] for row in rows}, {row["id"]: row["error"] for row in failures}


def check_equals_a_fresh_run(updated: Path, fresh: Path, job: EmbedJob) -> None:
    clip.embed(change_job(job, output=fresh, update=False))
    (vectors, failed), (expected, expected_failed) = contents(updated), contents(fresh)
    assert vectors.keys() == expected.keys()
    assert failed == expected_failed
    for name, vector in expected.items():
        assert np.abs(np.subtract(vectors[name], vector)).max() < TOLERANCE, name
    manifests = [clip.Store(output).manifest for output in (updated, fresh)]
    assert manifests[0].counts == manifests[1].counts
    assert manifests[0].input_fingerprint == manifests[1].input_fingerprint
    report = verify(VerifyJob(output=updated, sample=3))
    assert report.problems == ()


def change(photos: Path) -> None:
    draw(photos / "01.png", 21)  # in the first shard
    (photos / "02.png").unlink()
    draw(photos / "00.new.png", 22)
    draw(photos / "zz.new.png", 23)


def test_only_the_difference_is_embedded_and_untouched_parts_stay(photos: Path, weights: Path, tmp_path: Path) -> None:
    job = make_job(photos, tmp_path / "out", weights, update=True)
    clip.embed(change_job(job, update=False))
    before = parts(tmp_path / "out")
    change(photos)
    reports: list[Progress] = []
    report = clip.embed(job, reports.append)
    assert (report.read, report.written, report.failed, report.resumed, report.removed) == (13, 12, 1, 10, 1)
    assert [progress.read for progress in reports if progress.total][-1] == 13
    assert all(progress.read >= 10 for progress in reports if progress.total)
    after = parts(tmp_path / "out")
    assert {name for name in before if after[name] == before[name]} == {"part-00001.parquet", "part-00002.parquet"}
    assert after.keys() - before.keys() == {"part-00003.parquet"}
    first = pq.read_table(tmp_path / "out/embeddings/part-00000.parquet").column("id").to_pylist()
    assert first == ["00.png", "01.png", "03.png"], "a part keeps the order of its entries"
    check_equals_a_fresh_run(tmp_path / "out", tmp_path / "fresh", job)
    untouched = parts(tmp_path / "out")
    again = clip.embed(job)
    assert (again.resumed, again.removed) == (13, 0)
    assert clip.embed(change_job(job, update=False)).resumed == 13, "nor is it another input now"
    assert parts(tmp_path / "out") == untouched


def test_a_changed_input_is_refused_without_update_and_the_error_names_it(
    photos: Path, weights: Path, tmp_path: Path
) -> None:
    job = make_job(photos, tmp_path / "out", weights)
    clip.embed(job)
    change(photos)
    with pytest.raises(
        StoreMismatchError, match=r"out: 2 new, 1 gone, 1 changed since\. Add update=True to bring it up to date, or"
    ):
        clip.embed(job)
    with pytest.raises(InputError, match="found overwrite too"):
        change_job(job, update=True, overwrite=True)


def test_an_output_that_is_not_there_is_made(photos: Path, weights: Path, tmp_path: Path) -> None:
    assert clip.embed(make_job(photos, tmp_path / "out", weights, update=True)).written == 11


def test_a_modification_time_alone_makes_an_image_changed_unless_hashes_agree(
    photos: Path, weights: Path, tmp_path: Path
) -> None:
    for hashes, done_again in ((False, 1), (True, 0)):
        output = tmp_path / f"out-{hashes}"
        job = make_job(photos, output, weights, hashes=hashes, update=True)
        clip.embed(job)
        before = parts(output)
        os.utime(photos / "00.png", ns=(1, 1 + hashes))
        assert clip.embed(job).resumed == 12 - done_again
        assert (parts(output) == before) is hashes


def test_hashes_find_what_size_and_time_do_not_tell(photos: Path, weights: Path, tmp_path: Path) -> None:
    formula.picture(1, 40, 30).save(photos / "a.bmp")
    formula.picture(2, 40, 30).save(tmp_path / "b.bmp")
    status = (photos / "a.bmp").stat()
    for hashes in (False, True):
        job = make_job(photos, tmp_path / f"out-{hashes}", weights, hashes=hashes, update=True)
        first = clip.embed(job)
        vector = contents(tmp_path / f"out-{hashes}")[0]["a.bmp"]
        shutil.copyfile(tmp_path / "b.bmp", photos / "a.bmp")
        os.utime(photos / "a.bmp", ns=(status.st_atime_ns, status.st_mtime_ns))
        assert clip.embed(job).resumed == first.read - hashes
        assert (contents(tmp_path / f"out-{hashes}")[0]["a.bmp"] == vector) is not hashes
        formula.picture(1, 40, 30).save(photos / "a.bmp")
        os.utime(photos / "a.bmp", ns=(status.st_atime_ns, status.st_mtime_ns))
    column = clip.Store(tmp_path / "out-True").table(["id", "sha256"]).to_pylist()
    assert all(len(row["sha256"]) == 64 for row in column)


def test_failures_that_another_try_may_not_have_are_tried_again_and_others_are_not(
    photos: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoding = Decoding.__call__

    def refuse(self: Decoding, item: Item, *reserve: Any) -> Any:
        if item.id == "09.png":
            return [Failure(item.id, item.path, "read", "OSError", "the disk was away")]
        if item.id == "03.png":
            return [Failure(item.id, item.path, "decode", "TimeoutError", "the machine was busy")]
        return decoding(self, item, *reserve)

    job = make_job(photos, tmp_path / "out", weights, update=True)
    monkeypatch.setattr(Decoding, "__call__", refuse)
    assert clip.embed(job).failed == 3
    monkeypatch.undo()
    assert clip.embed(change_job(job, update=False)).failed == 3, "without an update the run is over"
    read: list[str] = []

    def counted(self: Decoding, item: Item, *reserve: Any) -> Any:
        read.append(item.id)
        return decoding(self, item, *reserve)

    monkeypatch.setattr(Decoding, "__call__", counted)
    assert clip.embed(job).failed == 1
    assert sorted(read) == ["03.png", "09.png"]


@pytest.mark.parametrize("gone", ["all", "replaced"])
def test_a_source_that_is_not_there_removes_nothing(photos: Path, weights: Path, tmp_path: Path, gone: str) -> None:
    job = make_job(photos, tmp_path / "out", weights, update=True)
    clip.embed(job)
    before = contents(tmp_path / "out")
    for path in list(photos.iterdir()):
        path.unlink()
        if gone == "replaced":
            (photos / f"x{path.name}").write_bytes(b"another")
    with pytest.raises(InputError, match=r"none of its 12 images is listed any more|photos: empty"):
        clip.embed(job)
    assert contents(tmp_path / "out") == before
    assert not (tmp_path / "out/_plan.merged").exists()


def test_a_source_that_moved_is_the_same_and_its_new_paths_are_used(
    photos: Path, weights: Path, tmp_path: Path
) -> None:
    job = make_job(photos, tmp_path / "out", weights, update=True)
    clip.embed(job)
    change(photos)
    clip.embed(job)
    photos.rename(tmp_path / "moved")
    draw(tmp_path / "moved/more.png", 50)
    report = clip.embed(change_job(job, source=tmp_path / "moved"))
    assert (report.read, report.resumed, report.failed) == (14, 13, 1)


def test_a_database_that_cannot_be_written_is_an_error_of_ours(
    photos: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(photos, tmp_path / "out", weights, update=True)
    clip.embed(job)
    change(photos)
    monkeypatch.setattr(listed, "SCRATCH", "no/such/folder")
    with pytest.raises(StoreError, match="cannot be written"):
        clip.embed(job)


def test_an_interrupted_update_is_resumed_and_carries_the_same_rows_over(
    photos: Path, weights: Path, tmp_path: Path
) -> None:
    job = make_job(photos, tmp_path / "out", weights, update=True)
    clip.embed(job)
    change(photos)
    for commits, resumed in ((0, 10), (1, 11)):  # rows carried over or in the other parts; then 01 too
        _interrupted(job, commits)
        if commits == 0:
            copy = tmp_path / "copy"
            shutil.copytree(tmp_path / "out", copy)
            assert clip.embed(change_job(job, output=copy, update=False)).resumed == resumed
    assert clip.embed(job).resumed == resumed
    check_equals_a_fresh_run(tmp_path / "out", tmp_path / "fresh", job)


class StoppedError(Exception):
    """What ends a run in this test."""


edits = st.dictionaries(
    st.sampled_from([*NAMES, "new/a.png", "new/b.png", "zz.png"]), st.sampled_from(["change", "remove", "break"])
)


@settings(deadline=None, max_examples=15)
@given(rounds=st.lists(st.tuples(edits, st.integers(0, 4)), min_size=1, max_size=3))
def test_any_changes_and_any_interruptions_end_in_a_fresh_runs_result(
    weights: Path, rounds: list[tuple[dict[str, str], int]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        photos, out = Path(folder, "photos"), Path(folder, "out")
        (photos / "new").mkdir(parents=True)
        for n, name in enumerate(NAMES):
            draw(photos / name, n)
        draw(photos / "kept.png", 60)  # or all might go
        job = make_job(photos, out, weights, update=True)
        for number, (made, commits) in enumerate(rounds):
            _interrupted(job, commits)
            for name, what in made.items():
                if what == "remove":
                    (photos / name).unlink(missing_ok=True)
                elif what == "break":
                    (photos / name).write_bytes(b"%d" % number)
                else:
                    draw(photos / name, 70 + number)
        clip.embed(job)
        check_equals_a_fresh_run(out, Path(folder, "fresh"), job)


def _interrupted(job: EmbedJob, commits: int) -> None:
    """A run that ends after so many commits, if it has as many."""
    left = [commits]
    part = StoreWriter.part

    def stop(self: StoreWriter, shard: Shard) -> PartWriter:
        if not left[0]:
            raise StoppedError
        left[0] -= 1
        return part(self, shard)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embed_module.StoreWriter, "part", stop)
        with suppress(StoppedError):
            clip.embed(job)
