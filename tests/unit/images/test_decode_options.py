"""DecodeOptions compared with the same by hand in numpy: orientation, background, 16 bit, frames (docs/images.md)."""

import hashlib
import io
import json
import re
import struct
import subprocess
import sys
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pi_heif
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from kit import ROOT, formula
from kit.programs import command
from PIL import Image, TiffImagePlugin, WebPImagePlugin

from clip.batch.decode import Decoding
from clip.images import formats
from clip.images.adjust import adjust, lay_on_background, scale_to_8_bit, turn_upright
from clip.images.decode import FORMATS_WITH_FRAMES, decode
from clip.images.geometry import resized_size
from clip.images.heif import remove_rotation
from clip.images.open import open_image
from clip.images.transform import to_pixels
from clip.jobs.options import Background, DecodeOptions, Frames, Limits, Orient
from clip.network.records import PreprocessSettings
from clip.records import Failure, Item, Pixels
from clip.sources.source import Source

HEIC = ROOT / "tests" / "golden" / "heic"
SETTINGS = PreprocessSettings(16)
SIZE = (47, 31)  # of the HEIC files, and odd, so that half a pixel too much shows
ORIENTATIONS = range(1, 9)
ALL_OPTIONS = DecodeOptions(orient="exif", background="white", sixteen_bit="scale")
# What shows a stored image (H, W, C) upright, and what stores an upright one, by orientation.
UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90,
}
STORED = UPRIGHT | {6: UPRIGHT[8], 8: UPRIGHT[6]}
LOSSLESS = {"PNG": {}, "WEBP": {"lossless": True}, "TIFF": {}}
LOSSY = {"JPEG": {"quality": 90}, "MPO": {}, "AVIF": {"quality": 90}, "WEBP": {"quality": 90}}


def encoded(
    images: Image.Image | list[Image.Image], name: str, orientation: int | None = None, **options: object
) -> bytes:
    """An image, or several as frames, in a format."""
    if orientation is not None:
        exif = Image.Exif()
        exif[274] = orientation
        options["exif"] = exif
    first, *others = images if isinstance(images, list) else [images]
    buffer = io.BytesIO()
    first.save(buffer, name, **(options | ({"save_all": True, "append_images": others} if others else {})))
    return buffer.getvalue()


def outcomes(data: bytes, limits: Limits | None = None, **options: str) -> list[Pixels | Failure]:
    decode_options = DecodeOptions(**options)  # type: ignore[arg-type]
    return decode(Item("a", "/b/a", 7), data, SETTINGS, limits=limits or Limits(), options=decode_options)


def decoded(data: bytes, **options: str) -> Pixels:
    [outcome] = outcomes(data, **options)
    assert isinstance(outcome, Pixels), outcome
    return outcome


def same(outcome: Pixels, expected: Image.Image | np.ndarray) -> bool:
    """Whether these are the reference's pixels of an image, and its size."""
    image = expected if isinstance(expected, Image.Image) else Image.fromarray(np.ascontiguousarray(expected))
    size = (outcome.row.width, outcome.row.height)
    return size == image.size and np.array_equal(outcome.array, to_pixels(image, SETTINGS))


def heic(orientation: int) -> bytes:
    return (HEIC / f"orientation-{orientation}.heic").read_bytes()


def by_libheif(data: bytes) -> Image.Image:
    """What the decoder alone makes of a file: turned."""
    return pi_heif.open_heif(data).to_pillow()


# Defaults


def golden_rows() -> list[dict[str, object]]:
    return json.loads((ROOT / "tests" / "golden" / "preprocess.json").read_text())["rows"]


@pytest.mark.parametrize("row", golden_rows(), ids=lambda row: f"{row['mode']}-{row['size']}-{row['resolution']}")
def test_by_default_a_file_gives_the_pixels_of_openai_bit_for_bit(row: dict[str, object]) -> None:
    mode = str(row["mode"])
    image = formula.picture_in_mode(row["picture"], *row["size"], mode)  # type: ignore[misc]
    data = encoded(image, "PNG" if mode in ("RGB", "L", "LA", "RGBA", "P", "1", "I;16") else "TIFF", **{})
    assert Image.open(io.BytesIO(data)).mode == mode
    [outcome] = decode(Item("a", "a", 7), data, PreprocessSettings(int(str(row["resolution"]))))
    assert isinstance(outcome, Pixels)
    assert hashlib.sha256(outcome.array.tobytes()).hexdigest() == row["sha256_uint8_hwc"]
    assert [outcome.row.width, outcome.row.height] == row["size"]


def test_an_image_that_no_option_concerns_is_not_touched() -> None:
    for mode in ("RGB", "L", "P", "CMYK", "1", "YCbCr", "I;16", "RGBA"):
        image = formula.picture_in_mode(0, 9, 7, mode)
        assert adjust(image, DecodeOptions()) is image
        if mode not in ("I;16", "RGBA"):
            assert adjust(image, ALL_OPTIONS) is image


# Orientation


