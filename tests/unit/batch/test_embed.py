"""clip.embed in this process: every entry becomes one row or one failure row, in order, whatever the settings."""

import dataclasses
import hashlib
import io
import json
import os
import shutil
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kit import checkpoints, formula
from kit.inputs import draw_photos
from kit.jobs import change_job, embed_job
from kit.outputs import read_manifest, read_rows

import clip
from clip.batch import planning
from clip.batch import run as run_module
from clip.batch.verify import verify
from clip.budgets import ByteBudget
from clip.engine.devices import make_backend
from clip.errors import (
    CheckpointError,
    InputError,
    StoreBusyError,
    StoreError,
    StoreMismatchError,
    TooManyFailuresError,
    WeightsMissingError,
)
from clip.jobs.embed import EmbedJob, EmbedReport, Listing, Progress
from clip.jobs.verify import VerifyJob
from clip.network.records import PreprocessSettings
from clip.records import Item, Shard
from clip.sources import folders
from clip.sources.source import Source
from clip.store.lock import hold_lock
from clip.store.part_writer import PartWriter
from clip.store.writer import StoreWriter

TOLERANCE = 1e-5
GOOD = [f"{n:02}.png" for n in range(11)]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven images, two that are none, and a text file."""
    folder = draw_photos(tmp_path_factory.mktemp("photos"), GOOD, wider=1, broken=["05.broken.jpg"])
    (folder / "zz.empty.gif").touch()
    (folder / "notes.txt").touch()
    return folder


@pytest.fixture(scope="module")
def expected(weights: Path, photos: Path) -> np.ndarray:
    return clip.Encoder(weights).embed([photos / name for name in GOOD])


def job(photos: Path, output: Path, weights: Path, **choices: Any) -> EmbedJob:
    choices = {"threads": 1} | choices  # so small a network gains nothing from more
    return embed_job(source=str(photos), output=output, model=str(weights), **choices)


def vectors(output: Path) -> np.ndarray:
    return np.array([row["embedding"] for row in read_rows(output)], np.float64)


@pytest.mark.parametrize(
    "choice",
    [
        {},
        {"batch_size": 1},
        {"batch_size": 3, "workers": 1, "threads": 2},
        {"batch_size": 4, "shard_size": 5},
        {"shard_size": 1, "workers": 5},
        {"decode_budget_bytes": 1},
        {"shard_size": 13},
        {"decoders": "processes"},
        {"decoders": "processes", "shard_size": 5, "batch_size": 3, "decode_budget_bytes": 1, "read_budget_bytes": 1},
    ],
    ids=str,
)
def test_no_setting_of_the_run_shows_in_what_is_written(
    photos: Path, weights: Path, expected: np.ndarray, tmp_path: Path, choice: dict[str, int]
) -> None:
    shard_size = choice.get("shard_size", 13)
    report = clip.embed(job(photos, tmp_path, weights, **choice))
    assert dataclasses.replace(report, seconds=0) == EmbedReport(tmp_path, 13, 11, 2, {"not an image": 1}, 0)
    assert [row["id"] for row in read_rows(tmp_path)] == GOOD
    assert [row["id"] for row in read_rows(tmp_path, "failures")] == ["05.broken.jpg", "zz.empty.gif"]
    assert np.abs(vectors(tmp_path) - expected).max() < TOLERANCE
    parts = [f"part-{n:05}.parquet" for n in range(-(-13 // shard_size))]
    assert sorted(os.listdir(tmp_path / "embeddings")) == sorted(os.listdir(tmp_path / "failures")) == parts
    for n, part in enumerate(parts):  # a shard's rows and failures stand in the parts of its number
        read = [pq.read_metadata(tmp_path / folder / part).num_rows for folder in ("embeddings", "failures")]
        assert sum(read) == min(shard_size, 13 - n * shard_size)


def test_a_row_says_of_the_original_what_it_was(photos: Path, weights: Path, tmp_path: Path) -> None:
    clip.embed(job(photos, tmp_path, weights, limit=2))
    row = read_rows(tmp_path)[1]
    del row["embedding"]
    size_bytes = (photos / "01.png").stat().st_size
    assert row == dict(
        id="01.png", path="01.png", width=41, height=30, format="PNG", size_bytes=size_bytes, warning=None
    )


@pytest.mark.parametrize(
    ("options", "workers", "images", "device", "expected"),
    [
        ({}, 2, 10_000, "cpu", False),
        ({}, 4, 10_000, "cpu", False),
        ({}, 8, 10_000, "cpu", True),
        ({}, 8, None, "cpu", True),
        ({}, 8, 100, "cpu", False),
        ({}, 2, 10_000, "cuda", True),
        ({"decoders": "threads"}, 8, 10_000, "cuda", False),
        ({"decoders": "processes"}, 1, 1, "cpu", True),
        ({"isolate": True}, 1, 1, "cpu", True),
        ({"texts": True}, 8, 10_000, "cuda", False),
    ],
)
def test_processes_decode_where_threads_would_hold_up_the_model(
    options: dict[str, Any], workers: int, images: int | None, device: str, expected: bool
) -> None:
    asked = embed_job(source="in.txt", output="out", **options)
    assert run_module._choose_processes(asked, workers, images, device) is expected


def test_processes_write_what_threads_write_byte_for_byte(photos: Path, weights: Path, tmp_path: Path) -> None:
    for decoders in ("threads", "processes"):
        clip.embed(job(photos, tmp_path / decoders, weights, decoders=decoders, shard_size=5))
    names = [path.relative_to(tmp_path / "threads") for path in (tmp_path / "threads").glob("*/part-*.parquet")]
    assert len(names) == 6
    assert all((tmp_path / "threads" / n).read_bytes() == (tmp_path / "processes" / n).read_bytes() for n in names)


def test_isolated_images_are_not_decoded_in_threads() -> None:
    with pytest.raises(InputError, match=r"isolate: found decoders=.threads. too"):
        embed_job(source="in", output="out", isolate=True, decoders="threads")


def test_the_manifest_says_all_that_a_vector_depends_on(photos: Path, weights: Path, tmp_path: Path) -> None:
    clip.embed(job(photos, tmp_path, weights, normalize=False, dtype="float16", globs=("*.png",), limit=3))
    found = read_manifest(tmp_path)
    versions, architecture = found.pop("versions"), found.pop("architecture")
    assert versions["torch"] == torch.__version__
    assert versions["clip-turbo"] == clip.__version__
    assert versions["pi-heif"] == metadata.version("pi-heif")
    assert architecture == dataclasses.asdict(dataclasses.replace(formula.TINY["tiny-vit"], vocab_size=1))
    assert found.pop("input_fingerprint")
    assert (len(found.pop("run")), len(found.pop("checksum"))) == (16, 8)
    assert found == {
        "model": str(weights),
        "weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "weights_source": str(weights),
        "preprocess": f"openai-clip/pillow-{versions['pillow']}",
        "preprocess_settings": json.loads(json.dumps(dataclasses.asdict(PreprocessSettings(32)))),
        "precision": "reference",
        "computed_in": "fp32",
        "engine": make_backend(torch.device("cpu")).name,
        "decode": "exact",
        "policies": {"orient": "none", "background": "none", "sixteen_bit": "clip", "frames": "first"},
        "warnings": True,
        "guards": {"max_bytes": 2**31 - 1, "max_pixels": 100_000_000, "max_aspect": None, "max_frames": 1000},
        "normalised": False,
        "dtype": "float16",
        "hashes": False,
        "dim": 32,
        "device": "cpu",
        "source": [str(photos)],
        "globs": ["*.png"],
        "column": None,
        "id_column": None,
        "text_column": None,
        "tuned": None,
        "calibration": None,
        "kind": "pictures",
        "long_text": None,
        "keep": [],
        "root": "",
        "base": str(photos),
        "base_from_output": os.path.relpath(photos, tmp_path),
        "duplicate_ids": "error",
        "limit": 3,
        "shard_size": 10_000,
        "counts": {"read": 3, "written": 3, "failed": 0, "ignored": {}},
    }


def test_the_fingerprint_is_that_of_the_input_and_of_nothing_else(photos: Path, weights: Path, tmp_path: Path) -> None:
    def fingerprint(name: str, source: Path, **choice: Any) -> str:
        clip.embed(job(source, tmp_path / name, weights, **choice))
        return read_manifest(tmp_path / name)["input_fingerprint"]

    whole = fingerprint("a", photos)
    assert fingerprint("b", photos, shard_size=3, batch_size=2, normalize=False) == whole
    assert fingerprint("c", photos, limit=12) != whole
    (tmp_path / "copy").mkdir()
    for path in photos.iterdir():
        shutil.copy2(path, tmp_path / "copy")
    assert fingerprint("d", tmp_path / "copy") == whole
    os.utime(tmp_path / "copy" / GOOD[0], ns=(0, 1))
    assert fingerprint("e", tmp_path / "copy") != whole


def test_counting_tells_what_a_run_reads_and_passes_over(photos: Path, weights: Path, tmp_path: Path) -> None:
    for choice in ({}, {"limit": 4, "shard_size": 3}, {"globs": ("0*",)}):
        wanted = job(photos, tmp_path, weights, overwrite=True, **choice)
        report = clip.embed(wanted)
        found = planning.count(wanted)
        assert (found.images, found.ignored) == (report.read, report.ignored)


def test_progress_is_told_after_each_chunk(photos: Path, weights: Path, tmp_path: Path) -> None:
    told: list[Progress] = []
    clip.embed(job(photos, tmp_path, weights, shard_size=4), told.append)
    assert told.pop(0).loading
    listing = [told.pop(0).listing for _ in range(5)]
    assert listing[:4] == [Listing(count) for count in (4, 8, 12, 13)]
    assert listing[4] == Listing(13, 0, f"'00.png' ({photos / '00.png'})", {"not an image": 1})
    assert [progress.shard for progress in told] == sorted(progress.shard for progress in told)
    assert {progress.shard for progress in told} == {0, 1, 2, 3, 4}
    assert {progress.shards for progress in told} == {4}
    read = [progress.read for progress in told]
    assert (read, read[-1]) == (sorted(read), 13)
    assert {0, 4, 8, 12} < set(read), (
        "an image counts when it has a vector, so those of a shard that is one batch together"
    )
    assert {progress.total for progress in told} == {13}
    failed = [progress.failed for progress in told]
    assert (failed, failed[0], failed[-1]) == (sorted(failed), 0, 2)


def test_each_picture_is_decoded_within_the_budget(
    photos: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reserved: list[int] = []

    class Budget(ByteBudget):
        def reserve(self, size_bytes: int) -> Any:
            assert self.limit_bytes == 12345  # not that of encoded bytes
            reserved.append(size_bytes)
            return super().reserve(size_bytes)

    monkeypatch.setattr(run_module, "ByteBudget", Budget)
    clip.embed(job(photos, tmp_path, weights, decode_budget_bytes=12345))
    assert len(reserved) == len(GOOD)
    assert min(reserved) >= 4 * 40 * 30


def test_no_more_is_read_ahead_than_two_batches_and_a_picture_a_thread(
    photos: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, ahead = [], []
    read = Source.read

    def counted(source: Source, item: Item, max_bytes: int) -> bytes:
        begun.append(item)
        return read(source, item, max_bytes)

    (tmp_path / "in").mkdir()
    for n in range(40):
        os.link(photos / GOOD[0], tmp_path / f"in/{n}.png")
    monkeypatch.setattr(Source, "read", counted)
    wanted = job(tmp_path / "in", tmp_path / "out", weights, batch_size=2, workers=3, shard_size=4)
    clip.embed(wanted, lambda progress: ahead.append(len(begun) - progress.read))
    assert len(begun) == 40
    assert max(ahead) <= 2 * 2 + 3


def test_an_input_that_yields_nothing_is_refused_with_the_likely_cause(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(InputError, match=r"in: empty, expected images"):
        clip.embed(job(tmp_path / "in", tmp_path / "out", weights))
    (tmp_path / "in/notes.txt").touch()
    (tmp_path / "in/.hidden.jpg").touch()
    with pytest.raises(InputError, match=r"in: nothing but 1 hidden, 1 not an image, expected images.* globs"):
        clip.embed(job(tmp_path / "in", tmp_path / "out", weights))
    assert not (tmp_path / "out/manifest.json").exists()


def test_the_number_of_threads_is_given_back(photos: Path, weights: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    seen: list[int] = []
    clip.embed(job(photos, tmp_path, weights, threads=3), lambda _: seen.append(torch.get_num_threads()))
    assert set(seen) == {3}
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 0.0, 1e30])
def test_a_vector_that_is_none_becomes_a_failure_row(photos: Path, tmp_path: Path, number: float) -> None:
    weights = checkpoints.write(tmp_path, texts=False, projection=number)
    report = clip.embed(job(photos, tmp_path / "out", weights, batch_size=2))
    assert (report.read, report.written, report.failed) == (13, 0, 13)
    failed = read_rows(tmp_path / "out", "failures")
    assert sorted(row["id"] for row in failed if row["stage"] == "encode") == GOOD
    assert all("Check the weights" in row["message"] for row in failed if row["stage"] == "encode")


def test_numbers_that_float16_cannot_hold_are_never_stored_as_infinite(photos: Path, tmp_path: Path) -> None:
    weights = checkpoints.write(tmp_path, texts=False, projection=1e6)
    report = clip.embed(job(photos, tmp_path / "out", weights, normalize=False, dtype="float16"))
    assert report.read == report.written + report.failed == 13
    assert all(np.isfinite(row["embedding"]).all() for row in read_rows(tmp_path / "out"))
    clip.embed(job(photos, tmp_path / "large", weights, normalize=False))
    assert len(read_rows(tmp_path / "large")) == 11  # which float32 can


def test_a_folder_that_cannot_be_listed_is_a_failure_row(
    photos: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str) -> Any:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("os.scandir", refuse)
    report = clip.embed(job(photos, tmp_path, weights))
    monkeypatch.undo()
    assert (report.read, report.written, report.failed) == (1, 0, 1)
    assert [(row["id"], row["stage"]) for row in read_rows(tmp_path, "failures")] == [(".", "read")]


def test_a_picture_that_goes_between_listing_and_reading_is_a_failure_row(
    photos: Path, weights: Path, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    for n in range(40):  # more than the look-ahead takes up at once
        os.link(photos / GOOD[0], tmp_path / f"in/{n}.png")
    last = tmp_path / "in/9.png"
    report = clip.embed(
        job(tmp_path / "in", tmp_path / "out", weights, batch_size=1, workers=1),
        lambda told: told.loading or last.unlink(missing_ok=True),
    )
    assert (report.read, report.written, report.failed) == (40, 39, 1)
    (failure,) = read_rows(tmp_path / "out", "failures")
    assert (failure["id"], failure["stage"], failure["error"]) == ("9.png", "read", "FileNotFoundError")


def test_what_breaks_a_run_leaves_its_finished_parts(
    photos: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_table = pq.ParquetWriter.write_table
    written = [0]

    def fill_up(self: Any, table: Any, **options: Any) -> None:
        written[0] += "embedding" in table.column_names
        if written[0] == 3:
            raise OSError(28, "No space left on device")
        write_table(self, table, **options)

    monkeypatch.setattr("pyarrow.parquet.ParquetWriter.write_table", fill_up)
    with pytest.raises(StoreError, match="part-00002"):
        clip.embed(job(photos, tmp_path, weights, shard_size=3))
    assert sorted(os.listdir(tmp_path / "embeddings")) == ["part-00000.parquet", "part-00001.parquet"]
    assert [row["id"] for row in read_rows(tmp_path)] == GOOD[:5]
    assert [row["id"] for row in read_rows(tmp_path, "failures")] == ["05.broken.jpg"]
    assert read_manifest(tmp_path)["counts"] is None


def test_a_run_that_cannot_begin_leaves_the_one_that_stands(
    photos: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip.embed(job(photos, tmp_path / "out", weights))
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.*")}
    monkeypatch.setenv("HOME", str(tmp_path))
    damaged = tmp_path / "damaged.pt"
    damaged.write_bytes(weights.read_bytes()[:1000])
    for error, changed in [
        (WeightsMissingError, {"model": "RN50"}),
        (CheckpointError, {"model": str(damaged)}),
        (InputError, {"source": str(damaged)}),
        (StoreMismatchError, {"overwrite": False, "dtype": "float16"}),
        (StoreMismatchError, {"overwrite": False, "limit": 3}),  # another input
    ]:
        with pytest.raises(error):
            clip.embed(change_job(job(photos, tmp_path / "out", weights, overwrite=True), **changed))
        assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.*")} == before


def stop_after(parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the disk fill up when so many shards are written."""
    part = StoreWriter.part

    def fill_up(self: StoreWriter, shard: Shard) -> PartWriter:
        if shard.index == parts:
            raise StoreError("no space")
        return part(self, shard)

    monkeypatch.setattr(StoreWriter, "part", fill_up)


