"""Several outputs become one: what one run over all their inputs would have written, without embedding anything."""

import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kit.in_process import Run
from kit.inputs import draw_photos, number_names
from kit.jobs import embed_job
from kit.outputs import read_manifest, read_rows_by_id

import clip
from clip.batch.verify import verify
from clip.errors import InputError, StoreError, StoreMismatchError
from clip.jobs import EmbedJob, MergeJob, VerifyJob
from clip.store import merge as merge_module
from clip.store.merge import merge


class KilledError(BaseException):
    """What stands for a kill."""


def make_job(source: Any, output: Path, weights: Path, **choices: Any) -> EmbedJob:
    options = {"threads": 1, "shard_size": 3} | choices
    return embed_job(source=source, output=output, model=str(weights), **options)


@pytest.fixture
def albums(tmp_path: Path) -> list[Path]:
    """Two folders of images with equal names, one image of each broken, and a tar with a broken member."""
    folders = [tmp_path / "all" / name for name in ("one", "two")]
    for place, folder in enumerate(folders):
        draw_photos(folder, number_names(7), first=10 * place, broken=["03.broken.jpg"])
    packed = draw_photos(tmp_path / "packed", number_names(4), first=30, broken=["01.broken.jpg"])
    with tarfile.open(folders[1] / "some.tar", "w") as archive:
        archive.add(packed, "inside")
    return [*folders, folders[1] / "some.tar"]


@pytest.fixture
def outputs(albums: list[Path], weights: Path, tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"out-{n}" for n in range(len(albums))]
    for album, output in zip(albums, paths, strict=True):
        clip.embed(make_job(album, output, weights))
    return paths


def test_the_result_is_that_of_one_run_over_all_inputs(
    albums: list[Path], outputs: list[Path], weights: Path, tmp_path: Path
) -> None:
    report = merge(MergeJob(source=outputs, output=tmp_path / "merged"))
    inputs = [str(album) for album in albums]
    whole = clip.embed(make_job(inputs, tmp_path / "whole", weights))
    assert (report.read, report.written, report.failed) == (whole.read, whole.written, whole.failed)
    for folder in ("embeddings", "failures"):
        found, expected = (read_rows_by_id(tmp_path / name, folder) for name in ("merged", "whole"))
        assert found.keys() == expected.keys()
        for own_id, row in found.items():
            vectors = [np.array(one.pop("embedding", 0)) for one in (row, expected[own_id])]
            assert np.abs(vectors[0] - vectors[1]).max() < 1e-5
            assert row == expected[own_id]
    assert verify(VerifyJob(output=tmp_path / "merged", sample=20)).problems == ()
    counts = [read_manifest(tmp_path / name)["counts"] for name in ("merged", "whole")]
    assert counts[0] == counts[1]
    assert clip.embed(make_job(inputs, tmp_path / "merged", weights)).resumed == whole.read, "nothing is left to do"


def test_parts_of_one_run_are_put_together_by_links(albums: list[Path], weights: Path, tmp_path: Path) -> None:
    outputs = [tmp_path / f"part-{n}" for n in range(3)]
    for n, output in enumerate(outputs):
        with pytest.raises(StoreError, match="parts are in none of them") if n else pytest.raises(StoreError):
            merge(MergeJob(source=outputs[:n] or [tmp_path / "none"], output=tmp_path / "early"))
        clip.embed(make_job(albums[0], output, weights, part=f"{n}/3"))
    report = merge(MergeJob(source=outputs, output=tmp_path / "merged"))
    assert (report.linked, report.copied) == (3, 0)
    part = "embeddings/part-00001.parquet"
    assert (tmp_path / "merged" / part).stat().st_ino == (outputs[1] / part).stat().st_ino
    clip.embed(make_job(albums[0], tmp_path / "whole", weights))
    for folder in ("embeddings", "failures"):
        for path in (tmp_path / "whole" / folder).iterdir():
            assert (tmp_path / "merged" / folder / path.name).read_bytes() == path.read_bytes()
    assert read_manifest(tmp_path / "merged")["counts"] == read_manifest(tmp_path / "whole")["counts"]
    assert verify(VerifyJob(output=tmp_path / "merged")).problems == ()


