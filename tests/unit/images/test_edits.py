"""Edits of an image are told from other images; bench/duplicates.py measures it on more."""

from random import Random

import numpy as np
import pytest
from kit.photos import EDITS, cut_photo, make_bursts, make_edits, make_wide_photos
from PIL import Image

from clip.images.edits import Sketch, find_edit, make_sketch

PHOTOS = 12


def sketch(image: Image.Image) -> Sketch:
    return Sketch.of(make_sketch(image), *image.size)


@pytest.fixture(scope="module")
def wide() -> list[Image.Image]:
    return list(make_wide_photos(PHOTOS))


@pytest.fixture(scope="module")
def found(wide: list[Image.Image]) -> dict[str, list[bool]]:
    """Whether each edit of each photo is found, by the kind of edit."""
    rng = Random(1)
    found: dict[str, list[bool]] = {edit: [] for edit in EDITS}
    for photo in map(cut_photo, wide):
        own = sketch(photo)
        for name, edit in make_edits(photo, rng):
            found[name].append(find_edit(own, sketch(edit)) is not None)
    return found


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_is_found(found: dict[str, list[bool]], edit: str) -> None:
    assert sum(found[edit]) >= PHOTOS - 1


def test_nearly_all_edits_are_found(found: dict[str, list[bool]]) -> None:
    assert np.mean([value for values in found.values() for value in values]) >= 0.96


def test_bursts_are_no_edits(wide: list[Image.Image]) -> None:
    rng = Random(2)
    for one in wide:
        own = sketch(cut_photo(one))
        assert [find_edit(own, sketch(burst)) for burst in make_bursts(one, rng)] == [None, None]


def test_different_photos_are_no_edits(wide: list[Image.Image]) -> None:
    sketches = [sketch(cut_photo(one)) for one in wide]
    pairs = [(a, b) for a in range(PHOTOS) for b in range(a)]
    assert [pair for pair in pairs if find_edit(sketches[pair[0]], sketches[pair[1]])] == []


def test_it_says_which_one_is_the_crop_and_of_where(wide: list[Image.Image]) -> None:
    photo = cut_photo(wide[0])
    width, height = photo.size
    crop = photo.crop((width // 10, 0, width // 10 + width * 3 // 4, height * 4 // 5))
    match, turned = find_edit(sketch(photo), sketch(crop)), find_edit(sketch(crop), sketch(photo))
    assert match is not None
    assert turned is not None
    assert (match.swapped, turned.swapped, match.is_whole) == (False, True, False)
    assert (match.left, match.top, match.width, match.height) == pytest.approx((0.1, 0, 0.75, 0.8), abs=0.01)


def test_a_moved_object_or_another_colour_is_another_image(wide: list[Image.Image]) -> None:
    photo = cut_photo(wide[0])
    own = sketch(photo)
    moved = photo.copy()
    moved.paste(photo.resize((90, 90)), (photo.width // 2, photo.height // 3))
    assert find_edit(own, sketch(moved)) is None
    red, green, blue = photo.split()
    assert find_edit(own, sketch(Image.merge("RGB", (blue, green, red)))) is None


def test_an_image_without_contrast_is_its_own_copy_and_no_others() -> None:
    plain = sketch(Image.new("RGB", (90, 60), (90, 120, 200)))
    assert find_edit(plain, sketch(Image.new("RGB", (45, 30), (91, 120, 199)))) is not None
    assert find_edit(plain, sketch(Image.new("RGB", (90, 60), (200, 90, 90)))) is None
