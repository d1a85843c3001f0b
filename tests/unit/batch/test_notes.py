"""What a run says at its end: files that are not read, images stored turned, rows with warnings."""

import io
import json
import struct
import tarfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit import checkpoints, damage, formula
from kit.in_process import Run
from kit.jobs import embed_job
from kit.outputs import read_rows_by_id
from PIL import ExifTags, Image

import clip
from clip.images.adjust import read_orientation
from clip.images.metadata import describe_damage, is_stored_turned
from clip.images.open import open_encoded
from clip.jobs import SearchJob, VerifyJob

RAW = damage.make_raw([damage.encode(formula.picture(3, 96, 64), "JPEG")], orientation=6)
BESIDE = {"a.nef": RAW, "b.DNG": RAW, "c.mov": damage.VIDEO, "d.txt": b"a text"}


def with_orientation(value: int, size: tuple[int, int] = (40, 30)) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = value
    return damage.encode(formula.picture(value, *size), "JPEG", exif=exif)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    contents = (
        BESIDE | {f"{n}.jpg": with_orientation(n) for n in (1, 3, 6)} | {"video behind.jpg": damage.JPEG + damage.VIDEO}
    )
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return folder


def pack(photos: Path, kind: str) -> Path:
    path = photos.with_suffix(f".{kind}")
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for file in sorted(photos.iterdir()):
                archive.write(file, file.name)
    elif kind == "tar":
        with tarfile.open(path, "w") as archive:
            archive.add(photos, ".")
    else:
        path.write_text("".join(f"{file}\n" for file in sorted(photos.iterdir()) if file.suffix != ".txt"))
    return path


@pytest.mark.parametrize("form", ["folder", "zip", "tar", "txt"])
def test_files_of_other_kinds_are_named_at_the_end_with_what_helps(
    photos: Path, form: str, run: Run, tmp_path: Path
) -> None:
    source = photos if form == "folder" else pack(photos, form)
    weights = checkpoints.write(tmp_path)
    code, _, said = run("embed", source, "-o", tmp_path / "out", "-m", weights)
    assert code == 3
    lines = said.splitlines()
    assert "2 RAW: pass --raw-previews to embed the JPEG inside each" in lines
    assert "1 video: take images out of each, as with: ffmpeg -i VIDEO -vf fps=1 %04d.jpg" in lines
    assert "2 images are stored turned; --orient exif turns them" in lines
    assert "1 with a warning" in lines[-1]
    assert "`" not in said
    counts = json.loads((tmp_path / "out/manifest.json").read_text())["counts"]
    assert counts["written"] == 4
    if form != "txt":
        assert counts["ignored"] == {"RAW": 2, "video": 1, "not an image": 1}
        assert "ignored: 2 RAW, 1 not an image, 1 video" in lines[-1]
    assert clip.verify(VerifyJob(output=tmp_path / "out")).problems == ()


def test_nothing_is_said_and_the_code_is_0_where_files_are_chosen_and_turned(
    photos: Path, run: Run, tmp_path: Path
) -> None:
    weights = checkpoints.write(tmp_path)
    flags = ["-m", weights, "--glob", "*.jpg", "--orient", "exif"]
    code, _, said = run("embed", photos, "-o", tmp_path / "out", *flags)
    assert code == 0, said
    assert "RAW" not in said
    assert "turned" not in said


@pytest.mark.parametrize("isolate", [False, True])
def test_previews_and_warnings_are_in_the_rows(photos: Path, isolate: bool, tmp_path: Path) -> None:
    job = embed_job(
        source=photos,
        output=tmp_path / "out",
        model=str(checkpoints.write(tmp_path)),
        raw_previews=True,
        isolate=isolate,
    )
    report = clip.embed(job)
    assert (report.written, report.failed, report.warned, report.stored_turned) == (6, 0, 3, 4)
    assert report.unread == {"video": 1}
    rows = read_rows_by_id(tmp_path / "out")
    assert {name: row["warning"] for name, row in rows.items()} == {
        "1.jpg": None,
        "3.jpg": None,
        "6.jpg": None,
        "a.nef": "the JPEG of 96 x 64 px inside a RAW photo",
        "b.DNG": "the JPEG of 96 x 64 px inside a RAW photo",
        "video behind.jpg": f"{len(damage.VIDEO):,} bytes behind the end of the image (a video) are left out",
    }
    again = clip.embed(job)
    assert (again.resumed, again.written) == (6, 6)
    verified = clip.verify(VerifyJob(output=tmp_path / "out", sample=6))
    assert (verified.problems, verified.sampled) == ((), 6)