@pytest.mark.parametrize("name", LOSSLESS)
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_turned_image_gives_the_pixels_of_the_same_one_stored_upright(orientation: int, name: str) -> None:
    upright = np.asarray(formula.quarters(*SIZE))
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    data = encoded(stored, name, orientation, **LOSSLESS[name])
    assert same(decoded(data, orient="exif"), upright)
    assert same(decoded(data), upright if name == "TIFF" else stored), "Pillow turns a TIFF while it decodes it"


@pytest.mark.parametrize("name", LOSSY)
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_turned_lossy_image_gives_pillows_pixels_turned_by_hand(orientation: int, name: str) -> None:
    data = encoded(formula.quarters(*SIZE), name, orientation, **LOSSY[name])
    stored = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert same(decoded(data), stored)
    assert same(decoded(data, orient="exif"), UPRIGHT[orientation](stored))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_heic_gives_what_was_stored_or_what_its_decoder_turned(orientation: int) -> None:
    stored = np.asarray(by_libheif(heic(1)))
    turned = np.asarray(by_libheif(heic(orientation)))
    assert same(decoded(heic(orientation)), stored)
    assert same(decoded(heic(orientation), orient="exif"), turned)
    assert np.abs(UPRIGHT[orientation](stored).astype(int) - turned).mean() < 8, "but for colours at the edges"


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("orient", ["none", "exif"])
def test_a_jpeg_and_a_heic_of_the_same_photo_agree(orientation: int, orient: str) -> None:
    jpeg = decoded(encoded(formula.quarters(*SIZE), "JPEG", orientation, quality=95), orient=orient)
    other = decoded(heic(orientation), orient=orient)
    assert (jpeg.row.width, jpeg.row.height) == (other.row.width, other.row.height)
    assert np.abs(jpeg.array.astype(int) - other.array).mean() < 6


def test_the_way_back_from_a_turned_heic_is_not_exact_so_that_its_boxes_are_changed() -> None:
    stored, turned = np.asarray(by_libheif(heic(1))), np.asarray(by_libheif(heic(3)))
    assert np.abs(turned[::-1, ::-1].astype(int) - stored).max() > 50


@pytest.mark.parametrize("orientation", range(2, 9))
def test_what_the_container_of_a_heic_says_counts_and_its_exif_data_does_not(orientation: int) -> None:
    file = heic(orientation)
    unturned = remove_rotation(file)
    assert same(decoded(unturned, orient="exif"), by_libheif(heic(1))), "EXIF data says turn, the container does not"
    tag = bytes.fromhex("0112 0003 00000001 00") + bytes([0])
    place = file.index(tag[:8]) + 9 if tag[:8] in file else file.index(bytes.fromhex("1201 0300 01000000")) + 8
    silent = bytearray(file)
    assert silent[place] == orientation
    silent[place] = 1
    assert same(decoded(bytes(silent)), by_libheif(heic(1))), "the container says turn, EXIF data does not"
    assert same(decoded(bytes(silent), orient="exif"), by_libheif(file))


def test_a_heic_has_the_same_pixels_by_path_by_bytes_and_in_a_job(tmp_path: Path) -> None:
    file = tmp_path / "a.heic"
    file.write_bytes(heic(6))
    wanted = decoded(heic(6)).array
    for form in (file, file.read_bytes()):
        assert np.array_equal(to_pixels(open_image(form), SETTINGS), wanted)


@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from(ORIENTATIONS), st.sampled_from(["RGB", "L", "P", "RGBA"]))
def test_images_of_any_size_and_mode_are_turned_as_numpy_does(w: int, h: int, orientation: int, mode: str) -> None:
    image = formula.picture_in_mode(2, w, h, mode)
    shown = Image.open(io.BytesIO(encoded(image, "PNG", orientation)))
    result = turn_upright(shown)
    assert result.mode == mode
    expected = UPRIGHT[orientation](np.asarray(image.convert("RGBA")))
    assert np.array_equal(np.asarray(result.convert("RGBA")), expected)


def test_an_orientation_in_xmp_alone_counts() -> None:
    image = formula.quarters(*SIZE)
    data = encoded(image, "JPEG", xmp=b'<x tiff:Orientation="6"/>')
    stored = np.asarray(Image.open(io.BytesIO(data)))
    assert same(decoded(data, orient="exif"), UPRIGHT[6](stored))


@pytest.mark.parametrize("orientation", [0, 9, 77, 65535])
def test_an_orientation_that_does_not_exist_turns_nothing(orientation: int) -> None:
    image = formula.quarters(*SIZE)
    assert same(decoded(encoded(image, "PNG", orientation), orient="exif"), image)


def damaged_exif() -> bytes:
    exif = Image.Exif()
    exif[274], exif[282], exif[36867] = 6, 72.0, "2020"
    exif.get_ifd(34665)[37500] = b"maker's note"
    return exif.tobytes()


@given(st.lists(st.tuples(st.integers(0, len(damaged_exif()) - 1), st.integers(0, 255)), max_size=6))
def test_damaged_exif_data_is_no_failure(changes: list[tuple[int, int]]) -> None:
    exif = bytearray(damaged_exif())
    for place, value in changes:
        exif[place] = value
    data = encoded(formula.quarters(*SIZE), "PNG", exif=bytes(exif))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = decoded(data, orient="exif")
    assert any(same(result, UPRIGHT[n](np.asarray(formula.quarters(*SIZE)))) for n in ORIENTATIONS)


