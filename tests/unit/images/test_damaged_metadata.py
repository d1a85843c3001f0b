"""What is damaged beside the pixels costs no vector, gives a warning, and leaves Pillow as the program has set it."""

import io
import re
import struct
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit import GOLDEN, damage, formula
from kit.damage import GIF, JPEG, PNG, WEBP, WHOLE_PIXELS
from PIL import Image, ImageCms, ImageFile, PngImagePlugin

import clip
from clip.batch.decode import Decoding
from clip.batch.processes import isolate
from clip.errors import ImageError
from clip.images import bomb_check
from clip.images.decode import decode, read_pixels
from clip.images.ending import describe_ending
from clip.images.open import open_encoded, open_image
from clip.images.preprocess import make_preprocess
from clip.images.transform import to_pixels
from clip.jobs.options import DecodeOptions, Limits
from clip.network.records import PreprocessSettings
from clip.records import Failure, Item, Pixels
from clip.sources.source import Source

SETTINGS = PreprocessSettings(32)
EXIF = b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0"
UNDAMAGED = {"PNG": PNG, "JPEG": JPEG, "WEBP": WEBP, "GIF": GIF}


def outcome_of(data: bytes, limits: Limits | None = None, **options: Any) -> Pixels | Failure:
    [outcome] = decode(Item("a", "a", 1), data, SETTINGS, limits=limits or Limits(), options=DecodeOptions(**options))
    return outcome


def settings_of_pillow() -> tuple[object, ...]:
    return (
        *(Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, Image._decompression_bomb_check),
        *(PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY),
    )


def undamaged(name: str) -> bytes:
    kind = name.partition(",")[0]
    if kind in damage.OTHER_KINDS:
        return damage.encode(damage.PICTURE, damage.OTHER_KINDS[kind][0], **damage.OTHER_KINDS[kind][1])
    return damage.encode(damage.PICTURE, kind, progressive=True) if "progressive" in name else UNDAMAGED[kind]


@pytest.mark.parametrize("name", WHOLE_PIXELS)
@pytest.mark.parametrize("pixels", ["exact", "fast"])
def test_whole_pixels_make_a_row_with_a_warning(name: str, pixels: str) -> None:
    data, words = WHOLE_PIXELS[name]
    before = settings_of_pillow()
    outcome, expected = outcome_of(data, pixels=pixels), outcome_of(undamaged(name), pixels=pixels)
    assert isinstance(outcome, Pixels), outcome
    assert isinstance(expected, Pixels)
    assert np.array_equal(outcome.array, expected.array)
    assert words in (outcome.row.warning or ""), outcome.row.warning
    assert (outcome.row.size_bytes, outcome.row.format) == (len(data), expected.row.format)
    assert expected.row.warning is None
    assert settings_of_pillow() == before


@pytest.mark.parametrize("name", damage.DAMAGED_PIXELS)
def test_damaged_pixels_stay_a_failure(name: str) -> None:
    outcome = outcome_of(damage.DAMAGED_PIXELS[name])
    assert isinstance(outcome, Failure)
    kind = name.partition(",")[0]
    assert f"is a {kind} whose " in outcome.message
    assert f", expected a whole {kind}. Restore it from its source" in outcome.message


@given(number=st.integers(0, 8 * 4096))
def test_a_bit_that_flips_in_the_pixels_of_a_png_never_gives_other_pixels_with_a_warning(number: int) -> None:
    data = damage.insert_chunk(PNG, damage.chunk(b"tEXt", b"a\0b", 1))
    start = data.index(b"IDAT")
    flipped = damage.change_each_bit(data, slice(start, len(data) - 12))(number)
    assert isinstance(outcome_of(flipped), Failure)


