"""RAW photos are told by their content and never embedded as a thumbnail; with an option, as the JPEG inside."""

import io
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit import damage, formula
from PIL import Image

from clip.errors import ImageError
from clip.images.decode import decode, read_pixels
from clip.images.jpeg import find_end, find_frame
from clip.images.kinds import get_unread_kind, sniff_unread_kind
from clip.images.open import open_image
from clip.images.raw import MAX_DIRECTORIES, find_preview, is_raw, read_orientation
from clip.jobs.options import DecodeOptions, Limits
from clip.network.records import PreprocessSettings
from clip.records import Failure, Item, Pixels

SETTINGS = PreprocessSettings(32)
LARGE, SMALL = (damage.encode(formula.picture(n, *size), "JPEG") for n, size in enumerate([(96, 64), (16, 12)]))


def outcome_of(data: bytes, limits: Limits | None = None, **options: str | bool) -> Pixels | Failure:
    [outcome] = decode(
        Item("a.dng", "a.dng", 1),
        data,
        SETTINGS,
        limits=limits or Limits(),
        options=DecodeOptions(**options),  # type: ignore[arg-type]
    )
    return outcome


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_raw_photo_is_refused_unless_its_preview_is_asked_for(order: str) -> None:
    data = damage.make_raw([SMALL, LARGE, SMALL], order=order)
    assert is_raw(data)
    refused = outcome_of(data)
    assert isinstance(refused, Failure)
    assert (refused.stage, "is a RAW photo of a camera, expected an image." in refused.message) == ("open", True)
    assert "`" not in refused.message
    with pytest.raises(ImageError, match="RAW photo"):
        open_image(data)
    found = outcome_of(data, raw_previews=True)
    assert isinstance(found, Pixels)
    assert np.array_equal(found.array, read_pixels(LARGE, SETTINGS))
    assert found.row.warning == "the JPEG of 96 x 64 px inside a RAW photo"
    assert (found.row.width, found.row.height, found.row.size_bytes) == (96, 64, len(data))


def test_a_preview_is_turned_as_the_raw_photo_says_unless_it_says_so_itself() -> None:
    data = damage.make_raw([LARGE], orientation=6)
    assert read_orientation(data) == 6
    stored, upright = outcome_of(data, raw_previews=True), outcome_of(data, raw_previews=True, orient="exif")
    assert isinstance(stored, Pixels)
    assert isinstance(upright, Pixels)
    assert (stored.row.width, stored.row.height, stored.stored_turned) == (96, 64, True)
    assert (upright.row.width, upright.row.height, upright.stored_turned) == (64, 96, False)
    exif = Image.Exif()
    exif[274] = 1
    own = damage.make_raw([damage.encode(formula.picture(0, 96, 64), "JPEG", exif=exif)], orientation=6)
    outcome = outcome_of(own, raw_previews=True, orient="exif")
    assert isinstance(outcome, Pixels)
    assert (outcome.row.width, outcome.row.height) == (96, 64)


def test_limits_hold_for_the_preview_and_a_raw_photo_without_one_says_so() -> None:
    data = damage.make_raw([LARGE])
    refused = outcome_of(data, Limits(max_pixels=96 * 64 - 1), raw_previews=True)
    assert isinstance(refused, Failure)
    assert "96 x 64 px" in refused.message
    for previews in ([], [LARGE[:-300]]):
        nothing = outcome_of(damage.make_raw(previews), raw_previews=True)
        assert isinstance(nothing, Failure)
        assert "without a JPEG inside" in nothing.message


def test_lossless_jpegs_of_the_sensor_are_no_previews() -> None:
    lossless = LARGE.replace(b"\xff\xc0", b"\xff\xc3")
    assert find_preview(damage.make_raw([lossless, SMALL])) == SMALL


def test_tiffs_are_no_raw_photos_whatever_they_hold() -> None:
    for options in ({}, {"compression": "tiff_lzw"}, {"compression": "jpeg"}):
        data = damage.encode(formula.picture(0, 40, 30), "TIFF", **options)
        assert not is_raw(data)
        assert isinstance(outcome_of(data, raw_previews=True), Pixels)
    assert not is_raw(damage.make_raw([LARGE], sensor=False))
    pages = io.BytesIO()
    frames = [formula.picture(n, 9, 9) for n in range(MAX_DIRECTORIES + 9)]
    frames[0].save(pages, "TIFF", save_all=True, append_images=frames[1:])
    assert not is_raw(pages.getvalue())


@pytest.mark.parametrize(
    "begin",
    [
        *(b"IIRO\x08\0", b"IIRS\x08\0", b"IIU\0\x18\0", b"FUJIFILMCCD-RAW 0201", b"FOVb\0\0", b"\0MRM\0"),
        *(b"\0\0\0\x18ftypcrx \0\0\0\1", b"II*\0\x10\0\0\0CR\2\0"),
    ],
)
def test_other_makers_files_are_told_by_their_first_bytes(begin: bytes) -> None:
    data = begin + bytes(64) + LARGE + bytes(64)
    assert sniff_unread_kind(data) == "RAW"
    assert isinstance(outcome_of(data), Failure)
    outcome = outcome_of(data, raw_previews=True)
    assert isinstance(outcome, Pixels)
    assert outcome.row.width == 96


@given(st.binary(max_size=200), st.sampled_from(["<", ">"]))
def test_directories_may_hold_anything(body: bytes, order: str) -> None:
    for data in (
        (b"II*\0" if order == "<" else b"MM\0*") + body,
        (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8) + body,
    ):
        is_raw(data)
        read_orientation(data)
        find_preview(data)
        outcome_of(data, raw_previews=True)


def test_directories_in_a_circle_end() -> None:
    circle = b"II*\0\x08\0\0\0" + struct.pack("<HHHIII", 1, 330, 4, 1, 8, 8)
    assert not is_raw(circle)
    many = b"II*\0\x08\0\0\0" + struct.pack("<HHHIII", 1, 330, 4, 2**32 - 1, 0, 8)
    assert not is_raw(many)


@given(more=st.binary(max_size=300), progressive=st.booleans(), restart=st.sampled_from([0, 1, 3]))
def test_the_end_of_a_jpeg_is_found_whatever_follows(more: bytes, progressive: bool, restart: int) -> None:
    data = damage.encode(
        formula.picture(0, 33, 17), "JPEG", progressive=progressive, restart_marker_blocks=restart, quality=95
    )
    assert find_end(data + more) == len(data)
    assert find_end(more + data, len(more)) == len(more) + len(data)
    assert find_frame(data + more) == (33, 17)
    assert find_end(data[:-2]) is None


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.NEF", "RAW"), ("b/c.dng", "RAW"), ("a.mov", "video"), ("A.MP4", "video"), ("a.jpg", None), ("nef", None)],
)
def test_kinds_are_told_by_name(name: str, kind: str | None) -> None:
    assert get_unread_kind(name) == kind