def test_exif_data_that_cannot_be_read_leaves_the_image_as_stored() -> None:
    image = formula.quarters(*SIZE)
    data = encoded(image, "PNG", exif=b"Exif\0\0no header of a TIFF")
    with pytest.raises(SyntaxError, match="not a TIFF"):
        Image.open(io.BytesIO(data)).getexif()
    assert same(decoded(data, orient="exif"), image)


def test_exif_data_that_cannot_be_written_again_still_turns_the_image() -> None:
    exif = Image.Exif()
    exif[274], exif[36867] = 6, "2020"
    damaged = exif.tobytes().replace(struct.pack(">HH", 36867, 2), struct.pack(">HH", 0x8769, 2))
    data = encoded(formula.quarters(*SIZE), "PNG", exif=damaged)
    assert same(decoded(data, orient="exif"), UPRIGHT[6](np.asarray(formula.quarters(*SIZE))))


def test_memory_that_runs_out_over_exif_data_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Image.Image) -> Image.Exif:
        raise MemoryError

    monkeypatch.setattr(Image.Image, "getexif", fail)
    [outcome] = outcomes(encoded(formula.quarters(*SIZE), "GIF"), orient="exif")
    assert isinstance(outcome, Failure)
    assert outcome.error == "MemoryError"


@given(st.binary(max_size=80), st.integers(0, 600), st.integers(0, 255))
def test_changing_the_boxes_of_a_damaged_heic_never_raises(tail: bytes, place: int, value: int) -> None:
    remove_rotation(b"\0\0\0\x0cftypheic" + tail)
    changed = bytearray(heic(7))
    changed[place] = value
    assert len(remove_rotation(bytes(changed))) == len(changed)
    whole, changed_whole = heic(7), remove_rotation(heic(7))
    assert remove_rotation(whole[:place]) in (whole[:place], changed_whole[:place])


def test_a_heic_that_its_decoder_turned_is_not_turned_again() -> None:
    image = open_image(heic(1))
    exif = Image.Exif()
    exif[274] = 6
    image.info["exif"] = exif.tobytes()
    assert image.getexif()[274] == 6
    assert turn_upright(image) is image


@pytest.mark.parametrize("size", [4, 7, 10, 2**31])
def test_boxes_that_are_smaller_than_their_head_or_leave_their_list_are_not_followed(size: int) -> None:
    turn = struct.pack(">I4sB", 9, b"irot", 3)
    damaged = (struct.pack(">I", size) if size == 4 else struct.pack(">I4sB", size, b"irot", 3)) + turn
    ipco = struct.pack(">I4s", 8 + len(damaged) - (size == 10) * len(turn), b"ipco") + damaged
    iprp = struct.pack(">I4s", 8 + len(ipco), b"iprp") + ipco
    meta = struct.pack(">I4sI", 12 + len(iprp), b"meta", 0) + iprp
    data = struct.pack(">I4s4s", 12, b"ftyp", b"heic") + meta
    assert remove_rotation(data) is data


def test_boxes_with_long_sizes_and_to_the_end_are_followed() -> None:
    def box(name: bytes, content: bytes, size: int | None = None) -> bytes:
        if size == 1:
            return struct.pack(">I4sQ", 1, name, 16 + len(content)) + content
        return struct.pack(">I4s", 8 + len(content) if size is None else size, name) + content

    turns = box(b"irot", b"\3") + box(b"imir", b"\1", 1) + box(b"free", b"irot") + box(b"irot", b"")
    meta = box(b"meta", b"\0\0\0\0" + box(b"iprp", box(b"ipco", turns), 1), 0)
    data = box(b"ftyp", b"heic") + box(b"free", b"meta") + meta
    still = box(b"irot", b"\0") + box(b"irot", b"\0", 1) + box(b"free", b"irot") + box(b"irot", b"")
    assert remove_rotation(data) == data.replace(turns, still)
    png = encoded(FRAMES[0], "PNG")
    assert remove_rotation(png) is png


# Background


COLOURS = {"white": 255, "black": 0}