@pytest.mark.parametrize("parts", [0, 1, 3])
def test_an_interrupted_run_is_gone_on_with_and_equals_one_that_was_not(
    photos: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: int
) -> None:
    whole, broken = job(photos, tmp_path / "whole", weights, shard_size=3), tmp_path / "broken"
    expected_report = clip.embed(whole)
    stop_after(parts, monkeypatch)
    with pytest.raises(StoreError, match="no space"):
        clip.embed(dataclasses.replace(whole, output=broken))
    monkeypatch.undo()
    before = {path: path.stat().st_ino for path in broken.glob("*/part-*.parquet")}
    told: list[Progress] = []
    report = clip.embed(dataclasses.replace(whole, output=broken), told.append)
    assert (report.read, report.written, report.failed) == (13, 11, 2)
    assert dataclasses.replace(report, output=expected_report.output, seconds=0, resumed=0) == dataclasses.replace(
        expected_report, seconds=0
    )
    assert report.resumed == 3 * parts
    read = [progress.read for progress in told if progress.total]
    assert (read, read[-1]) == (sorted(read), 13)
    assert 3 * parts <= read[0] <= 3 * parts + 3
    assert {path: path.stat().st_ino for path in before} == before
    for part in (tmp_path / "whole").glob("*/part-*.parquet"):
        assert pq.read_table(broken / part.relative_to(tmp_path / "whole")).equals(pq.read_table(part))
    assert read_manifest(broken)["counts"] == read_manifest(tmp_path / "whole")["counts"]


