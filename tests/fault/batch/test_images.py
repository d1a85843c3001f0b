"""A folder of all that goes wrong with images, through the installed command: nothing lost, nothing stops it."""

import io
import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from kit import checkpoints, formula
from kit.outputs import read_rows_by_id
from kit.programs import command
from PIL import Image

import clip

COMMAND = str(Path(sys.executable).with_name("clip"))
LIMIT_S = 600.0  # ten times what a busy machine takes
TOLERANCE = 1e-5
SIZE = (64, 48)


def encoded(image: Image.Image, format_name: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    """A part of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def picture(mode: str = "RGB", n: int = 0) -> Image.Image:
    return formula.picture_in_mode(n, *SIZE, mode)


JPEG, PNG, GIF, TIFF = (encoded(picture(), name) for name in ("jpeg", "png", "gif", "tiff"))
SAMPLES_PER_PIXEL = struct.pack("<HHI", 277, 3, 1)  # the entry of a TIFF's directory, before its value
IHDR_END = 33  # bytes of a PNG's signature and first chunk

GOOD = {  # name: content, format and size as the rows must have them
    "jpeg.jpg": (JPEG, "JPEG", SIZE),
    "upper.JPG": (JPEG, "JPEG", SIZE),
    "wrong extension.gif": (JPEG, "JPEG", SIZE),
    "without extension": (PNG, "PNG", SIZE),
    "folder.jpg/inside.jpg": (JPEG, "JPEG", SIZE),
    "grey.jpg": (encoded(picture("L"), "jpeg"), "JPEG", SIZE),
    "cmyk.jpg": (encoded(picture("CMYK"), "jpeg"), "JPEG", SIZE),
    "progressive.jpg": (encoded(picture(), "jpeg", progressive=True), "JPEG", SIZE),
    "trailing bytes.jpg": (JPEG + b"more", "JPEG", SIZE),
    "two.mpo": (encoded(picture(), "mpo", save_all=True, append_images=[picture(n=1)]), "MPO", SIZE),
    "png.png": (PNG, "PNG", SIZE),
    "16 bit.png": (encoded(picture("I;16"), "png"), "PNG", SIZE),
    "1 bit.png": (encoded(picture("1"), "png"), "PNG", SIZE),
    "alpha.png": (encoded(picture("RGBA"), "png"), "PNG", SIZE),
    "grey alpha.png": (encoded(picture("LA"), "png"), "PNG", SIZE),
    "palette.png": (encoded(picture("P"), "png"), "PNG", SIZE),
    "byte transparency.png": (encoded(picture("P"), "png", transparency=bytes(range(64))), "PNG", SIZE),
    "invalid animation.png": (PNG[:IHDR_END] + chunk(b"acTL", bytes(8)) + PNG[IHDR_END:], "PNG", SIZE),
    "animated.gif": (encoded(picture(), "gif", save_all=True, append_images=[picture(n=1)]), "GIF", SIZE),
    "webp.webp": (encoded(picture("RGBA"), "webp"), "WEBP", SIZE),
    "lzw.tif": (encoded(picture(), "tiff", compression="tiff_lzw"), "TIFF", SIZE),
    "float.tiff": (encoded(picture("F"), "tiff"), "TIFF", SIZE),
    "bmp.bmp": (encoded(picture(), "bmp"), "BMP", SIZE),
    "thin.png": (encoded(formula.picture(2, 1, 5000), "png"), "PNG", (1, 5000)),
    "text bomb.png": (PNG[:33] + chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**27))) + PNG[33:], "PNG", SIZE),
    # Resized to 246 megapixels before its middle is cut out: nearly the most that is allowed.
    "thinnest.png": (encoded(Image.linear_gradient("L").resize((1, 240_000)), "png"), "PNG", (1, 240_000)),
    "pixel.png": (encoded(Image.new("L", (1, 1)), "png"), "PNG", (1, 1)),
    # Pillow warns of it; it is no bomb yet.
    "100 megapixels.png": (encoded(Image.new("1", (10_000, 10_000)), "png"), "PNG", (10_000, 10_000)),
    "new\nline.jpg": (JPEG, "JPEG", SIZE),
    os.fsdecode(b"not utf8 \xff.jpg"): (JPEG, "JPEG", SIZE),
}
BAD = {  # name: content, stage and error as the failure rows must have them
    "truncated.jpg": (JPEG[: len(JPEG) // 2], "decode", "OSError"),
    "truncated header.jpg": (JPEG[:20], "open", None),
    "truncated.png": (PNG[: len(PNG) // 2], "decode", "OSError"),
    "truncated.gif": (GIF[: len(GIF) // 2], "decode", "OSError"),
    "truncated.tif": (TIFF[: len(TIFF) // 2], None, None),
    # Pillow logs that it cannot decode so many.
    "99 samples.tif": (TIFF.replace(SAMPLES_PER_PIXEL + b"\3", SAMPLES_PER_PIXEL + b"\x63"), "open", None),
    "flipped bit.png": (PNG[:60] + bytes([PNG[60] ^ 1]) + PNG[61:], None, None),
    "no pixels.png": (PNG[:8] + chunk(b"IHDR", struct.pack(">IIBBBBB", 0, 0, 8, 2, 0, 0, 0)) + PNG[33:], None, None),
    "empty.jpg": (b"", "open", "ImageError"),
    "text.jpg": (b"A text that somebody named an image.", "open", "ImageError"),
    "postscript.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "open", "ImageError"),
    "thinner.png": (encoded(Image.new("1", (1, 300_000)), "png"), "decode", "ImageError"),
}
IGNORED = {
    "text.txt": b"A text.",
    "without extension either": b"A text.",
    "empty without extension": b"",
    "postscript.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    ".hidden.jpg": JPEG,
}


def bomb() -> bytes:
    """A PNG of 400 megapixels in 50 kB, row by row, since encoding it takes Pillow over a second."""
    row, deflate = bytes(1 + 20_000 // 8), zlib.compressobj()
    data = b"".join(deflate.compress(row) for _ in range(20_000)) + deflate.flush()
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 1, 0, 0, 0, 0)
    return PNG[:8] + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


class Outcome(NamedTuple):
    photos: Path
    weights: Path
    out: Path
    code: int
    stdout: str
    stderr: str

    def rows(self, folder: str) -> dict[str, dict[str, Any]]:
        return read_rows_by_id(self.out, folder)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """One run over all of it; that it comes to an end at all is part of the test."""
    folder = tmp_path_factory.mktemp("fault")
    photos = folder / "photos"
    contents = {name: row[0] for name, row in (GOOD | BAD).items()} | IGNORED | {"bomb.png": bomb()}
    for name, content in contents.items():
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        (photos / name).write_bytes(content)
    os.mkfifo(photos / "pipe.jpg")
    for name, target in {"circle.jpg": "circle.jpg", "loop": ".", "link to pipe": "pipe.jpg", "gone.jpg": "no"}.items():
        (photos / name).symlink_to(target)
    weights = checkpoints.write(folder)
    command = [COMMAND, "embed", str(photos), "-o", str(folder / "out"), "-m", str(weights), "--batch-size", "3"]
    command += ["--progress", "json"]  # which is told from the summary, however long the run takes
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    return Outcome(photos, weights, folder / "out", done.returncode, done.stdout, done.stderr)


def identifier(name: str) -> str:
    return name.replace("\udcff", "\\xff")


def test_the_run_ends_with_a_summary_and_the_code_that_says_there_are_failures(outcome: Outcome) -> None:
    assert outcome.code == 3, outcome.stderr
    assert outcome.stdout == ""
    *lines, summary = outcome.stderr.splitlines()
    events = [json.loads(line) for line in lines]  # and no warning, no traceback
    failed = len(BAD) + 3
    assert {event["event"] for event in events} <= {"listing", "listed", "loading", "progress"}
    assert [event["images"] for event in events if event["event"] == "listed"] == [len(GOOD) + failed]
    assert summary.startswith(f"read {len(GOOD) + failed} = written {len(GOOD)}, failed {failed} (see ")
    assert summary.endswith("; ignored: 1 hidden, 1 link to a folder, 2 not a file, 4 not an image")


def test_whatever_stands_in_the_folder_is_one_row_one_failure_or_counted_as_ignored(outcome: Outcome) -> None:
    written, failed = outcome.rows("embeddings"), outcome.rows("failures")
    assert not written.keys() & failed.keys()
    counts = json.loads((outcome.out / "manifest.json").read_text())["counts"]
    standing = sum(
        len(names) + sum((Path(path) / folder).is_symlink() for folder in folders)
        for path, folders, names in os.walk(outcome.photos)
    )
    assert len(written) + len(failed) + sum(counts["ignored"].values()) == standing
    assert (counts["written"], counts["failed"]) == (len(written), len(failed))
    assert counts["read"] == counts["written"] + counts["failed"]


def test_each_good_picture_has_a_row_that_says_what_it_was(outcome: Outcome) -> None:
    found = {
        name: (row["format"], (row["width"], row["height"]), row["size_bytes"])
        for name, row in outcome.rows("embeddings").items()
    }
    assert found == {identifier(name): (kind, size, len(data)) for name, (data, kind, size) in GOOD.items()}


def test_each_bad_picture_has_a_failure_row_that_says_where_it_failed(outcome: Outcome) -> None:
    failed = outcome.rows("failures")
    expected = {name: (stage, error) for name, (_, stage, error) in BAD.items()} | {
        "bomb.png": ("open", "ImageError"),
        "circle.jpg": ("read", "OSError"),
        "gone.jpg": ("read", "FileNotFoundError"),
    }
    assert failed.keys() == expected.keys()
    for name, (stage, error) in expected.items():
        row = failed[name]
        assert row["stage"] in ((stage,) if stage else ("open", "decode")), row
        assert row["error"] == (error or row["error"]), row
        assert row["message"], row
        assert " object at 0x" not in row["message"], row


@pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning"
)  # as Pillow warns callers
def test_vectors_are_those_that_the_encoder_gives_of_the_same_files(outcome: Outcome) -> None:
    rows = outcome.rows("embeddings")
    found = np.array([rows[identifier(name)]["embedding"] for name in GOOD])
    expected = clip.Encoder(outcome.weights).embed([outcome.photos / name for name in GOOD])
    assert np.abs(found - expected).max() < TOLERANCE


def test_memory_does_not_grow_with_the_number_of_pictures(tmp_path: Path) -> None:
    """6 megapixels of noise take 24 MB decoded and 4 MB encoded: what is kept of 100 of them would show."""
    noise = np.random.default_rng(0).integers(0, 256, (2000, 3000, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.jpg")
    weights = checkpoints.write(tmp_path)

    def peak_bytes(images: int) -> int:
        photos = tmp_path / f"photos{images}"
        photos.mkdir()
        for n in range(images):
            os.link(tmp_path / "noise.jpg", photos / f"{n}.jpg")
        flags = ["-m", str(weights), "--decode-budget-bytes", "50000000", "--workers", "2"]
        peak = command("run_and_print_peak", "embed", photos, "-o", tmp_path / f"out{images}", *flags)
        done = subprocess.run(peak, capture_output=True, text=True, timeout=LIMIT_S, check=False)
        assert (done.returncode, f"read {images} = written {images}" in done.stderr) == (0, True), done.stderr
        return int(done.stdout)

    assert peak_bytes(100) - peak_bytes(10) < 60_000_000