def laid_by_hand(rgba: np.ndarray, background: str) -> np.ndarray:
    """(H, W, 4) on a colour, rounded half up, in whole numbers."""
    alpha = rgba[..., 3:].astype(int)
    return ((2 * (alpha * rgba[..., :3] + (255 - alpha) * COLOURS[background]) + 255) // 510).astype(np.uint8)


@given(st.integers(1, 9), st.integers(1, 9), st.randoms(use_true_random=False), st.sampled_from(["white", "black"]))
def test_alpha_is_laid_on_the_colour_as_numpy_does(w: int, h: int, random: object, background: Background) -> None:
    seed = random.getrandbits(32)  # type: ignore[attr-defined]
    rgba = np.random.RandomState(seed).randint(0, 256, (h, w, 4)).astype(np.uint8)
    result = lay_on_background(Image.fromarray(rgba), background)
    assert result.mode == "RGB"
    assert np.array_equal(np.asarray(result), laid_by_hand(rgba, background))


def transparent_files() -> dict[str, tuple[bytes, np.ndarray]]:
    """Files of all kinds of transparency, and what they are in RGBA."""

    def by_value(image: Image.Image, opaque: np.ndarray) -> np.ndarray:
        return np.dstack([np.asarray(image.convert("RGB")), np.where(opaque, 255, 0).astype(np.uint8)])

    rgba, la = (formula.picture_in_mode(1, 40, 30, mode) for mode in ("RGBA", "LA"))
    rgb, grey, palette, bilevel = (formula.picture_in_mode(1, 40, 30, mode) for mode in ("RGB", "L", "P", "1"))
    colour, shade = rgb.getpixel((3, 4)), grey.getpixel((3, 4))
    alphas = bytes(range(0, 128, 2))
    indices = np.asarray(palette)
    from_alphas = np.dstack([np.asarray(palette.convert("RGB")), np.frombuffer(alphas, np.uint8)[indices]])
    gif = encoded(palette, "GIF", transparency=5)
    return {
        "RGBA PNG": (encoded(rgba, "PNG"), np.asarray(rgba)),
        "RGBA WebP": (encoded(rgba, "WEBP", lossless=True, exact=True), np.asarray(rgba)),
        "RGBA TIFF": (encoded(rgba, "TIFF"), np.asarray(rgba)),
        "LA PNG": (encoded(la, "PNG"), np.asarray(la.convert("RGBA"))),
        "RGB PNG, a colour": (
            encoded(rgb, "PNG", transparency=colour),
            by_value(rgb, (np.asarray(rgb) != colour).any(2)),
        ),
        "L PNG, a shade": (encoded(grey, "PNG", transparency=shade), by_value(grey, np.asarray(grey) != shade)),
        "1 PNG, black": (encoded(bilevel, "PNG", transparency=0), by_value(bilevel, np.asarray(bilevel))),
        "P PNG, an entry": (encoded(palette, "PNG", transparency=5), by_value(palette, indices != 5)),
        "P PNG, all entries": (encoded(palette, "PNG", transparency=alphas), from_alphas),
        "P GIF": (gif, np.asarray(Image.open(io.BytesIO(gif)).convert("RGBA"))),
        "RGBA HEIC": ((HEIC / "alpha.heic").read_bytes(), np.asarray(by_libheif((HEIC / "alpha.heic").read_bytes()))),
    }


@pytest.mark.parametrize("background", ["white", "black"])
@pytest.mark.parametrize("kind", transparent_files())
def test_a_transparent_file_gives_the_pixels_of_the_one_laid_on_the_colour(kind: str, background: str) -> None:
    data, rgba = transparent_files()[kind]
    assert (rgba[..., 3] < 255).any()
    assert (rgba[..., 3] > 0).any()
    assert same(decoded(data, background=background), laid_by_hand(rgba, background))


@pytest.mark.parametrize("background", ["white", "black"])
@pytest.mark.parametrize("mode", ["PA", "La", "RGBa"])
def test_modes_that_few_files_have_are_laid_on_the_colour_too(mode: str, background: Background) -> None:
    rgba = np.asarray(formula.picture_in_mode(1, 40, 30, "RGBA")).copy()
    rgba[..., :3] = rgba[..., :1] if mode == "La" else rgba[..., :3]
    rgba[..., 3] |= 0x40  # what is nearly transparent has lost its colour in these modes
    image = Image.fromarray(rgba)
    if mode == "PA":
        image = image.convert("RGB").quantize(64)
        rgba = np.dstack([np.asarray(image.convert("RGB")), rgba[..., 3]])
        image = Image.merge("PA", (image.copy().convert("P"), Image.fromarray(rgba[..., 3])))
        image.putpalette(formula.picture_in_mode(1, 40, 30, "RGB").quantize(64).getpalette() or [])
        rgba = np.asarray(image.convert("RGBA"))
    else:
        image = (image.convert("LA") if mode == "La" else image).convert(mode)
    result = np.asarray(lay_on_background(image, background))
    assert np.abs(result.astype(int) - laid_by_hand(rgba, background)).max() <= 2


@pytest.mark.parametrize("name", ["WEBP", "GIF", "PNG"])
def test_a_frame_of_an_animation_is_laid_on_the_colour(name: str) -> None:
    frames = [formula.picture_in_mode(i, 40, 30, "RGBA") for i in range(3)]
    if name == "GIF":  # all or nothing
        for n, frame in enumerate(frames):
            frame.putalpha(Image.fromarray(np.tri(30, 40, n - 9, np.uint8) * 255))
    data = encoded(frames, name, **({"lossless": True, "exact": True} if name == "WEBP" else {"disposal": 2}))
    results = outcomes(data, frames="all", background="white")
    for outcome, frame in zip(results, frames_by_hand(data), strict=True):
        rgba = np.asarray(frame.convert("RGBA"))
        assert (rgba[..., 3] < 255).any()
        assert isinstance(outcome, Pixels)
        assert same(outcome, laid_by_hand(rgba, "white"))


def test_opaque_images_have_the_same_pixels_on_every_background() -> None:
    for mode in ("RGB", "L", "P", "1", "I;16"):
        data = encoded(formula.picture_in_mode(1, 40, 30, mode), "PNG")
        assert np.array_equal(decoded(data, background="white").array, decoded(data).array)


# 16 bit


def eight_bit_by_hand(values: np.ndarray) -> np.ndarray:
    """Whole numbers 0 to 65535 -> 0 to 255, rounded; there are no halves, as 257 is odd."""
    return ((2 * np.clip(values, 0, 65535).astype(np.int64) + 257) // 514).astype(np.uint8)


def deep(mode: str, values: np.ndarray) -> Image.Image:
    kind = {"I;16": "<u2", "I;16L": "<u2", "I;16B": ">u2", "I;16N": "=u2", "I": "<i4", "F": "<f4"}[mode]
    return Image.frombytes(mode, values.shape[::-1], values.astype(kind).tobytes())


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I;16N", "I", "F"])
def test_every_value_of_16_bits_is_scaled_and_rounded(mode: str) -> None:
    values = np.arange(65536).reshape(256, 256)
    result = scale_to_8_bit(deep(mode, values))
    assert result.mode == "L"
    assert np.array_equal(np.asarray(result), eight_bit_by_hand(values))
    assert np.asarray(result)[-1, -1] == 255


def test_what_lies_outside_the_range_is_black_or_white() -> None:
    whole = deep("I", np.array([[-5, -(2**31), 65536, 2**31 - 1]]))
    assert np.asarray(scale_to_8_bit(whole)).tolist() == [[0, 0, 255, 255]]
    floats = deep("F", np.array([[-0.1, -np.inf, np.nan, 1e30, np.inf, 128.4, 128.6]]))
    assert np.asarray(scale_to_8_bit(floats)).tolist() == [[0, 0, 0, 255, 255, 0, 1]]


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("PNG", "I;16"),
        ("TIFF", "I;16"),
        ("TIFF", "I;16B"),
        ("TIFF", "I"),
        ("TIFF", "F"),
        ("JPEG2000", "I;16"),
        ("PGM", "I"),
    ],
)
def test_a_deep_file_gives_the_pixels_of_the_scaled_image(name: str, mode: str) -> None:
    values = np.asarray(formula.picture_in_mode(1, 40, 30, "L")).astype(int) * 256 + 77
    pgm = b"P5 40 30 65535\n" + values.astype(">u2").tobytes()
    data = pgm if name == "PGM" else encoded(deep(mode, values), name)
    assert Image.open(io.BytesIO(data)).mode == mode
    assert same(decoded(data, sixteen_bit="scale"), eight_bit_by_hand(values))
    assert decoded(data).array.min() == 255 - 255 * (values.min() < 255), "the reference's way: white"


