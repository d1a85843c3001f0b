"""Several outputs are searched as one; ones that do not fit are refused by the first field in which they differ."""

from pathlib import Path
from typing import Any

import pytest
from kit.in_process import Run
from kit.inputs import draw_photos, number_names
from kit.jobs import embed_job

import clip
from clip.errors import InputError, StoreMismatchError
from clip.jobs import MergeJob, SearchJob
from clip.retrieval.search import search
from clip.store.merge import merge


@pytest.fixture
def outputs(weights: Path, tmp_path: Path) -> list[Path]:
    """Two outputs of folders with equal names, in float32 and in float16."""
    paths: list[Path] = []
    for place, dtype in enumerate(("float32", "float16")):
        photos = draw_photos(tmp_path / "photos" / f"album-{place}", number_names(6), first=10 * place)
        paths.append(tmp_path / f"out-{place}")
        clip.embed(embed_job(source=photos, output=paths[-1], model=str(weights), threads=1, dtype=dtype))
    return paths


def find(output: Any, tmp_path: Path, place: int, **choices: Any) -> tuple[clip.Hit, ...]:
    image = str(tmp_path / "photos" / f"album-{place}" / "03.png")
    return search(SearchJob(output=output, images=(image,), device="cpu", **choices)).hits


def test_the_best_of_all_outputs_come_first(outputs: list[Path], tmp_path: Path) -> None:
    for place in (0, 1):
        hits = find(outputs, tmp_path, place, k=7)
        each = [hit for output in outputs for hit in find(output, tmp_path, place, k=12)]
        assert len(each) == 12
        assert list(hits) == sorted(each, key=lambda hit: (-hit.score, hit.id, hit.path))[:7]
        assert hits[0].path == str(tmp_path / "photos" / f"album-{place}" / "03.png")


def test_hits_are_those_of_the_merged_output(weights: Path, outputs: list[Path], tmp_path: Path) -> None:
    again = tmp_path / "again"
    clip.embed(embed_job(source=tmp_path / "photos/album-1", output=again, model=str(weights), threads=1))
    merge(MergeJob(source=[outputs[0], again], output=tmp_path / "merged"))
    merged, several = (find(output, tmp_path, 1) for output in (tmp_path / "merged", [outputs[0], again]))
    assert [(hit.path, hit.score) for hit in merged] == [(hit.path, hit.score) for hit in several]


def test_outputs_that_do_not_fit_are_refused(weights: Path, outputs: list[Path], tmp_path: Path) -> None:
    other = embed_job(source=tmp_path / "photos", output=tmp_path / "turned", model=str(weights), orient="exif")
    clip.embed(other)
    with pytest.raises(StoreMismatchError, match="turned: holds a run whose policies is"):
        find([outputs[0], tmp_path / "turned"], tmp_path, 0)
    with pytest.raises(InputError, match="root"):
        SearchJob(output=outputs, texts=("a",), root=tmp_path)


def test_a_contact_sheet_shows_no_wrong_image(outputs: list[Path], tmp_path: Path) -> None:
    """Of two hits with one id in two outputs only one could be shown."""
    with pytest.raises(InputError, match="is the id of hits in two"):
        find(outputs, tmp_path, 0, k=12, contact_sheet=tmp_path / "sheet.png")
    find(outputs, tmp_path, 0, k=1, contact_sheet=tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size > 100


def test_the_commands_take_several_outputs(run: Run, outputs: list[Path], tmp_path: Path) -> None:
    image = tmp_path / "photos/album-1/03.png"
    code, stdout, _ = run("search", *outputs, "-i", image, "--plain", "-n", "12")
    assert (code, len(stdout.splitlines())) == (0, 12)
    assert stdout.splitlines()[0].endswith("album-1/03.png")
    assert run("index", *outputs)[0] == 0
    code, stdout, stderr = run("verify", *outputs)
    assert (code, stdout, stderr.count("no problem")) == (0, "", 2)
    (outputs[1] / "embeddings/part-00000.parquet").unlink()
    code, stdout, _ = run("verify", *outputs)
    assert code == 1
    assert stdout.startswith(f"{outputs[1]}/")