@given(
    kinds=st.lists(st.sampled_from([b"tEXt", b"zTXt", b"iTXt", b"gAMA", b"cHRM", b"sRGB", b"pHYs", b"iCCP", b"eXIf"])),
    content=st.binary(max_size=40),
    wrong=st.integers(0, 2**32 - 1),
    behind=st.booleans(),
)
def test_whatever_is_in_chunks_without_pixels_the_pixels_are_the_same(
    kinds: list[bytes], content: bytes, wrong: int, behind: bool
) -> None:
    data = PNG
    for kind in kinds:
        data = damage.insert_chunk(data, damage.chunk(kind, content, wrong), b"IEND" if behind else b"IDAT")
    outcome, expected = outcome_of(data), outcome_of(PNG)
    assert isinstance(outcome, Pixels), outcome
    assert isinstance(expected, Pixels)
    assert np.array_equal(outcome.array, expected.array)


@given(
    codes=st.lists(st.sampled_from([*range(0xE0, 0xF0), 0xFE])),
    content=st.sampled_from([b"JFIF", b"Exif\0\0", b"Adobe", b"ICC_PROFILE\0", b"MPF\0", b"Photoshop 3.0\0", b""]),
    more=st.binary(max_size=9),
)
def test_whatever_is_in_segments_without_pixels_libjpeg_sees_the_same(
    codes: list[int], content: bytes, more: bytes
) -> None:
    data = JPEG
    for code in codes:
        data = damage.insert_segment(data, damage.segment(code, content + more))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outcome = outcome_of(data)
    assert isinstance(outcome, Pixels), outcome
    if not (content == b"Adobe" and 0xEE in codes and len(more) >= 7):  # which says how colours are stored
        assert np.array_equal(outcome.array, read_pixels(JPEG, SETTINGS))


def test_what_an_option_asks_for_is_not_left_out() -> None:
    image = formula.picture(0, 64, 48).convert("RGBA")
    image.putalpha(100)
    palette = damage.encode(image.convert("P"), "PNG", transparency=bytes(range(64)))
    broken_alpha = damage.spoil_chunk(palette, b"tRNS")
    assert isinstance(outcome_of(broken_alpha), Pixels)
    assert isinstance(outcome_of(broken_alpha, background="white"), Failure)
    frames = damage.encode(formula.picture(0, 64, 48), "PNG", save_all=True, append_images=[formula.picture(1, 64, 48)])
    broken = damage.insert_chunk(damage.spoil_chunk(frames, b"acTL"), damage.chunk(b"tEXt", b"a\0b", 1))
    assert isinstance(outcome_of(broken), Pixels)
    assert isinstance(outcome_of(broken, frames="all"), Failure)
    exif = Image.Exif()
    exif[274] = 6
    turned = damage.insert_chunk(
        damage.encode(formula.picture(0, 64, 48), "PNG", exif=exif), damage.chunk(b"tEXt", b"a\0b", 1)
    )
    outcome = outcome_of(turned, orient="exif")
    assert isinstance(outcome, Pixels)
    assert (outcome.row.width, outcome.row.height) == (48, 64)
    stored = outcome_of(damage.spoil_chunk(turned, b"eXIf"), orient="exif")
    assert isinstance(stored, Pixels)
    assert (stored.row.width, "eXIf with a wrong checksum" in (stored.row.warning or "")) == (64, True)


def test_exif_data_that_cannot_be_read_is_named() -> None:
    for exif in (b"II*\0\xff", b"XX*\0\x08\0\0\0\0\0", b"II*\0\x08\0\0\0\x09\0"):
        outcome = outcome_of(damage.insert_chunk(PNG, damage.chunk(b"eXIf", exif)))
        assert isinstance(outcome, Pixels)
        assert outcome.row.warning == "the EXIF data is damaged"
    broken = damage.encode(
        damage.PICTURE, "WEBP", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\xff\xff\xff\xff\1\0\0\0"
    )
    outcome = outcome_of(broken, orient="exif")
    assert isinstance(outcome, Pixels)


def test_a_profile_that_cannot_be_put_together_is_named() -> None:
    part = damage.segment(0xE2, b"ICC_PROFILE\0\1\2" + bytes(40))  # the first of two
    for data in (damage.insert_segment(JPEG, part), damage.insert_chunk(PNG, damage.chunk(b"iCCP", b"a\0\0xx"))):
        outcome = outcome_of(data)
        assert isinstance(outcome, Pixels)
        assert outcome.row.warning == "the ICC profile is damaged"