def test_images_of_eight_bits_are_not_scaled() -> None:
    for mode in ("RGB", "L", "LA", "RGBA", "P", "1"):
        data = encoded(formula.picture_in_mode(1, 40, 30, mode), "PNG")
        assert np.array_equal(decoded(data, sixteen_bit="scale").array, decoded(data).array)


@pytest.mark.parametrize("sixteen_bit", ["clip", "scale"])
def test_the_transparent_value_of_16_bits_is_compared_in_16_bits(sixteen_bit: str) -> None:
    values = np.arange(1200).reshape(30, 40) * 50
    data = encoded(deep("I;16", values), "PNG", transparency=30_000)
    grey = eight_bit_by_hand(values) if sixteen_bit == "scale" else np.minimum(values, 255).astype(np.uint8)
    rgba = np.dstack([grey, grey, grey, np.where(values == 30_000, 0, 255).astype(np.uint8)])
    assert (rgba[..., 3] == 0).sum() == 1
    assert same(decoded(data, sixteen_bit=sixteen_bit, background="black"), laid_by_hand(rgba, "black"))
    plain = decoded(encoded(deep("I;16", values), "PNG"), sixteen_bit=sixteen_bit)
    assert np.array_equal(decoded(data, sixteen_bit=sixteen_bit).array, plain.array), (
        "without a background it is opaque"
    )


def test_all_options_together_turn_then_scale_then_lay() -> None:
    values = np.arange(1200).reshape(30, 40) * 50
    data = encoded(deep("I;16", values), "PNG", 6, transparency=30_000)
    grey = eight_bit_by_hand(values)
    rgba = np.dstack([grey, grey, grey, np.where(values == 30_000, 0, 255).astype(np.uint8)])
    result = decoded(data, orient="exif", sixteen_bit="scale", background="white")
    assert same(result, UPRIGHT[6](laid_by_hand(rgba, "white")))


# Frames


FRAMES = [formula.picture(i, 40, 30) for i in range(3)]
ANIMATIONS: dict[str, bytes] = {
    "GIF": encoded(FRAMES, "GIF"),
    "APNG": encoded(FRAMES, "PNG"),
    "APNG with a default image": encoded(FRAMES, "PNG", default_image=True),
    "WebP": encoded(FRAMES, "WEBP", lossless=True),
    "AVIF": encoded(FRAMES, "AVIF"),
    "TIFF": encoded(FRAMES, "TIFF"),
    "TIFF, LZW": encoded(FRAMES, "TIFF", compression="tiff_lzw"),
    "MPO": encoded(FRAMES, "MPO"),
    "HEIC": (HEIC / "three-pictures.heic").read_bytes(),
}
FIRST = {kind: 1 if kind == "HEIC" else 0 for kind in ANIMATIONS}  # the one that is shown where one is