def test_a_folder_of_nothing_else_is_refused_with_what_helps(run: Run, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for name in ("a.nef", "b.mp4"):
        (tmp_path / "photos" / name).write_bytes(RAW)
    code, _, said = run("embed", tmp_path / "photos", "-o", tmp_path / "out", "--untrained", "0")
    assert code == 2
    assert "nothing but 1 RAW, 1 video, expected images. For RAW: pass --raw-previews" in said
    code, _, said = run("embed", tmp_path / "photos" / "a.nef", "-o", tmp_path / "out", "--untrained", "0")
    assert (code, "is a RAW, expected" in said, "--raw-previews" in said) == (2, True, True)


def test_rows_of_texts_have_the_column_too(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("a cat\na dog\n")
    clip.embed(embed_job(source=tmp_path / "texts.txt", output=tmp_path / "out", model="sketch", texts=True))
    table = pq.read_table(tmp_path / "out/embeddings/part-00000.parquet")
    assert table.column_names == ["id", "path", "embedding", "warning", "text"]
    assert table.column("warning").null_count == 2


def test_a_copied_column_of_that_name_gets_another(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text(f"path,warning\n{photos / '1.jpg'},mine\n")
    clip.embed(embed_job(source=tmp_path / "list.csv", output=tmp_path / "out", model="sketch", keep=("warning",)))
    [row] = read_rows_by_id(tmp_path / "out").values()
    assert (row["warning"], row["kept_warning"]) == (None, "mine")


def test_contact_sheets_are_upright_whatever_was_embedded(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    half = Image.new("RGB", (300, 300), (250, 0, 0))
    half.paste((0, 0, 250), (0, 0, 150, 300))  # stored: blue at the left; upright: blue at the top
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jpg").write_bytes(damage.encode(half, "JPEG", exif=exif, quality=95))
    clip.embed(embed_job(source=tmp_path / "in", output=tmp_path / "out", model="sketch"))
    clip.search(SearchJob(output=tmp_path / "out", texts=("x",), contact_sheet=tmp_path / "hits.png"))
    with Image.open(tmp_path / "hits.png") as sheet:
        top, bottom = (sheet.getpixel((16 + 30, 48 + y)) for y in (30, 194))
    assert isinstance(top, tuple)
    assert isinstance(bottom, tuple)
    assert (top[2] > 200, bottom[0] > 200) == (True, True)


ENTRIES = st.lists(
    st.tuples(st.sampled_from([271, 274, 306]), st.sampled_from([1, 2, 3, 4]), st.integers(0, 3), st.integers(0, 9)),
    max_size=4,
)


@given(entries=ENTRIES, order=st.sampled_from("<>"), xmp=st.sampled_from(["", "6", "1"]), cut=st.integers(0, 20))
def test_what_is_counted_as_turned_is_what_would_be_turned(
    entries: list[tuple[int, int, int, int]], order: str, xmp: str, cut: int
) -> None:
    """The short way of `is_stored_turned` and Pillow's way agree on any EXIF data."""
    body = b"".join(
        struct.pack(order + "HHI", tag, kind, count)
        + (struct.pack(order + "HH", value, 0) if kind == 3 else struct.pack(order + "I", value))
        for tag, kind, count, value in entries
    )
    begin = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, len(entries))
    exif = b"Exif\0\0" + (begin + body + bytes(4))[: max(0, len(begin) + len(body) + 4 - cut)]
    data = damage.insert_segment(damage.JPEG, damage.segment(0xE1, exif))
    if xmp:
        words = b'http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation="%s"/>' % xmp.encode()
        data = damage.insert_segment(data, damage.segment(0xE1, words))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with open_encoded(data) as image, Image.open(io.BytesIO(data)) as other:
            image.load()
            assert is_stored_turned(image) == (read_orientation(other) in range(2, 9))
            assert bool(list(describe_damage(image))) == (cut > 4 and len(exif) > 6)


def test_orientations_of_all_formats_are_counted() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 8
    for name, turned in {"JPEG": True, "PNG": True, "WEBP": True, "AVIF": True, "TIFF": False}.items():
        data = damage.encode(formula.picture(0, 40, 30), name, exif=exif)
        with open_encoded(data) as image:
            np.asarray(image)
            assert is_stored_turned(image) == turned, name