@pytest.mark.parametrize("name", [*WHOLE_PIXELS, *damage.DAMAGED_PIXELS])
def test_path_and_bytes_preprocess_and_stream_give_the_same(name: str, tmp_path: Path) -> None:
    data = WHOLE_PIXELS[name][0] if name in WHOLE_PIXELS else damage.DAMAGED_PIXELS[name]
    path = tmp_path / "image"
    path.write_bytes(data)
    outcome = outcome_of(data)
    preprocess = make_preprocess(SETTINGS)
    for form in (path, str(path), data, bytearray(data), memoryview(data)):
        if isinstance(outcome, Pixels):
            assert np.array_equal(read_pixels(form, SETTINGS), outcome.array)
            assert np.array_equal(to_pixels(open_image(form), SETTINGS), outcome.array)
            assert preprocess(form).shape == (3, 32, 32)
        else:
            for read in (open_image, preprocess, lambda one: read_pixels(one, SETTINGS, "fast")):
                with pytest.raises((ImageError, OSError, SyntaxError, ValueError)):
                    read(form)


def test_threads_and_processes_and_the_encoder_give_the_same(tmp_path: Path) -> None:
    items: list[Item] = []
    for number, (data, _) in enumerate(WHOLE_PIXELS.values()):
        path = tmp_path / f"{number}.img"
        path.write_bytes(data)
        items.append(Item(path.name, str(path), len(data)))
    for number, data in enumerate(damage.DAMAGED_PIXELS.values()):
        path = tmp_path / f"bad{number}.img"
        path.write_bytes(data)
        items.append(Item(path.name, str(path), len(data)))
    decoding = Decoding(Source((str(tmp_path),)), SETTINGS, Limits(), DecodeOptions())
    with isolate(decoding, 60.0, 100_000_000) as decode:
        for item in items:
            [here], [there] = decoding(item), decode(item)
            if isinstance(here, Pixels):
                assert isinstance(there, Pixels)
                assert (here.row, here.array.tolist()) == (there.row, there.array.tolist())
            else:
                assert here == there
    encoder = clip.Encoder("sketch")
    paths = [item.path for item in items]
    by_path, failures = encoder.embed_images(paths, on_error="none")
    by_bytes, same = encoder.embed_images([Path(path).read_bytes() for path in paths], on_error="none")
    assert np.array_equal(by_path, by_bytes, equal_nan=True)
    assert [failure.id for failure in failures] == [str(n) for n in range(len(WHOLE_PIXELS), len(items))]
    assert [(failure.stage, failure.message) for failure in failures] == [(one.stage, one.message) for one in same]
    assert all(", expected a whole " in failure.message for failure in failures)


# Pillow's limit to pixels


LARGE = {"PNG": {}, "TIFF": {"compression": "tiff_lzw"}, "WEBP": {"lossless": True}, "GIF": {}, "JPEG": {}}


@pytest.fixture
def small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an image of 64 x 48 px be above the program's limit twice over."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)


@pytest.mark.usefixtures("small_limit")
@pytest.mark.parametrize("name", LARGE)
def test_an_image_above_pillows_limit_and_within_ours_is_decoded(name: str) -> None:
    image = damage.PICTURE.convert("RGBA") if name == "WEBP" else damage.PICTURE
    data = damage.encode(image, name, **LARGE[name])
    before = settings_of_pillow()
    outcome = outcome_of(data)  # a warning of Pillow's would be an error here
    assert isinstance(outcome, Pixels), outcome
    assert settings_of_pillow() == before
    refused = outcome_of(data, Limits(max_pixels=64 * 48 - 1))
    assert isinstance(refused, Failure)
    assert (refused.stage, refused.error) == ("open", "ImageError")
    assert "max_pixels" in refused.message
    with pytest.raises(ImageError, match=r"64 x 48 px, expected at most 2,000 pixels.*MAX_IMAGE_PIXELS"):
        open_image(data)
    with pytest.raises(ImageError, match="MAX_IMAGE_PIXELS"):
        read_pixels(data, SETTINGS, "fast")