def frames_by_hand(data: bytes) -> list[Image.Image]:
    formats.decodable_formats()
    frames: list[Image.Image] = []
    with Image.open(io.BytesIO(data)) as image:
        for index in range(image.n_frames):  # type: ignore[attr-defined]
            image.seek(index)
            frames.append(image.copy())
    return frames


def ids(results: list[Pixels | Failure]) -> list[str]:
    return [outcome.row.id if isinstance(outcome, Pixels) else outcome.id for outcome in results]


@pytest.mark.parametrize("kind", ANIMATIONS)
def test_each_frame_is_a_separate_image(kind: str) -> None:
    data = ANIMATIONS[kind]
    results = outcomes(data, frames="all", orient="exif")
    assert ids(results) == ["a#0", "a#1", "a#2"]
    for outcome, frame in zip(results, frames_by_hand(data), strict=True):
        assert isinstance(outcome, Pixels)
        assert same(outcome, frame)
        assert (outcome.row.path, outcome.row.size_bytes) == ("/b/a", len(data))
    assert len({outcome.array.tobytes() for outcome in results if isinstance(outcome, Pixels)}) == 3
    alone = decoded(data, orient="exif")
    assert alone.row.id == "a"
    first = results[FIRST[kind]]
    assert isinstance(first, Pixels)
    assert np.array_equal(first.array, alone.array)


@pytest.mark.parametrize("name", ["GIF", "PNG", "WEBP", "AVIF", "TIFF", "MPO", "JPEG", "BMP"])
def test_a_file_of_one_frame_keeps_its_id(name: str) -> None:
    data = encoded(FRAMES[0], name)
    [all_frames], alone = outcomes(data, frames="all"), decoded(data)
    assert isinstance(all_frames, Pixels)
    assert all_frames.row == alone.row
    assert np.array_equal(all_frames.array, alone.array)
    [heic_alone] = outcomes(heic(1), frames="all")
    assert isinstance(heic_alone, Pixels)
    assert heic_alone.row.id == "a"


def test_each_image_of_an_mpo_has_its_own_size_and_orientation() -> None:
    orientations, tag = (6, 1, 3), bytes.fromhex("0112 0003 00000001 00")
    data = encoded([formula.quarters(40 + n, 30) for n in range(3)], "MPO", 6)
    parts = data.split(tag + b"\6")
    assert len(parts) == 4
    data = parts[0] + b"".join(tag + bytes([n]) + part for n, part in zip(orientations, parts[1:], strict=True))
    stored, turned = outcomes(data, frames="all"), outcomes(data, frames="all", orient="exif")
    for n, frame in enumerate(frames_by_hand(data)):
        assert isinstance(result := stored[n], Pixels)
        assert isinstance(upright := turned[n], Pixels)
        assert same(result, frame)
        assert same(upright, UPRIGHT[orientations[n]](np.asarray(frame)))
    assert [o.row.width for o in stored if isinstance(o, Pixels)] == [40, 41, 42]


def tiff_of(*orientations: int) -> bytes:
    pages = [formula.quarters(40 + n, 30) for n in range(len(orientations))]
    buffer = io.BytesIO()
    with TiffImagePlugin.AppendingTiffWriter(buffer) as file:
        for page, orientation in zip(pages, orientations, strict=True):
            page.save(file, "TIFF", tiffinfo={274: orientation})
            file.newFrame()
    return buffer.getvalue()


@pytest.mark.parametrize("orient", ["none", "exif"])
def test_each_page_of_a_tiff_is_turned_by_its_own_orientation(orient: str) -> None:
    results = outcomes(tiff_of(1, 6, 3, 8), frames="all", orient=orient)
    assert ids(results) == ["a#0", "a#1", "a#2", "a#3"]
    for n, orientation in enumerate((1, 6, 3, 8)):
        assert isinstance(outcome := results[n], Pixels)
        assert same(outcome, UPRIGHT[orientation](np.asarray(formula.quarters(40 + n, 30))))


@pytest.mark.parametrize("name", ["PNG", "WEBP"])  # Pillow 13 crashes when it writes such an AVIF
def test_all_frames_of_an_animation_are_turned_by_its_orientation(name: str) -> None:
    data = encoded(FRAMES, name, 6, **LOSSLESS[name])
    whole = frames_by_hand(data)
    for outcome, frame in zip(outcomes(data, frames="all", orient="exif"), whole, strict=True):
        assert isinstance(outcome, Pixels)
        assert same(outcome, UPRIGHT[6](np.asarray(frame.convert("RGB"))))


def test_only_what_its_container_turns_is_turned_in_a_heic_of_several() -> None:
    data = (HEIC / "three-pictures.heic").read_bytes()
    sizes = {
        orient: [
            (o.row.width, o.row.height) for o in outcomes(data, frames="all", orient=orient) if isinstance(o, Pixels)
        ]
        for orient in ("none", "exif")
    }
    assert sizes == {"none": [(20, 16), (24, 20), (28, 20)], "exif": [(20, 16), (20, 24), (28, 20)]}


