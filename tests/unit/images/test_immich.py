"""pixels="immich": what Immich's own server makes of an image, written down here from its description."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit import draws
from PIL import Image

from clip.errors import ImageError
from clip.images.decode import decode, read_pixels
from clip.images.immich import to_pixels_immich
from clip.images.transform import to_pixels
from clip.jobs.options import DecodeOptions
from clip.network.records import PreprocessSettings
from clip.records import Item, Pixels

SIDE = 32
SETTINGS = PreprocessSettings(SIDE)


def make_reference(image: Image.Image) -> np.ndarray:
    """RGB first; the longer side from the quotient of the sides; the corner towards 0."""
    image = image.convert("RGB")
    if image.width < image.height:
        image = image.resize((SIDE, int((image.height / image.width) * SIDE)), Image.Resampling.BICUBIC)
    else:
        image = image.resize((int((image.width / image.height) * SIDE), SIDE), Image.Resampling.BICUBIC)
    left, top = int((image.width / 2) - (SIDE / 2)), int((image.height / 2) - (SIDE / 2))
    return np.asarray(image.crop((left, top, left + SIDE, top + SIDE)))


@given(st.integers(1, 200), st.integers(1, 200), st.sampled_from(["RGB", "L", "RGBA", "P", "LA", "CMYK"]))
def test_pixels_are_those_of_immich(width: int, height: int, mode: str) -> None:
    image = draws.picture(1, width, height).convert(mode)
    np.testing.assert_array_equal(to_pixels_immich(image, SETTINGS), make_reference(image))


def test_they_differ_from_openais_where_the_order_of_the_steps_shows() -> None:
    palette = draws.picture(2, 90, 70).convert("P")
    assert np.abs(to_pixels_immich(palette, SETTINGS).astype(int) - to_pixels(palette, SETTINGS)).max() > 8
    shifted = draws.picture(3, 43 * 4, 32 * 4)  # 43 - 32 = 11 pixels are cut off: 5.5 is 6 for OpenAI, 5 for Immich
    np.testing.assert_array_equal(to_pixels_immich(shifted, SETTINGS)[:, 1:], to_pixels(shifted, SETTINGS)[:, :-1])


def test_every_way_to_pixels_takes_the_mode() -> None:
    file = io.BytesIO()
    draws.picture(4, 90, 71).convert("P").save(file, "PNG")
    expected = make_reference(Image.open(file))
    (outcome,) = decode(Item("a", "a", 1), file.getvalue(), SETTINGS, options=DecodeOptions(pixels="immich"))
    assert isinstance(outcome, Pixels)
    for found in (
        outcome.array,
        read_pixels(file.getvalue(), SETTINGS, "immich"),
        read_pixels(Image.open(file), SETTINGS, "immich"),
    ):
        np.testing.assert_array_equal(found, expected)


def test_an_image_that_no_memory_holds_is_refused() -> None:
    with pytest.raises(ImageError, match="pixels"):
        to_pixels_immich(Image.new("L", (1, 300_000)), SETTINGS)
