"""An output that version 0.1.0 wrote is opened, verified, searched, resumed and updated by this version.

Source:  tests/golden/out-0.1.0/make.py says how it was made. Its vectors are those of another CPU, so that cosines are
         compared and not bits, but where rows are carried over.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pyarrow.parquet as pq
import pytest
from kit import GOLDEN, formula
from kit.jobs import embed_job

import clip
from clip.errors import StoreMismatchError
from clip.jobs import EmbedReport, ExportJob, SearchJob, VerifyJob
from clip.store.manifest import Manifest
from clip.store.plan import read_plan

PHOTOS = [
    "0-white-heart-left-of-green-square.jpg",
    "1-black-circle-left-of-blue-heart.jpg",
    "2-white-star.jpg",
    "3-blue-triangle.jpg",
    "4-red-ring-above-green-heart.jpg",
]
MEMBERS = [
    "more.tar!0-orange-triangle-above-purple-ring.jpg",
    "more.tar!1-orange-heart-above-green-heart.jpg",
    "more.tar!2-4-red-crosses.jpg",
]
BROKEN = "broken.jpg"
QUERY = "a blue triangle"
# Scores are at least 0.017 apart.
HITS = [PHOTOS[3], MEMBERS[0], PHOTOS[1], PHOTOS[0], PHOTOS[2], PHOTOS[4], MEMBERS[1], MEMBERS[2]]
MIN_COSINE = 0.9999  # between vectors of one program on two CPUs


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folder in which the run was made, its files as old as the plan says; the current folder."""
    copy = tmp_path / "old"
    shutil.copytree(GOLDEN / "out-0.1.0", copy)
    for path in sorted(copy.glob("out/_plan/shard-*.parquet")):
        for row in pq.read_table(path).to_pylist():
            os.utime(copy / os.fsdecode(row["path"]), ns=(row["modified_ns"], row["modified_ns"]))
    monkeypatch.chdir(copy)
    return copy


def embed(**choices: Any) -> EmbedReport:
    """The job that the run had."""
    return clip.embed(
        embed_job(
            **{"source": ("photos", "more.tar"), "output": "out", "model": "sketch"},
            **{"hashes": True, "shard_size": 4, "threads": 1},
            **choices,
        )
    )


def read_files() -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(Path("out").rglob("*")) if path.is_file()}


def read_vectors() -> dict[str, np.ndarray]:
    store = clip.Store("out")
    return dict(zip(store.table(["id"]).column("id").to_pylist(), np.array(store.vectors()), strict=True))


def assert_verified(read: int, written: int) -> None:
    report = clip.verify(VerifyJob(output="out", sample=read))
    assert report.problems == ()
    assert (report.read, report.written, report.failed, report.sampled) == (read, written, read - written, read)
    assert report.min_cosine is not None
    assert report.min_cosine > MIN_COSINE


def test_its_manifest_is_read_and_written_back_key_by_key() -> None:
    content = json.loads(Path("out/manifest.json").read_bytes())
    manifest = Manifest.from_json(content)
    assert list(manifest.to_json().items()) == list(content.items())
    assert (manifest.model, manifest.dim, manifest.kind, manifest.hashes) == ("sketch", 256, "images", True)
    assert (manifest.source, manifest.shard_size) == (("photos", "more.tar"), 4)


def test_it_is_opened_and_exported() -> None:
    store = clip.Store("out")
    table, vectors, plan = store.table(), store.vectors(), read_plan(store.path)
    assert table.column("id").to_pylist() == [*PHOTOS, *MEMBERS]
    assert store.failures().column("id").to_pylist() == [BROKEN]
    assert (vectors.shape, vectors.dtype) == ((8, 256), np.float32)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert plan is not None
    assert (plan.shards, plan.entries, plan.containers, plan.total) == (3, 7, 1, None)
    assert plan.to_json() == json.loads(Path("out/_plan/plan.json").read_bytes())
    assert clip.export(ExportJob(output="out", target="npy", format="npy")).rows == 8
    assert np.array_equal(np.load("npy/vectors.npy"), vectors)


