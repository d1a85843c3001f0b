"""clip.find_duplicates and `clip duplicates`: what counts as one image, which is kept, what is listed for removal."""

import csv
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from kit.in_process import Run
from kit.jobs import embed_job
from kit.photos import cut_photo, make_wide_photos
from PIL import Image, PngImagePlugin

import clip
from clip.errors import InputError
from clip.jobs.duplicates import MIN_COSINE

Find = Callable[..., list[set[str]]]


@pytest.fixture(scope="module")
def photos() -> list[Image.Image]:
    return [cut_photo(wide).resize((300, 240)) for wide in make_wide_photos(6)]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, weights: Path, photos: list[Image.Image]) -> Path:
    """Copies, edits and others of six photos; the tiny network's vectors are all alike, so that pixels decide."""
    folder = tmp_path_factory.mktemp("duplicates") / "photos"
    folder.mkdir()
    for number, photo in enumerate(photos):
        photo.save(folder / f"{number}.png")
    shutil.copy(folder / "0.png", folder / "0-copy.png")
    note = PngImagePlugin.PngInfo()
    note.add_text("Comment", "a comment that changes the bytes and no pixel")
    photos[1].save(folder / "1-noted.png", pnginfo=note)
    photos[2].resize((150, 120)).save(folder / "2-small.jpg", quality=60)
    photos[2].resize((600, 480)).save(folder / "2-large.jpg", quality=90)
    photos[3].transpose(Image.Transpose.ROTATE_90).save(folder / "3-turned.png")
    photos[4].crop((20, 10, 270, 210)).save(folder / "4-crop.png")
    embed(folder, folder.parent / "out", weights)
    return folder.parent / "out"


def embed(folder: Path, out: Path, weights: Path) -> None:
    clip.embed(embed_job(source=folder, output=out, model=str(weights), threads=1))


def find(out: Path, **options: object) -> list[set[str]]:
    report = clip.find_duplicates(clip.DuplicatesJob(output=out, **options))  # type: ignore[arg-type]
    assert report.group_count == len(report.groups)
    assert report.duplicates == sum(len(group.images) - 1 for group in report.groups)
    return [{image.id for image in group.images} for group in report.groups]


SAME = [{"0.png", "0-copy.png"}, {"1.png", "1-noted.png"}]
EDITED = [*SAME, {"2.png", "2-small.jpg", "2-large.jpg"}, {"3.png", "3-turned.png"}, {"4.png", "4-crop.png"}]


def test_same_is_by_bytes_and_pixels(out: Path) -> None:
    assert find(out, level="same", min_cosine=0.5) == SAME
    report = clip.find_duplicates(clip.DuplicatesJob(output=out, level="same", min_cosine=0.5))
    assert [group.images[1].like for group in report.groups] == ["bytes", "pixels"]


def test_edited_is_by_pixels(out: Path) -> None:
    assert find(out, min_cosine=0.5) == EDITED


def test_a_search_shows_of_each_group_the_best_hit_alone(run: Run, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MIN_COSINE, "edited", 0.5)
    query = ("search", out, "--like", "5.png", "--plain", "-n", 20)
    every = [Path(path).name for path in run(*query)[1].splitlines()]
    grouped = [Path(path).name for path in run(*query, "--group-duplicates")[1].splitlines()]
    assert len(every) == 11
    assert grouped == [name for name in every if name in grouped]  # in the same order
    for group in EDITED:
        shown = [name for name in grouped if name in group]
        if "4.png" in group and every.index("4-crop.png") < every.index("4.png"):
            assert shown == ["4-crop.png", "4.png"]  # the whole image shows more than a crop of it
        else:
            assert len(shown) == 1, group


def test_similar_is_by_vectors_alone(out: Path) -> None:
    vectors = clip.Store(out).vectors().astype(np.float64)
    cosines = (vectors @ vectors.T)[np.triu_indices(len(vectors), 1)]
    bound = float(np.sort(cosines)[-30:-28].mean())
    report = clip.find_duplicates(clip.DuplicatesJob(output=out, level="similar", min_cosine=bound))
    assert report.proposed == 29
    assert report.percentile == pytest.approx(100 * (1 - 29 / len(cosines)))
    assert not any(image.removable for image in report.groups[0].images)


def test_only_pairs_of_at_least_the_cosine_are_compared(out: Path) -> None:
    assert find(out, min_cosine=1) == [] or all(group in SAME for group in find(out, min_cosine=1))