@pytest.mark.parametrize("kind", ANIMATIONS)
@given(share=st.floats(0, 1, exclude_max=True))
@example(share=1 / 3)
@example(share=2185.5 / 6549)
@example(share=4369.5 / 6549)
def test_what_a_cut_file_holds_before_the_cut_is_kept(kind: str, share: float) -> None:
    data = ANIMATIONS[kind]
    cut = int(len(data) * share)
    whole = outcomes(data, frames="all")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = outcomes(data[:cut], frames="all")
    kept = [outcome for outcome in results if isinstance(outcome, Pixels)]
    failures = [outcome for outcome in results if isinstance(outcome, Failure)]
    assert len(failures) <= 1
    # From a GIF frame's last byte to the end of the next control extension nothing shows that more follows.
    extension = data.rfind(b"\x21\xf9\x04", 0, cut + 4)
    between_frames = kind == "GIF" and bool(kept) and -1 <= cut - extension <= 8
    assert results == [*kept, *failures] if failures else cut > len(data) - 32 or between_frames
    for outcome, before in zip(kept, whole, strict=False):
        assert isinstance(before, Pixels)
        assert np.array_equal(outcome.array, before.array)
    assert ids(results) in ([f"a#{n}" for n in range(len(results))], ["a"])
    assert len(results) == 1 or ids(results) != ["a"]