def test_it_is_verified_and_all_its_images_give_the_same_vectors_again() -> None:
    report = clip.verify(VerifyJob(output="out"))
    assert report.problems == ()
    assert report.notes == ("6 files carry no checksum, as of version 0.1.0: a change of a bit in them is not found",)
    assert_verified(read=9, written=8)


def test_it_is_searched() -> None:
    report = clip.search(SearchJob(output="out", texts=(QUERY,)))
    assert report.rows == 8
    assert [hit.id for hit in report.hits] == HITS


def test_a_run_that_is_over_is_resumed_with_nothing_to_do() -> None:
    before = read_files()
    report = embed()
    assert (report.read, report.written, report.failed, report.resumed) == (9, 8, 1, 9)
    after = read_files()
    lasting = [name for name in before if "part-" in name or name in ("out/manifest.json", "out/_plan/plan.json")]
    assert len(lasting) == 8
    assert [name for name in lasting if after[name] != before[name]] == ["out/_plan/plan.json", "out/manifest.json"]
    for name in ("out/_plan/plan.json", "out/manifest.json"):
        content = json.loads(after[name])
        assert len(content.pop("checksum")) == 8
        assert content == json.loads(before[name])


def test_a_run_that_was_interrupted_is_resumed_where_it_was() -> None:
    before, vectors = read_files(), read_vectors()
    manifest = json.loads(before["out/manifest.json"])
    Path("out/manifest.json").write_text(json.dumps(manifest | {"counts": None}))
    Path("out/embeddings/part-00001.parquet").unlink()
    report = embed()
    assert (report.read, report.written, report.failed, report.resumed) == (9, 8, 1, 7)
    after = read_files()
    changed = [name for name in before if "part-" in name and after[name] != before[name]]
    assert changed == ["out/embeddings/part-00001.parquet", "out/failures/part-00001.parquet"]
    assert json.loads(after["out/manifest.json"]).items() >= manifest.items()
    assert read_vectors()[PHOTOS[4]] @ vectors[PHOTOS[4]] > MIN_COSINE
    assert_verified(read=9, written=8)


def test_it_is_brought_up_to_date() -> None:
    before, vectors = read_files(), read_vectors()
    Path("photos", PHOTOS[1]).unlink()
    formula.picture(7, 60, 50).save("photos/5-new.png")
    report = embed(update=True)
    assert (report.read, report.written, report.failed) == (9, 8, 1)
    assert (report.resumed, report.removed) == (8, 1)
    updated = read_vectors()
    assert list(updated) == [PHOTOS[0], *PHOTOS[2:], *MEMBERS, "5-new.png"]
    assert clip.Store("out").failures().column("id").to_pylist() == [BROKEN]
    carried_over = vectors.keys() - {PHOTOS[1]}
    assert {own_id: updated[own_id].tobytes() for own_id in carried_over} == {
        own_id: vectors[own_id].tobytes() for own_id in carried_over
    }
    after = read_files()
    assert [name for name in before if "part-" in name and after[name] != before[name]] == [
        "out/embeddings/part-00000.parquet",
        "out/failures/part-00000.parquet",
    ]
    assert_verified(read=9, written=8)
    assert "base" not in json.loads(after["out/manifest.json"]), "so its ids stay those of each input"


def test_its_images_are_found_from_another_folder_and_its_archive_is_not_read_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    report = clip.verify(VerifyJob(output=folder / "out", sample=9, root=folder))
    assert (report.problems, report.sampled) == ((), 9)
    options = {"source": (str(folder / "photos"), str(folder / "more.tar")), "output": folder / "out"}
    report = clip.embed(embed_job(**options, model="sketch", hashes=True, shard_size=4, threads=1, update=True))
    assert (report.read, report.resumed, report.removed) == (9, 9, 0)


def test_it_is_resumed_with_the_pillow_that_made_its_pixels_and_with_no_other() -> None:
    manifest = json.loads(Path("out/manifest.json").read_bytes())
    assert manifest["preprocess"] == f"openai-clip/pillow-{PIL.__version__}", "constraints.txt names the version"
    Path("out/manifest.json").write_text(json.dumps(manifest | {"preprocess": "openai-clip/pillow-12.0.0"}))
    with pytest.raises(StoreMismatchError, match=r'preprocess is "openai-clip/pillow-12\.0\.0", expected "openai'):
        embed()