def test_the_largest_is_kept_then_the_oldest_then_the_first_by_name(
    tmp_path: Path, weights: Path, photos: list[Image.Image]
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("b", "a", "old"):
        photos[0].save(folder / f"{name}.png")
        os.utime(folder / f"{name}.png", (1e9, 1e9 - (name == "old")))
    for name in ("y", "x"):
        photos[1].save(folder / f"{name}.png")
        os.utime(folder / f"{name}.png", (1e9, 1e9))
    photos[2].save(folder / "small.png")
    photos[2].resize((450, 360)).save(folder / "zz-large.jpg")
    embed(folder, tmp_path / "out", weights)
    report = clip.find_duplicates(clip.DuplicatesJob(output=tmp_path / "out", min_cosine=0.5))
    kept = [group.images[0].id for group in report.groups]
    assert sorted(kept) == ["old.png", "x.png", "zz-large.jpg"]
    assert all(group.images[0].keep and not group.images[0].removable for group in report.groups)
    assert all(image.removable and not image.keep for group in report.groups for image in group.images[1:])


def test_not_kept_lists_files_alone_and_never_one_that_is_kept(
    tmp_path: Path, weights: Path, photos: list[Image.Image], run: Run
) -> None:
    folder = tmp_path / "photos"
    (folder / "below").mkdir(parents=True)
    photos[0].save(folder / "a.png")
    shutil.copy(folder / "a.png", folder / "below/b \n.png")
    (folder / "link.png").symlink_to("a.png")
    (folder / "other-way").symlink_to("below", target_is_directory=True)
    names = ["a.png", "link.png", "below/b \n.png", "other-way/b \n.png"]
    (tmp_path / "list.csv").write_text("path\n" + "".join(f'"{folder / name}"\n' for name in names))
    with tarfile.open(tmp_path / "more.tar", "w") as tar:
        tar.add(folder / "a.png", "c.png")
    inputs = [tmp_path / "list.csv", tmp_path / "more.tar"]
    job = embed_job(source=inputs, output=tmp_path / "out", model=str(weights), threads=1, quoting="standard")
    assert clip.embed(job).written == 5
    before = sorted(tmp_path.rglob("*"))
    code, text, errors = run(
        "duplicates", str(tmp_path / "out"), "--level", "same", "--not-kept", "--print0", "--min-cosine", "0.5"
    )
    assert code == 0
    listed = [Path(name) for name in text.split("\0")[:-1]]
    kept = folder / "a.png"
    assert listed
    assert all(path.resolve() != kept.resolve() and path.suffix == ".png" for path in listed)
    for path in listed:
        path.unlink(missing_ok=True)
    assert kept.exists()
    assert "are not listed" in errors
    assert {path for path in before if path.exists()} == set(before) - set(listed)


def test_a_crop_joins_one_image_and_two_of_a_burst_stay_apart(tmp_path: Path, weights: Path) -> None:
    """What two photos of a burst share is a crop of both; by it they would be one group."""
    wide = list(make_wide_photos(2))[1].resize((480, 400))  # a mosaic
    (tmp_path / "photos").mkdir()
    for name, place in {
        "first": (0, 0, 400, 400),
        "second": (48, 0, 448, 400),
        "shared": (60, 20, 380, 380),
        "shared-small": (60, 20, 380, 380),
    }.items():
        cut = wide.crop(place)
        (cut.resize((160, 180)) if name == "shared-small" else cut).save(tmp_path / f"photos/{name}.png")
    embed(tmp_path / "photos", tmp_path / "out", weights)
    (group,) = find(tmp_path / "out", min_cosine=0.5)
    assert group >= {"shared.png", "shared-small.png"}
    assert len(group & {"first.png", "second.png"}) == 1


def test_files_that_are_gone_are_in_no_group(tmp_path: Path, weights: Path, photos: list[Image.Image]) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a", "b", "c"):
        photos[0].save(folder / f"{name}.png")
    embed(folder, tmp_path / "out", weights)
    (folder / "c.png").unlink()
    report = clip.find_duplicates(clip.DuplicatesJob(output=tmp_path / "out"))
    assert [{image.id for image in group.images} for group in report.groups] == [{"a.png", "b.png"}]
    assert report.unreadable == 1


def test_each_group_is_handed_on_and_not_kept_in_memory(out: Path) -> None:
    groups: list[clip.DuplicateGroup] = []
    report = clip.find_duplicates(clip.DuplicatesJob(output=out, level="same", min_cosine=0.5), groups.append)
    assert (report.groups, report.group_count) == ((), 2)
    assert [group.number for group in groups] == [1, 2]


def test_the_command_writes_a_table_json_csv_and_a_page(out: Path, run: Run, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    code, text, errors = run("duplicates", str(out), "--level", "same", "--min-cosine", "0.5", "--html", str(page))
    assert code == 0
    assert text.startswith("group 1: 2 images\n  keep")
    assert "2 duplicates in 2 groups of 12 images (same)" in errors
    assert "% of all pairs" in errors
    assert page.read_text().count("<figure") == 4
    _, text, _ = run("duplicates", str(out), "--level", "same", "--min-cosine", "0.5", "--json")
    *groups, report = map(json.loads, text.splitlines())
    assert [len(group["images"]) for group in groups] == [2, 2]
    assert report["group_count"] == 2
    _, text, _ = run("duplicates", str(out), "--level", "same", "--min-cosine", "0.5", "--csv")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [(row["group"], row["keep"]) for row in rows] == [("1", "1"), ("1", "0"), ("2", "1"), ("2", "0")]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--json", "--csv"], "found several of"),
        (["--print0"], "--print0 is of --not-kept"),
        (["--not-kept", "--level", "similar"], "whose pixels were compared"),
        (["--min-cosine", "2"], "--min-cosine: found 2.0"),
    ],
)
def test_wrong_flags_are_refused(out: Path, run: Run, flags: list[str], message: str) -> None:
    code, _, errors = run("duplicates", str(out), *flags)
    assert code == 2
    assert message in errors


def test_texts_have_no_duplicates(tmp_path: Path, text_weights: Path) -> None:
    (tmp_path / "texts.txt").write_text("a cat\na dog\n")
    job = embed_job(
        source=tmp_path / "texts.txt", output=tmp_path / "out", model=str(text_weights), threads=1, texts=True
    )
    clip.embed(job)
    with pytest.raises(InputError, match="holds texts, expected images"):
        clip.find_duplicates(clip.DuplicatesJob(output=tmp_path / "out"))
