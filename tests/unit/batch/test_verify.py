"""verify(job): an output that is as it should be has no problem; whatever is changed in it is found."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from kit import checkpoints, formula
from kit.in_process import Run
from kit.jobs import embed_job
from kit.outputs import change_manifest, write_part

import clip
from clip.batch.decode import Decoding
from clip.batch.verify import verify
from clip.engine.quantize import Calibration
from clip.errors import DownloadError, InputError, StoreError, WeightsMissingError
from clip.jobs.verify import VerifyJob
from clip.records import Failure, Item, Pixels
from clip.store.manifest import write_calibration
from clip.weights import locate

GOOD = [f"{n:02}.png" for n in range(7)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos, weights and the output of a run over them: parts of 3, 3 and 2 entries, one of them a failure."""
    folder = tmp_path_factory.mktemp("verify")
    (folder / "photos").mkdir()
    for n, name in enumerate(GOOD):
        formula.picture(n, 40, 40).save(folder / "photos" / name)
    (folder / "photos/02.broken.png").write_bytes(b"no image")
    weights = checkpoints.write(folder, texts=False)
    clip.embed(
        embed_job(
            source=folder / "photos", output=folder / "out", model=str(weights), shard_size=3, threads=1, batch_size=2
        )
    )
    return folder


@pytest.fixture
def out(folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(folder / "out", tmp_path / "out")
    return tmp_path / "out"


def rewrite(part: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    write_part(part, change(pq.read_table(part)))


def replaced(table: pa.Table, name: str, values: list[Any]) -> pa.Table:
    field = table.schema.field(name)
    return table.set_column(table.schema.get_field_index(name), field, pa.array(values, field.type))


def scaled(table: pa.Table) -> pa.Table:
    rows = table.column("embedding").to_pylist()
    return replaced(table, "embedding", [[1.01 * x for x in rows[0]], *rows[1:]])


def spoilt(table: pa.Table) -> pa.Table:
    rows = table.column("embedding").to_pylist()
    return replaced(table, "embedding", [[float("nan"), *rows[0][1:]], *rows[1:]])


def renamed(table: pa.Table) -> pa.Table:
    return replaced(table, "id", ["other.png", *table.column("id").to_pylist()[1:]])


def doubled(table: pa.Table) -> pa.Table:
    return pa.concat_tables([table, table.slice(0, 1)])


PART, FAILED = "embeddings/part-00000.parquet", "failures/part-00000.parquet"
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a part is gone": (lambda out: (out / PART).unlink(), "parts are not there"),
    "a part is cut": (lambda out: (out / PART).write_bytes((out / PART).read_bytes()[:-9]), "cannot be read"),
    "failures are gone": (lambda out: (out / FAILED).unlink(), "parts are not there"),
    "a row is gone": (
        lambda out: rewrite(out / PART, lambda table: table.slice(1)),
        "1 ids are listed and missing: '00",
    ),
    "a failure is gone": (
        lambda out: rewrite(out / FAILED, lambda t: t.slice(1)),
        "1 ids are listed and missing: '02.b",
    ),
    "a row stands twice": (lambda out: rewrite(out / PART, doubled), "1 ids occur twice"),
    "an id is another": (lambda out: rewrite(out / PART, renamed), "1 ids are not listed: 'other.png'"),
    "rows are turned round": (lambda out: rewrite(out / PART, lambda t: t.take([1, 0])), "not in the order"),
    "a vector is too long": (lambda out: rewrite(out / PART, scaled), "'00.png' has a vector of norm 1.0"),
    "a number is none": (lambda out: rewrite(out / PART, spoilt), "'00.png' has a vector of norm nan"),
    "a column is gone": (
        lambda out: rewrite(out / PART, lambda t: t.drop_columns(["width"])),
        "has other columns than",
    ),
    "a part is of another listing": (
        lambda out: rewrite(out / PART, lambda t: t.replace_schema_metadata({"clip.mark": "other"})),
        "was made from another listing than _plan",
    ),
    "a part too many": (
        lambda out: shutil.copy(out / PART, out / "embeddings/part-00009.parquet"),
        "belongs to no shard of the",
    ),
    "the run is not over": (lambda out: change_manifest(out, counts=None), "the run is not finished"),
    "counts are others": (lambda out: change_manifest(out, counts={"read": 9, "written": 8, "failed": 1}), "counts {"),
    "the input is another": (lambda out: change_manifest(out, input_fingerprint="x"), "is of another input than _plan"),
    "the plan is gone": (lambda out: shutil.rmtree(out / "_plan"), "holds no complete listing"),
    "a shard of the plan is gone": (lambda out: (out / "_plan/shard-00001.parquet").unlink(), "cannot be read"),
}


def test_an_output_as_it_should_be_has_no_problem(folder: Path) -> None:
    report = verify(VerifyJob(output=folder / "out", sample=5, device="cpu"))
    assert report.problems == ()
    assert (report.read, report.written, report.failed, report.sampled) == (8, 7, 1, 5)
    assert report.min_cosine == pytest.approx(1, abs=1e-5)
    assert verify(VerifyJob(output=folder / "out")).min_cosine is None


@pytest.mark.parametrize("what", list(DAMAGE))
def test_what_was_changed_is_found(out: Path, what: str) -> None:
    damage, words = DAMAGE[what]
    damage(out)
    report = verify(VerifyJob(output=out))
    assert any(words in problem.what for problem in report.problems), report.problems


def test_a_sample_finds_vectors_that_are_another_pictures(out: Path) -> None:
    def swap(table: pa.Table) -> pa.Table:
        rows = table.column("embedding").to_pylist()
        return replaced(table, "embedding", [rows[1], rows[0]])

    rewrite(out / PART, swap)
    assert verify(VerifyJob(output=out)).problems == ()
    report = verify(VerifyJob(output=out, sample=100))
    assert [problem.where for problem in report.problems] == ["00.png", "01.png"]
    assert report.min_cosine is not None
    assert report.min_cosine < 0.999


def test_a_sample_finds_pictures_that_changed_since(folder: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    shutil.copytree(folder / "photos", photos)
    weights = next(folder.glob("*.pt"))
    job = embed_job(source=photos, output=tmp_path / "out", model=str(weights), threads=1)
    clip.embed(job)
    (photos / "00.png").write_bytes(b"no image any more")
    (photos / "02.broken.png").write_bytes((photos / "01.png").read_bytes())
    problems = verify(VerifyJob(output=tmp_path / "out", sample=100)).problems
    assert [problem.where for problem in problems] == ["00.png", "02.broken.png"]
    assert "fails now" in problems[0].what
    assert "failed in the run, and is decoded now" in problems[1].what


def test_a_sample_compares_what_has_the_same_id(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decode = Decoding.__call__

    def with_another_first(self: Decoding, item: Item, *_: object) -> list[Pixels | Failure]:
        other = Item("another", str(folder / "photos/00.png"), 1)
        return [*decode(self, other), *decode(self, item)]

    monkeypatch.setattr(Decoding, "__call__", with_another_first)
    assert verify(VerifyJob(output=folder / "out", sample=8, device="cpu")).problems == ()
    monkeypatch.setattr(Decoding, "__call__", lambda self, item, *_: with_another_first(self, item)[:1])
    problems = verify(VerifyJob(output=folder / "out", sample=8, device="cpu")).problems
    assert [problem.where for problem in problems] == GOOD
    assert all("is not there any more" in problem.what for problem in problems)


def test_a_sample_needs_the_weights_of_the_run(out: Path, tmp_path: Path) -> None:
    other = checkpoints.write(tmp_path, "tiny-vit-wide", texts=False)
    with pytest.raises(StoreError, match=r"have sha256 .*, expected .* Pass the run's weights as model"):
        verify(VerifyJob(output=out, sample=1, model=str(other)))


def test_a_model_that_only_a_manifest_names_is_not_fetched(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CLIP_OFFLINE")
    asked: list[tuple[str, bool]] = []

    def fetch(repository: str, _: str | None, *, cached_only: bool = False) -> Path:
        asked.append((repository, cached_only))
        raise DownloadError(repository, "the local cache has none")

    monkeypatch.setattr(locate, "_fetch_snapshot", fetch)
    for name in ("hf-hub:somebody/else@main", "//host/share/weights.pt", "\\\\host\\weights.pt"):
        change_manifest(out, model=name)
        with pytest.raises(WeightsMissingError, match=r"expected it on .* Pass it as model to fetch it"):
            verify(VerifyJob(output=out, sample=1))
    assert asked == [("somebody/else", True)]
    with pytest.raises(DownloadError):
        verify(VerifyJob(output=out, sample=1, model="hf-hub:somebody/else"))
    assert asked[1:] == [("somebody/else", False)]


def test_a_file_that_others_put_there_is_named_and_is_no_problem(out: Path, run: Run) -> None:
    (out / "embeddings/.DS_Store").touch()
    (out / "embeddings/part-00000 (1).parquet").write_bytes((out / PART).read_bytes())
    report = verify(VerifyJob(output=out))
    assert report.problems == ()
    assert report.notes == (
        "passed over, as none of ours: 'embeddings/.DS_Store', 'embeddings/part-00000 (1).parquet'",
    )
    code, said, error = run("verify", out)
    assert (code, said) == (0, "")
    assert "passed over, as none of ours" in error
    assert clip.Store(out).table().num_rows == 7


def test_pixels_that_a_run_was_quantised_by_are_compared_with_their_hash(out: Path) -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)
    write_calibration(out, pixels)
    change_manifest(out, calibration={"pictures": 2, "sha256": Calibration(pixels).sha256})
    assert verify(VerifyJob(output=out)).problems == ()
    path = out / "_calibration.npy"
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert [problem.where for problem in verify(VerifyJob(output=out)).problems] == ["_calibration.npy"]


def test_a_sample_is_by_its_seed(folder: Path) -> None:
    jobs = [VerifyJob(output=folder / "out", sample=3, seed=seed) for seed in (1, 1, 2)]
    reports = [verify(job) for job in jobs]
    assert reports[0] == reports[1]
    with pytest.raises(InputError, match="sample: found -1"):
        dataclasses.replace(jobs[0], sample=-1)


def test_raw_vectors_need_not_be_of_length_one(folder: Path, tmp_path: Path) -> None:
    weights = next(folder.glob("*.pt"))
    job = embed_job(
        source=folder / "photos", output=tmp_path, model=str(weights), threads=1, normalize=False, dtype="float16"
    )
    clip.embed(job)
    report = verify(VerifyJob(output=tmp_path, sample=8))
    assert report.problems == ()
    norms = pc.list_flatten(pq.read_table(tmp_path / PART).column("embedding"))
    assert len(norms) == 7 * 32