def test_an_export_of_several_is_that_of_their_merge(outputs: list[Path], tmp_path: Path, run: Run) -> None:
    merge(MergeJob(source=outputs, output=tmp_path / "merged"))
    assert run("export", tmp_path / "merged", tmp_path / "one", "--format", "npy")[0] == 0
    code, _, said = run("export", *outputs, tmp_path / "several", "--format", "npy")
    assert code == 0, said
    for name in ("vectors.npy", "ids.parquet"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "several" / name).read_bytes()
    assert not list(tmp_path.glob(".clip-export-*"))
    code, _, said = run("export", outputs[0], outputs[0], tmp_path / "twice", "--format", "npy")
    assert (code, "twice" in said, (tmp_path / "twice").exists()) == (2, True, False)


def test_the_same_disk_is_not_needed(outputs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(merge_module.os, "link", refuse)
    shutil.copytree(outputs[0], tmp_path / "copy")
    report = merge(MergeJob(source=[outputs[0], tmp_path / "copy"], output=tmp_path / "merged"))
    assert (report.read, report.linked) == (8, 3), "each row comes once"
    assert verify(VerifyJob(output=tmp_path / "merged")).problems == ()


@pytest.mark.parametrize(
    ("choices", "field"),
    [({"precision": "bf16"}, "precision"), ({"orient": "exif"}, "policies"), ({"dtype": "float16"}, "dtype")],
)
def test_outputs_that_do_not_fit_are_refused_by_the_first_field(
    choices: dict[str, Any], field: str, albums: list[Path], outputs: list[Path], weights: Path, tmp_path: Path
) -> None:
    try:
        clip.embed(make_job(albums[1], tmp_path / "other", weights, **choices))
    except clip.errors.ClipError as exc:
        pytest.skip(str(exc))
    with pytest.raises(StoreMismatchError, match=f"other: holds a run whose {field} is"):
        merge(MergeJob(source=[outputs[0], tmp_path / "other"], output=tmp_path / "merged"))
    assert not (tmp_path / "merged").exists()


def test_an_image_in_two_outputs_is_named(outputs: list[Path], weights: Path, tmp_path: Path) -> None:
    clip.embed(make_job(tmp_path / "all", tmp_path / "both", weights))
    with pytest.raises(InputError, match=r"'one/00\.png': found as the id of .*all/one/00\.png"):
        merge(MergeJob(source=[outputs[0], tmp_path / "both"], output=tmp_path / "merged"))
    with pytest.raises(InputError, match="twice"):
        MergeJob(source=[outputs[0], outputs[0]], output=tmp_path / "merged")


def test_a_run_that_is_not_over_is_refused(
    albums: list[Path], outputs: list[Path], weights: Path, tmp_path: Path
) -> None:
    (outputs[1] / "embeddings/part-00000.parquet").unlink()
    with pytest.raises(StoreError, match="part-00000"):
        merge(MergeJob(source=outputs[:2], output=tmp_path / "merged"))
    clip.embed(make_job(albums[1], tmp_path / "begun", weights, part="0/2"))
    with pytest.raises(StoreError, match="not over"):
        merge(MergeJob(source=[outputs[0], tmp_path / "begun"], output=tmp_path / "other"))


@pytest.mark.parametrize("calls", [1, 3, 6])
def test_a_merge_that_was_killed_goes_on(
    calls: int, outputs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = MergeJob(source=outputs, output=tmp_path / "merged")
    copy, done = merge_module._copy, 0

    def kill(*arguments: Any) -> None:
        nonlocal done
        done += 1
        if done == calls:
            raise KilledError
        copy(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(merge_module, "_copy", kill)
        with pytest.raises(KilledError):
            merge(job)
    assert merge(job).copied == 7 - (calls - 1)
    assert verify(VerifyJob(output=tmp_path / "merged")).problems == ()
    assert merge(job).copied == 0


def test_another_run_is_not_written_over(outputs: list[Path], weights: Path, tmp_path: Path) -> None:
    """Not even one of the same weights and of as many shards."""
    other = draw_photos(tmp_path / "others", number_names(7), first=70, broken=["03.broken.jpg"])
    clip.embed(make_job(other, tmp_path / "other", weights))
    before = read_rows_by_id(tmp_path / "other")
    for target in (tmp_path / "other", outputs[2]):
        with pytest.raises(StoreMismatchError, match="holds another run"):
            merge(MergeJob(source=outputs[:1], output=target))
    assert read_rows_by_id(tmp_path / "other") == before
    assert verify(VerifyJob(output=tmp_path / "other")).problems == ()