def test_a_run_that_is_over_is_not_done_again(photos: Path, weights: Path, tmp_path: Path) -> None:
    first = clip.embed(job(photos, tmp_path, weights, shard_size=4))
    before = {path: path.stat().st_ino for path in tmp_path.glob("*/part-*.parquet")}
    told: list[Progress] = []
    again = clip.embed(job(photos, tmp_path, weights, shard_size=4), told.append)
    assert {progress.total for progress in told} == {0}, "an image was read"
    assert dataclasses.replace(again, seconds=0) == dataclasses.replace(first, seconds=0, resumed=13)
    assert {path: path.stat().st_ino for path in before} == before


def test_a_listing_that_was_interrupted_is_gone_on_with_in_a_first_run_only(
    photos: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    status = folders.stat_here
    monkeypatch.setattr(folders, "stat_here", lambda path: (asked.append(os.path.basename(path)), status(path))[1])

    def interrupt(progress: Progress) -> None:
        if progress.listing == Listing(8):
            raise KeyboardInterrupt

    def asked_for(output: Path, **choice: Any) -> list[str]:
        asked.clear()
        assert clip.embed(job(photos, output, weights, shard_size=4, **choice)).read == 13
        return list(asked)

    with pytest.raises(KeyboardInterrupt):
        clip.embed(job(photos, tmp_path / "a", weights, shard_size=4), interrupt)
    rest = ["04.png", "05.broken.jpg", *GOOD[5:], "zz.empty.gif"]
    assert asked_for(tmp_path / "a") == rest, "the first shard was written"
    with pytest.raises(KeyboardInterrupt):
        clip.embed(job(photos, tmp_path / "a", weights, shard_size=4, update=True), interrupt)
    assert len(asked_for(tmp_path / "a", update=True)) == 13, "an image may have changed since"
    assert sorted(path.name for path in (tmp_path / "a").glob("_plan*")) == ["_plan"]


def test_pictures_that_changed_are_no_part_of_the_same_run(photos: Path, weights: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    out = tmp_path / "out"
    clip.embed(job(folder, out, weights))
    (folder / "more.png").write_bytes((folder / GOOD[0]).read_bytes())
    with pytest.raises(StoreMismatchError, match="1 new since"):
        clip.embed(job(folder, out, weights))
    assert sorted(path.name for path in out.iterdir() if path.name.startswith("_")) == ["_plan"]
    (folder / "more.png").unlink()
    assert clip.embed(job(folder, out, weights)).resumed == 13


@pytest.mark.parametrize(
    ("caps", "failed", "words"),
    [
        ({"max_pixels": 45 * 30}, 5, "46 x 30 px, expected at most 1,350 pixels"),
        ({"max_aspect": 1.5}, 5, "46 x 30 px, expected sides of at most 1.5 to 1"),
        ({"max_bytes": 1}, 11, " bytes, expected at most 1. Leave it out, or raise max_bytes."),
        ({"max_pixels": 50 * 30, "max_aspect": 50 / 30}, 0, ""),
    ],
)
def test_a_picture_that_would_cost_too_much_is_a_failure_row_before_it_is_decoded(
    photos: Path, weights: Path, tmp_path: Path, caps: dict[str, Any], failed: int, words: str
) -> None:
    report = clip.embed(job(photos, tmp_path, weights, globs=("*.png",), **caps))
    assert (report.written, report.failed) == (11 - failed, failed)
    failures = read_rows(tmp_path, "failures")
    assert all(row["stage"] in ("open", "read") for row in failures)
    assert not failures or any(words in row["message"] for row in failures)


@pytest.mark.parametrize(
    ("choices", "stops"),
    [
        ({"max_failures": "0"}, True),
        ({"on_failure": "stop"}, True),
        ({"max_failures": "1"}, True),
        ({"max_failures": "15%"}, True),  # of 13: one
        ({"max_failures": "15.4%"}, False),
        ({"max_failures": "2"}, False),
        ({}, False),
    ],
)
def test_a_run_stops_when_more_fail_than_it_allows(
    photos: Path, weights: Path, tmp_path: Path, choices: dict[str, Any], stops: bool
) -> None:
    asked = job(photos, tmp_path, weights, shard_size=4, **choices)
    if not stops:
        assert clip.embed(asked).failed == 2
        return
    with pytest.raises(TooManyFailuresError, match=r"of 13 images failed.*the last was '(05.broken.jpg|zz.empty.gif)'"):
        clip.embed(asked)
    assert (tmp_path / "embeddings/part-00000.parquet").exists()
    report = clip.embed(dataclasses.replace(asked, max_failures=None, on_failure="record"))  # and may go on
    assert (report.read, report.failed, report.resumed >= 4) == (13, 2, True)


def test_failures_of_an_earlier_run_count(photos: Path, weights: Path, tmp_path: Path) -> None:
    asked = job(photos, tmp_path, weights, shard_size=4, max_failures="1")
    for _ in range(2):
        with pytest.raises(TooManyFailuresError, match=r"zz\.empty\.gif"):
            clip.embed(asked)


def test_two_jobs_on_one_output_are_one_too_many(photos: Path, weights: Path, tmp_path: Path) -> None:
    with hold_lock(tmp_path), pytest.raises(StoreBusyError, match="is at work there"):
        clip.embed(job(photos, tmp_path, weights))
    assert clip.embed(job(photos, tmp_path, weights)).read == 13


@pytest.mark.parametrize(
    "wrong",
    [{name: 0} for name in ("batch_size", "workers", "threads", "limit", "shard_size", "decode_budget_bytes")]
    + [{"limit": -1}, {"dtype": "float64"}],
    ids=str,
)
def test_a_job_that_asks_for_nothing_is_refused_when_it_is_made(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        embed_job(source="in", output="out", **wrong)


def _encoded(format_name: str, n: int) -> bytes:
    buffer = io.BytesIO()
    formula.picture(n, 20 + n, 16).save(buffer, format_name)
    return buffer.getvalue()


PICTURES = {".png": _encoded("png", 0), ".JPG": _encoded("jpeg", 1), ".gif": _encoded("gif", 2), "": _encoded("bmp", 3)}
kinds = st.sampled_from(
    [("good", ext, data) for ext, data in PICTURES.items()]
    + [("bad", ext, data[: len(data) // 2]) for ext, data in PICTURES.items() if ext]
    + [("bad", ".tif", b""), ("bad", ".webp", b"RIFF"), ("ignored", ".txt", PICTURES[".png"]), ("ignored", "", b"text")]
)
below_root = st.sampled_from(["", "b/", "b/c/", "é \n/"])


@settings(deadline=None, max_examples=10)
@given(st.lists(st.tuples(below_root, kinds), max_size=12), st.integers(1, 5), st.integers(1, 5))
def test_each_picture_is_written_or_failed_whatever_stands_beside_it(
    weights: Path, entries: list[tuple[str, tuple[str, str, bytes]]], shard_size: int, batch_size: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root, wanted = Path(folder, "in"), {"good": set[str](), "bad": set[str](), "ignored": set[str]()}
        root.mkdir()
        for n, (below, (kind, extension, data)) in enumerate(entries):
            path = root / f"{below}{n}{extension}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            wanted[kind].add(str(path.relative_to(root)))
        out = Path(folder, "out")
        if not wanted["good"] | wanted["bad"]:
            return  # refused: there is nothing to be done
        report = clip.embed(job(root, out, weights, shard_size=shard_size, batch_size=batch_size))
        assert sorted(row["id"] for row in read_rows(out)) == sorted(wanted["good"])
        assert sorted(row["id"] for row in read_rows(out, "failures")) == sorted(wanted["bad"])
        assert (report.written, report.failed) == (len(wanted["good"]), len(wanted["bad"]))
        assert report.read == report.written + report.failed
        assert sum(report.ignored.values()) == len(wanted["ignored"])
        assert read_manifest(out)["counts"]["read"] == report.read


def test_each_frame_of_a_file_is_a_row_and_counts_as_read(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    frames = [formula.picture(n, 40, 30) for n in range(3)]
    frames[0].save(tmp_path / "photos" / "b.tiff", save_all=True, append_images=frames[1:])
    for name, frame in (("a.png", frames[2]), ("c.png", frames[0])):
        frame.save(tmp_path / "photos" / name)
    told: list[int] = []
    asked = job(tmp_path / "photos", tmp_path / "out", weights, batch_size=2, frames="all", hashes=True)
    report = clip.embed(asked, progress=lambda progress: told.append(progress.read))
    assert [row["id"] for row in read_rows(tmp_path / "out")] == ["a.png", "b.tiff#0", "b.tiff#1", "b.tiff#2", "c.png"]
    assert told[-3:] == [4, 4, 5], "a file of three frames is one chunk; images count by the batch of two"
    found = vectors(tmp_path / "out")
    assert np.abs(found[[0, 4]] - found[[3, 1]]).max() < TOLERANCE
    assert (report.read, report.written) == (5, 5)
    checked = verify(VerifyJob(output=tmp_path / "out", sample=5))
    assert (checked.problems, checked.read, checked.sampled) == ((), 5, 5)
    # A file of several frames is one entry: unchanged it is kept with all of them, changed all are done again.
    (tmp_path / "photos/a.png").unlink()
    updated = change_job(asked, update=True)
    assert (clip.embed(updated).read, vectors(tmp_path / "out").tolist()) == (4, found[1:].tolist())
    (tmp_path / "photos/b.tiff").unlink()
    formula.picture(5, 40, 30).save(
        tmp_path / "photos/b.tiff", save_all=True, append_images=[formula.picture(6, 40, 30)]
    )
    assert clip.embed(updated).read == 3
    assert [row["id"] for row in read_rows(tmp_path / "out")] == ["b.tiff#0", "b.tiff#1", "c.png"]
    assert verify(VerifyJob(output=tmp_path / "out", sample=5)).problems == ()