@pytest.mark.parametrize(("kind", "kept"), [("APNG", 1), ("TIFF", 1), ("GIF", 1), ("APNG", 0), ("TIFF", 0)])
def test_a_damaged_frame_is_one_failure_with_its_own_id(kind: str, kept: int) -> None:
    results = outcomes(ANIMATIONS[kind][: len(ANIMATIONS[kind]) * (2 * kept + 1) // 6], frames="all")
    assert ids(results) == [f"a#{n}" for n in range(kept + 1)]
    assert [isinstance(outcome, Pixels) for outcome in results] == [True] * kept + [False]
    assert isinstance(last := results[-1], Failure)
    assert last.path == "/b/a"
    assert "truncated" in last.message


def test_frames_that_are_announced_and_not_there_are_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    seek = WebPImagePlugin.WebPImageFile.seek

    def ends(self: WebPImagePlugin.WebPImageFile, frame: int) -> None:
        if frame == 2:
            raise EOFError
        seek(self, frame)

    def has_none(self: WebPImagePlugin.WebPImageFile, _: int) -> None:
        self.n_frames = 0
        raise EOFError

    monkeypatch.setattr(WebPImagePlugin.WebPImageFile, "seek", has_none)
    [nothing] = outcomes(ANIMATIONS["WebP"], frames="all")
    assert isinstance(nothing, Failure)
    monkeypatch.setattr(WebPImagePlugin.WebPImageFile, "seek", ends)
    results = outcomes(ANIMATIONS["WebP"], frames="all")
    assert ids(results) == ["a#0", "a#1", "a#2"]
    assert isinstance(last := results[-1], Failure)
    assert "ends before frame 2 of 3, expected all" in last.message


@pytest.mark.parametrize("kind", ANIMATIONS)
def test_frames_beyond_the_limit_are_one_failure(kind: str) -> None:
    results = outcomes(ANIMATIONS[kind], Limits(max_frames=2), frames="all")
    assert ids(results) == ["a#0", "a#1", "a#2"]
    assert [isinstance(outcome, Pixels) for outcome in results] == [True, True, False]
    assert isinstance(last := results[-1], Failure)
    assert (last.stage, last.error) == ("open", "ImageError")
    assert "more than 2 frames, expected fewer. Raise max_frames." in last.message
    assert ids(outcomes(ANIMATIONS[kind], Limits(max_frames=3), frames="all")) == ["a#0", "a#1", "a#2"]
    assert isinstance(outcomes(ANIMATIONS[kind], Limits(max_frames=3), frames="all")[-1], Pixels)
    assert isinstance(outcomes(ANIMATIONS[kind], Limits(max_frames=1))[0], Pixels), "one frame is asked for"


def test_each_frame_has_to_keep_the_limits_by_itself() -> None:
    pages = [formula.picture(0, 40, 30), formula.picture(1, 40, 31), formula.picture(2, 40, 30)]
    results = outcomes(encoded(pages, "TIFF"), Limits(max_pixels=1200), frames="all")
    assert ids(results) == ["a#0", "a#1"]
    assert isinstance(last := results[-1], Failure)
    assert (last.stage, "40 x 31 px" in last.message) == ("open", True)


@pytest.mark.parametrize(
    ("options", "images"),
    [(DecodeOptions(), 1), (DecodeOptions(orient="exif"), 2), (DecodeOptions(background="white"), 3), (ALL_OPTIONS, 4)],
)
@pytest.mark.parametrize("frames", ["first", "all"])
def test_each_frame_is_reserved_by_itself_with_what_the_options_hold(
    options: DecodeOptions, images: int, frames: Frames
) -> None:
    reserved: list[int] = []
    held: list[int] = []

    @contextmanager
    def reserve(size_bytes: int) -> Generator[None]:
        assert held == [], "the frame before has not given its share back"
        reserved.append(size_bytes)
        held.append(size_bytes)
        yield
        held.pop()

    decode(Item("a", "a", 1), ANIMATIONS["TIFF"], SETTINGS, reserve, options=replace(options, frames=frames))
    resized = resized_size(40, 30, 16)
    assert reserved == [4 * (images * 40 * 30 + resized[0] * resized[1])] * (3 if frames == "all" else 1)


def test_the_layers_of_a_psd_are_no_frames() -> None:
    planes = np.asarray(FRAMES[0]).transpose(2, 0, 1).tobytes()
    head = struct.pack(">4sH6xHIIHH", b"8BPS", 1, 3, 30, 40, 8, 3)
    [result] = outcomes(head + bytes(4) * 3 + bytes(2) + planes, frames="all")
    assert isinstance(result, Pixels)
    assert result.row.id == "a"
    assert same(result, FRAMES[0])
    assert {*formats.decodable_formats(), "MPO"} >= FORMATS_WITH_FRAMES


def test_all_outcomes_of_a_file_have_its_hash(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(ANIMATIONS["GIF"])
    decoding = Decoding(Source((str(tmp_path),)), SETTINGS, Limits(), DecodeOptions(frames="all"), hashes=True)
    results = decoding(Item("a", str(tmp_path / "a"), 1))
    sha256 = hashlib.sha256(ANIMATIONS["GIF"]).hexdigest()
    assert [o.row.sha256 for o in results if isinstance(o, Pixels)] == [sha256] * 3


@given(
    st.binary(max_size=200), st.sampled_from(list(ANIMATIONS)), st.sampled_from(["none", "exif"]), st.integers(0, 10**6)
)
def test_no_option_makes_decode_raise(noise: bytes, kind: str, orient: Orient, place: int) -> None:
    data = bytearray(ANIMATIONS[kind])
    place %= len(data)
    data[place : place + len(noise)] = noise
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = outcomes(bytes(data), Limits(max_pixels=10_000), frames="all", orient=orient, background="white")
    assert results
    assert all(isinstance(outcome, (Pixels, Failure)) for outcome in results)


# HEIC as an extra


def test_heic_files_are_images_where_the_extra_is_installed(tmp_path: Path) -> None:
    assert "HEIF" in formats.decodable_formats()
    assert {".heic", ".heif", ".hif"} <= formats.decodable_extensions()
    (tmp_path / "nameless").write_bytes(heic(1))
    assert formats.looks_like_image(str(tmp_path / "nameless"))


@pytest.mark.parametrize("brand", [b"heic", b"mif1"])
def test_a_heic_is_one_by_its_content_whatever_its_brand(brand: bytes) -> None:
    data = heic(6).replace(b"ftypheic", b"ftyp" + brand)
    assert decoded(data).row.format == "HEIF"
    assert np.array_equal(decoded(data).array, decoded(heic(6)).array)
    assert decoded(encoded(FRAMES[0], "AVIF").replace(b"ftypavif", b"ftypmif1")).row.format == "AVIF"


def test_a_damaged_heic_says_so() -> None:
    [outcome] = outcomes(heic(1)[:-300])
    assert isinstance(outcome, Failure)
    assert outcome.message == "is a damaged HEIC. Restore it from its source."


def test_without_the_extra_a_heic_is_not_an_image_and_its_failure_says_how_to_get_it() -> None:
    done = command("decode_heic_without_extra", HEIC / "orientation-1.heic")
    ran = subprocess.run(done, capture_output=True, text=True, check=False, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert "Run: pip install 'clip-turbo[heic]'" in ran.stdout


# The page


def corners(result: Pixels) -> str:
    """The four quarters of a decoded image, by the letters of `formula.quarters`."""
    colours = np.array([(215, 55, 55), (55, 175, 55), (55, 55, 215), (215, 215, 55)])
    quarter = SETTINGS.resolution_px // 4
    points = [(y, x) for y in (quarter, 3 * quarter) for x in (quarter, 3 * quarter)]
    letters = ["ABCD"[int(np.abs(colours - result.array[y, x].astype(int)).sum(1).argmin())] for y, x in points]
    return f"{letters[0]}{letters[1]} / {letters[2]}{letters[3]}"


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WebP", "AVIF", "TIFF", "HEIC"])
@pytest.mark.parametrize("orient", ["none", "exif"])
def test_the_table_of_orientations_is_what_decode_gives(name: str, orient: str) -> None:
    lines = [line for line in (ROOT / "docs" / "images.md").read_text().splitlines() if re.match(r"\| [1-8] \|", line)]
    assert len(lines) == 8
    for orientation, line in enumerate(lines, 1):
        none, exif, tiff = (cell.strip(" `") for cell in line.split("|")[3:6])
        data = heic(orientation) if name == "HEIC" else encoded(formula.quarters(*SIZE), name.upper(), orientation)
        expected = tiff if name == "TIFF" else none if orient == "none" else exif
        assert corners(decoded(data, orient=orient)) == expected


def test_the_code_on_the_page_prints_what_the_page_shows() -> None:
    code, printed = re.findall(r"```(?:python)?\n(.*?)```", (ROOT / "docs" / "images.md").read_text(), re.DOTALL)
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout == printed
