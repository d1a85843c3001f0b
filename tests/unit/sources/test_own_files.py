"""What this package wrote is left out where it lies inside an input: outputs, contact sheets."""

import io
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from kit import GOLDEN, formula
from kit.inputs import draw_photos
from kit.jobs import change_job, embed_job
from kit.outputs import read_rows_by_id
from PIL import Image

import clip
from clip.errors import InputError
from clip.jobs import DemoJob, EmbedJob, ExportJob, SearchJob
from clip.object_paths import is_object_url
from clip.own_files import LENGTH_MODULUS, OUTPUT_NAMES, explain_place, is_contact_sheet, is_output, mark_contact_sheet
from clip.sources.folders import walk
from clip.store.derived import OURS

NAMES = ["0.png", "1.png"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return draw_photos(tmp_path / "photos", NAMES)


def make_job(source: Path, output: Path, weights: Path, **choices: Any) -> EmbedJob:
    return embed_job(source=source, output=output, model=str(weights), threads=1, **choices)


@pytest.mark.parametrize("globs", [(), ("*",), ("**/*.parquet", "*.png")])
def test_an_output_inside_its_input_is_left_out_from_the_first_run_on(
    photos: Path, weights: Path, tmp_path: Path, globs: tuple[str, ...]
) -> None:
    (tmp_path / "link").symlink_to(photos)
    job = make_job(tmp_path / "link", photos / "made/out", weights, globs=globs)
    for _ in range(2):
        report = clip.embed(job)
        assert (report.read, report.ignored["output of clip"]) == (2, 1)
    assert list(read_rows_by_id(photos / "made/out")) == NAMES
    other = clip.embed(change_job(job, output=tmp_path / "other"))
    assert (other.read, other.ignored["output of clip"]) == (2, 1), "by its manifest"


def test_an_output_that_is_its_input_is_left_out_and_the_images_beside_it_are_read(photos: Path, weights: Path) -> None:
    job = make_job(photos, photos, weights, globs=("*.parquet", "*.png"))
    assert [clip.embed(job).resumed for _ in range(2)] == [0, 2]
    assert list(read_rows_by_id(photos)) == NAMES


def test_outputs_are_known_by_their_manifest_alone(photos: Path, tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "out-0.1.0/out", photos / "old")
    assert is_output(str(photos / "old"))
    for content in ("{}", '{"name": "app", "icons": []}', ""):
        (photos / "manifest.json").write_text(content)
        assert not is_output(str(photos))
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe/manifest.json")
    assert not is_output(str(tmp_path / "pipe"))
    ours = {name for name in OUTPUT_NAMES if OURS[""].fullmatch(name)}
    assert ours == OUTPUT_NAMES
    assert {"_plan", "embeddings", "failures", "_index", "manifest.json"} <= ours


def test_a_contact_sheet_inside_an_input_is_left_out_under_any_name(
    photos: Path, weights: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    job = make_job(photos, out, weights)
    clip.embed(job)
    (tmp_path / "vector.json").write_text(str(read_rows_by_id(out)["0.png"]["embedding"]))
    for k in (1, 2):
        sheet = photos / f"sheet{k}.png"
        clip.search(SearchJob(output=out, vector=str(tmp_path / "vector.json"), k=k, contact_sheet=sheet))
        with Image.open(sheet) as image:
            image.load()
            assert image.text["Software"].startswith("clip-turbo contact sheet")  # pyright: ignore[reportAttributeAccessIssue]
    (photos / "sheet1.png").rename(photos / "renamed.PNG")
    report = clip.embed(job)
    assert (report.resumed, report.ignored) == (2, {"contact sheet": 2})


@pytest.mark.parametrize("extra", range(0, 40, 13))
def test_a_marked_sheet_keeps_its_pixels_and_has_the_length(tmp_path: Path, extra: int) -> None:
    file = io.BytesIO()
    formula.picture(3, 40 + extra, 30).save(file, "PNG")
    marked = mark_contact_sheet(file.getvalue())
    assert Image.open(io.BytesIO(marked)).tobytes() == Image.open(file).tobytes()
    (tmp_path / "a.png").write_bytes(marked)
    assert is_contact_sheet(str(tmp_path / "a.png"), len(marked))
    assert len(marked) - len(file.getvalue()) < LENGTH_MODULUS + 100


def test_an_image_of_a_sheets_length_is_read_and_one_of_another_length_is_not_even_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = io.BytesIO()
    formula.picture(3, 40, 30).save(file, "PNG")
    marked = mark_contact_sheet(file.getvalue())
    (tmp_path / "a.png").write_bytes(marked.replace(b"contact sheet", b"another thing"))
    (tmp_path / "b.png").write_bytes(file.getvalue())
    opened: list[str] = []

    def note(path: str) -> Any:
        opened.append(path)
        return Path(path).open("rb")

    monkeypatch.setattr("clip.own_files.open_regular", note)
    assert [entry.id for entry in walk(str(tmp_path), [], Counter())] == ["a.png", "b.png"]
    assert opened == [str(tmp_path / "a.png")]


@pytest.mark.parametrize(
    "place", ["s3://bucket/out", "gs://b", Path("s3://bucket/out"), "https://h/x", "-", "file:///out", "file:out"]
)
def test_places_that_are_not_here_are_refused_with_what_to_do(place: str | Path, tmp_path: Path) -> None:
    if not is_object_url(place):  # where a run can be written
        with pytest.raises(InputError, match=r"^output: .* expected a path on this machine\. Pass "):
            EmbedJob(source=tmp_path, output=place)
    with pytest.raises(InputError, match=r"^target: "):
        ExportJob(output=tmp_path, target=place, format="npy")
    with pytest.raises(InputError, match=r"^output: "):
        DemoJob(output=place)
    with pytest.raises(InputError, match=r"^contact_sheet: "):
        SearchJob(output=tmp_path, texts=("x",), contact_sheet=place)


@pytest.mark.parametrize("place", ["out", "./-", "/tmp/s3:/x", "C:/out", "C:\\out", "a:b", "./file:x"])
def test_paths_of_this_machine_are_taken(place: str) -> None:
    assert explain_place(place) is None