@pytest.mark.usefixtures("small_limit")
def test_pillows_limit_holds_in_other_threads_meanwhile_and_everywhere_afterwards() -> None:
    inside, done = threading.Event(), threading.Event()
    refused: list[bool] = []

    def open_in_another_thread() -> None:
        inside.wait(60)
        try:
            Image.open(io.BytesIO(PNG))
        except Image.DecompressionBombError:
            refused.append(True)
        done.set()

    thread = threading.Thread(target=open_in_another_thread)
    thread.start()
    with bomb_check.unchecked():
        with bomb_check.unchecked():
            Image.open(io.BytesIO(PNG)).load()
        Image.open(io.BytesIO(PNG)).load()
        inside.set()
        done.wait(60)
    thread.join()
    assert refused == [True]
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(PNG))


@pytest.mark.usefixtures("small_limit")
def test_an_open_image_is_left_to_pillow() -> None:
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(PNG))
    cut = PNG[:-400]
    Image.MAX_IMAGE_PIXELS = None
    with Image.open(io.BytesIO(cut)) as image, pytest.raises(OSError, match="truncated"):
        make_preprocess(SETTINGS)(image)


# Messages


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (PNG[:8] + b"x" * 30, "is a PNG whose header cannot be read"),
        (damage.encode(damage.PICTURE, "TIFF")[:6], "is a TIFF whose header cannot be read"),
        (b"\xff\xd8\xff\xe0", "is a JPEG whose header cannot be read"),
        (b"\r\n<!DOCTYPE html><html>", "is a web page, expected an image. Check where it was downloaded from"),
        (b"<svg xmlns=''/>", "Save it as PNG"),
        (b"%PDF-1.7", "is a PDF, expected an image"),
        (b"version https://git-lfs.github.com/spec/v1", "Run: git lfs pull"),
        (damage.VIDEO, "is a video, expected an image"),
        (b"\x1aE\xdf\xa3" + bytes(40), "is a video"),
        (b"RIFF\0\0\0\0AVI LIST", "is a video"),
        (b"just a text", "starts with b'just a text', expected a format that Pillow decodes"),
    ],
)
def test_a_message_says_what_a_file_is(data: bytes, words: str) -> None:
    outcome = outcome_of(data)
    assert isinstance(outcome, Failure)
    assert words in outcome.message
    assert "Pillow decodes" not in outcome.message or words.startswith("starts with")
    with pytest.raises(ImageError):
        open_encoded(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "WEBP", "JPEG2000"])
