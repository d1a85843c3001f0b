"""Nothing is written or removed through a link that lies in an output, and nothing waits for a pipe in it."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from kit.altered import QUERY, write_output
from kit.in_process import Run
from kit.inputs import draw_photos
from kit.jobs import embed_job

import clip
from clip.errors import StoreError, StoreMismatchError
from clip.jobs.export import ExportJob
from clip.retrieval.index_file import check_index
from clip.store.lock import hold_lock
from clip.store.manifest import Manifest
from clip.store.writer import StoreWriter

PRECIOUS = ("part-00000.parquet", "exact.index", "rows.index", ".part-00001.parquet.1.tmp", "img_emb_0.npy")


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder that is not ours, with files of our names."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    for name in PRECIOUS:
        (folder / name).write_text("precious")
    return folder


def is_untouched(folder: Path) -> bool:
    return {path.name: path.read_text() for path in folder.iterdir()} == dict.fromkeys(PRECIOUS, "precious")


def link_folder(path: Path, target: Path) -> None:
    if path.exists():
        shutil.rmtree(path)
    path.symlink_to(target)


@pytest.mark.parametrize("choices", [{}, {"overwrite": True}, {"update": True}], ids=str)
@pytest.mark.parametrize("name", ["embeddings", "failures", "_index", "_plan", "_plan.new", "_plan.old"])
def test_a_run_refuses_a_folder_that_is_a_link(
    weights: Path, tmp_path: Path, elsewhere: Path, name: str, choices: dict[str, bool]
) -> None:
    photos, out = draw_photos(tmp_path / "photos", ["a.png"]), tmp_path / "out"
    out.mkdir()
    StoreWriter(out, Manifest(dim=8)).begin("input")
    link_folder(out / name, elsewhere)
    with pytest.raises(StoreMismatchError, match=rf"out/{name}: is a link, expected a folder"):
        clip.embed(embed_job(source=photos, output=out, model=str(weights), **choices))
    assert is_untouched(elsewhere)


def test_an_output_may_be_a_link_itself(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    photos = draw_photos(tmp_path / "photos", ["a.png"])
    assert clip.embed(embed_job(source=photos, output=tmp_path / "out", model=str(weights))).written == 1


def test_derived_files_are_not_written_through_a_link(tmp_path: Path, elsewhere: Path) -> None:
    out = write_output(tmp_path / "out")
    hits, vectors = clip.Index(out).search(vector=QUERY), clip.Store(out).vectors().copy()
    link_folder(out / "_index", elsewhere)
    for name in ("exact.index", "rows.index"):
        (elsewhere / name).unlink()
    assert clip.Index(out).search(vector=QUERY) == hits
    assert np.array_equal(clip.Store(out).vectors(), vectors)
    for name in ("exact.index", "rows.index"):
        (elsewhere / name).write_text("precious")
    with pytest.raises(StoreError, match="_index"):
        clip.Index(out)
    with pytest.raises(StoreError, match="a link, through which nothing is written"):
        check_index(clip.Store(out))
    assert is_untouched(elsewhere)


def test_a_link_in_the_place_of_a_file_is_replaced_and_not_followed(tmp_path: Path, elsewhere: Path) -> None:
    out = write_output(tmp_path / "out")
    for name in ("manifest.json", "_index/rows.index"):
        target = elsewhere / name.rpartition("/")[2]
        target.write_bytes((out / name).read_bytes())
        (out / name).unlink()
        (out / name).symlink_to(target)
    before = {path: path.read_bytes() for path in elsewhere.iterdir()}
    writer = StoreWriter(out, clip.Store(out).manifest)
    writer.begin(clip.Store(out).manifest.input_fingerprint or "")
    writer.finish(None)
    (out / "embeddings/part-00001.parquet").unlink()
    clip.Store(out).vectors()
    assert not any((out / name).is_symlink() for name in ("manifest.json", "_index/rows.index"))
    assert {path: path.read_bytes() for path in elsewhere.iterdir()} == before


@pytest.mark.parametrize("name", [".lock", ".lock.guard"])
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_lock_is_a_file(tmp_path: Path, elsewhere: Path, name: str, kind: str) -> None:
    if kind == "pipe":
        os.mkfifo(tmp_path / name)
    else:
        (tmp_path / name).symlink_to(elsewhere / PRECIOUS[0])
    if (name, kind) == (".lock", "link"):
        with hold_lock(tmp_path):  # what it leads to is no record, and the link is replaced
            assert not (tmp_path / name).is_symlink()
    else:
        with pytest.raises(StoreError, match="not a regular file"), hold_lock(tmp_path):
            pass
    assert is_untouched(elsewhere)


@pytest.mark.parametrize(
    "record",
    [
        '{"host": 7, "processes": null, "pid": 1, "began": "1", "owner": "x", "count": 1}',
        '{"host": "h", "processes": null, "pid": "../../x", "began": "1", "owner": "x", "count": 1}',
        "[" * 60_000,
    ],
)
def test_a_lock_that_no_job_wrote_is_taken_over(tmp_path: Path, record: str) -> None:
    (tmp_path / ".lock").write_text(record)
    with hold_lock(tmp_path):
        assert (tmp_path / ".lock").read_text() != record


def test_an_export_removes_nothing_through_a_link(run: Run, tmp_path: Path, elsewhere: Path) -> None:
    out, target = write_output(tmp_path / "out"), tmp_path / "to"
    clip.export(ExportJob(output=out, target=target, format="npy"))
    (target / "img_emb").symlink_to(elsewhere)
    code, _, error = run("export", out, target, "--format", "clip-retrieval", "--overwrite")
    assert (code, "a link, through which nothing is written" in error) == (1, True)
    assert is_untouched(elsewhere)
    os.mkfifo(tmp_path / "pipe")
    shutil.rmtree(target)
    target.mkdir()
    os.mkfifo(target / "export.json")
    assert run("export", out, target, "--format", "npy")[0] == 2