@given(share=st.floats(0.05, 0.95))
def test_pillows_own_words_never_come_alone(kind: str, share: float) -> None:
    data = damage.encode(damage.PICTURE, kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outcome = outcome_of(data[: int(len(data) * share)])
    if isinstance(outcome, Failure):
        assert f"is a {kind} whose " in outcome.message, outcome.message
        assert ", expected a whole " in outcome.message


def test_the_tests_know_this_pillow() -> None:
    assert PIL.__version__.split(".")[0] == "13", "read Image.open again: images/open.py does the same"


HEICS = sorted((GOLDEN / "heic").glob("*.heic"))


@pytest.mark.parametrize("path", HEICS, ids=[path.stem for path in HEICS])
@pytest.mark.parametrize("frames", ["first", "all"])
def test_what_a_phone_appends_to_a_heic_is_a_warning(path: Path, frames: str) -> None:
    pytest.importorskip("pi_heif")
    data = path.read_bytes()
    box = struct.pack(">I", len(damage.VIDEO) + 8) + b"mpvd" + damage.VIDEO  # as the Motion Photo format has it
    for behind, what in ((damage.VIDEO, "a video"), (box, "a video"), (b"SEFH" + bytes(8) + b"SEFT", "other data")):
        for outcome, expected in zip(
            decode(Item("a", "a", 1), data + behind, SETTINGS, options=DecodeOptions(frames=frames)),  # type: ignore[arg-type]  # pyright: ignore
            decode(Item("a", "a", 1), data, SETTINGS, options=DecodeOptions(frames=frames)),  # type: ignore[arg-type]  # pyright: ignore
            strict=True,
        ):
            assert isinstance(outcome, Pixels)
            assert isinstance(expected, Pixels)
            assert np.array_equal(outcome.array, expected.array)
            words = f"{len(behind):,} bytes behind the end of the image ({what}) are left out"
            assert (expected.row.warning, outcome.row.warning) == (None, words)


@given(name=st.sampled_from([*damage.OTHER_KINDS, "PNG", "JPEG"]), behind=st.binary(min_size=2))
def test_whatever_stands_behind_an_image_is_counted(name: str, behind: bytes) -> None:
    outcome = outcome_of(undamaged(name) + b"x" + behind + b"x")
    assert isinstance(outcome, Pixels)
    found = re.match(r"([0-9,]+) bytes behind the end of the image", outcome.row.warning or "")
    assert found, outcome.row.warning
    padding = int(found[1].replace(",", "")) - len(behind) - 2
    assert -1 <= padding <= 0 if name == "WEBP" else 0 <= padding < 16 if "TIFF" in name else padding == 0


ORDINARY: dict[str, tuple[str, str, dict[str, Any]]] = {
    **{f"BMP {mode}": ("BMP", mode, {}) for mode in ("1", "L", "P", "RGB", "RGBA")},
    **{
        f"TIFF {mode}": ("TIFF", mode, {})
        for mode in ("1", "L", "P", "RGB", "RGBA", "CMYK", "I;16", "F", "YCbCr", "LAB")
    },
    **{
        f"TIFF {compression}": ("TIFF", "RGB", {"compression": compression})
        for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "zstd", "webp", "lzma")
    },
    **{f"TIFF {compression}": ("TIFF", "1", {"compression": compression}) for compression in ("group3", "group4")},
    "TIFF with EXIF": ("TIFF", "RGB", {"exif": EXIF, "icc_profile": bytes(300), "description": "d" * 99}),
    "BigTIFF of strips": ("TIFF", "RGB", {"big_tiff": True, "compression": "tiff_lzw", "tiffinfo": {278: 5}}),
    "AVIF": ("AVIF", "RGBA", {"exif": EXIF}),
    "AVIF sequence": ("AVIF", "RGB", {"save_all": True, "append_images": [formula.picture(1, 64, 48)]}),
    "JPEG2000 codestream": ("JPEG2000", "RGB", {"no_jp2": True}),
    "JPEG2000": ("JPEG2000", "RGBA", {}),
    "QOI": ("QOI", "RGBA", {}),
    "WEBP": ("WEBP", "RGBA", {"exif": EXIF, "lossless": True}),
    "animated WEBP": ("WEBP", "RGB", {"save_all": True, "append_images": [formula.picture(1, 64, 48)]}),
    "animated GIF": ("GIF", "P", {"save_all": True, "append_images": [formula.picture(1, 64, 48)], "comment": b"c;"}),
}


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_files_have_no_warning(name: str) -> None:
    kind, mode, options = ORDINARY[name]
    image = damage.PICTURE.convert("L").convert(mode) if mode in ("I;16", "F") else _convert(mode)
    try:
        data = damage.encode(image, kind, **options)
    except (OSError, KeyError, ValueError) as exc:  # what this build of Pillow does not write
        pytest.skip(str(exc))
    outcome = outcome_of(data)
    assert isinstance(outcome, Pixels), outcome
    assert outcome.row.warning is None
    assert isinstance(outcome_of(data + bytes(99)).row.warning, str)  # type: ignore[union-attr]  # pyright: ignore


def _convert(mode: str) -> Image.Image:
    if mode == "LAB":
        return ImageCms.profileToProfile(
            damage.PICTURE, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
        )  # type: ignore[return-value]  # pyright: ignore
    return damage.PICTURE.convert(mode)


@given(
    data=st.data(), name=st.sampled_from(["BMP", "TIFF", "BigTIFF", "TIFF of pages", "AVIF", "JPEG2000", "QOI", "GIF"])
)
def test_damaged_headers_never_raise_and_their_ends_are_inside_the_file(data: st.DataObject, name: str) -> None:
    whole = bytearray(undamaged(name))
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    for kind in ("BMP", "TIFF", "AVIF", "JPEG2000", "QOI", "GIF"):
        told = describe_ending(cut, kind)
        assert told is None or "-" not in told
