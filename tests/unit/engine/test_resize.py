"""The resize that a GPU does, run on the CPU: Pillow's bytes for every size and mode that takes this path."""

import os
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kit import formula
from kit.windows import ROOM_BYTES, make_windows, resize
from PIL import Image

import clip
from clip.engine import resize as module
from clip.errors import ImageError
from clip.images.transform import to_pixels
from clip.images.windows import Windows, cut_window, join_windows
from clip.network.records import PreprocessSettings

SIZES = int(os.environ.get("CLIP_SOAK_SIZES", "240"))
BATCH = 40
MODES = ["RGB", "L", "RGBA", "LA"]  # of the last two, images without a transparent pixel
side = st.integers(1, 130)
settings_of = st.builds(
    PreprocessSettings,
    st.integers(1, 40),
    interpolation=st.sampled_from(["bicubic", "bilinear"]),
    resize_mode=st.sampled_from(["shortest", "squash"]),
)


def make_image(width: int, height: int, mode: str, seed: int) -> Image.Image:
    """Noise, half of it black and white alone, whose edges overshoot a byte between the passes."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
    pixels = np.where(pixels > 127, np.uint8(255), np.uint8(0)) if seed % 2 else pixels
    image = Image.fromarray(pixels).convert(mode)
    assert image.mode == mode
    return image


def assert_pillows(images: list[Image.Image], settings: PreprocessSettings) -> None:
    found = resize(images, settings)
    for image, pixels in zip(images, found, strict=True):
        assert np.array_equal(pixels, to_pixels(image, settings)), (image, settings)


@given(sizes=st.lists(st.tuples(side, side, st.sampled_from(MODES)), min_size=1, max_size=4), settings=settings_of)
def test_images_of_any_sizes_together_are_pillows_bytes(
    sizes: list[tuple[int, int, str]], settings: PreprocessSettings
) -> None:
    assert_pillows([make_image(*size, seed) for seed, size in enumerate(sizes)], settings)


def test_many_random_sizes_are_pillows_bytes() -> None:
    """2,000 of them in `make soak`."""
    rng = random.Random(18)
    for start in range(0, SIZES, BATCH):
        settings = PreprocessSettings(rng.choice([32, 56, 224]))
        longest = rng.choice([60, 300, 900])
        images = [
            make_image(rng.randint(1, longest), rng.randint(1, longest), rng.choice(MODES), seed)
            for seed in range(start, start + BATCH)
        ]
        fitting = [image for image in images if max(image.size) <= 20 * min(image.size)]  # else the canvas is huge
        assert_pillows(fitting, settings)


@pytest.mark.parametrize(
    "size",
    [
        (224, 224),
        (224, 300),
        (300, 224),
        (448, 448),
        (500, 375),
        (375, 500),
        (225, 224),
        (50, 2000),
        (2000, 50),
        (1, 1),
    ],
)
def test_sizes_at_which_pillow_leaves_out_or_turns_its_passes(size: tuple[int, int]) -> None:
    for mode in MODES:
        assert_pillows([make_image(*size, mode, 1)], PreprocessSettings(224))


def test_a_large_photo_is_pillows_bytes() -> None:
    assert_pillows([formula.picture(4, 1600, 1200), formula.picture(5, 33, 47)], PreprocessSettings(224))


def test_groups_of_any_size_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sorted by size, resized in groups, and put back in order."""
    settings = PreprocessSettings(16)
    images = [make_image(5 + 37 * n % 60, 5 + 53 * n % 200, MODES[n % 4], n) for n in range(30)]
    together = resize(images, settings)
    for limit in (1, 5_000, 40_000):
        monkeypatch.setattr(module, "GROUP_BYTES", limit)
        groups = list(module._group(make_windows(images, settings).table))
        assert sorted(np.concatenate(groups).tolist()) == list(range(30))
        assert (len(groups) == 30) == (limit == 1)
        assert np.array_equal(resize(images, settings), together)


@pytest.mark.parametrize("mode", ["1", "P", "CMYK", "I", "I;16", "F", "YCbCr"])
def test_other_modes_are_left_to_pillow(mode: str) -> None:
    image = formula.picture_in_mode(3, 40, 30, mode) if mode != "YCbCr" else make_image(40, 30, mode, 1)
    assert cut_window(image, PreprocessSettings(16), ROOM_BYTES) is None


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_an_image_with_one_pixel_that_is_not_opaque_is_left_to_pillow(mode: str) -> None:
    image = make_image(40, 30, mode, 1)
    assert cut_window(image, PreprocessSettings(16), ROOM_BYTES) is not None
    alpha = image.getchannel("A")
    alpha.putpixel((7, 5), 254)
    image.putalpha(alpha)
    assert cut_window(image, PreprocessSettings(16), ROOM_BYTES) is None


def test_only_the_pixels_that_the_crop_depends_on_are_kept() -> None:
    settings = PreprocessSettings(32)
    cut = cut_window(make_image(1000, 100, "L", 0), settings, ROOM_BYTES)
    assert cut is not None
    pixels, window = cut
    assert pixels.shape == (100, window.columns, 1)
    assert window.columns < 130, "a tenth of the image, and half a filter at each end"
    assert cut_window(make_image(1000, 100, "L", 0), settings, pixels.size) is not None
    assert cut_window(make_image(1000, 100, "L", 0), settings, pixels.size - 1) is None


def test_a_canvas_that_no_memory_holds_is_refused_as_elsewhere() -> None:
    with pytest.raises(ImageError, match="1 x 100000 px would be resized to 224 x 22400000"):
        cut_window(Image.new("L", (1, 100_000)), PreprocessSettings(224), ROOM_BYTES)


def test_windows_are_cut_and_joined_without_their_neighbours_bytes() -> None:
    settings = PreprocessSettings(8)
    images = [make_image(20 + n, 30 - n, "RGB", n) for n in range(5)]
    whole = make_windows(images, settings)
    expected = resize(images, settings)
    assert len(whole) == 5
    device = torch.device("cpu")
    assert np.array_equal(module.resize_windows(whole[1:4], settings, device).numpy(), expected[1:4])
    single = [Windows((piece,), table[None]) for piece, table in zip(whole.memory, whole.table, strict=True)]
    for part in single:
        part.table[:, 0] = 0
    copied = join_windows([part.copy() for part in single[2:]])
    for part in single:
        part.memory[0][:] = 0
    assert np.array_equal(module.resize_windows(copied, settings, device).numpy(), expected[2:])
    assert module.resize_windows(join_windows([]), settings, device).shape == (0, 8, 8, 3)


def test_an_encoder_encodes_windows_in_its_batches_as_it_does_their_crops() -> None:
    encoder = clip.Encoder("sketch", device="cpu", batch_size=4)
    assert torch.uint8 not in encoder._engine._graphs
    encoder.warm_up(9)
    assert torch.uint8 in encoder._engine._graphs
    images = [make_image(20 + 31 * n, 300 - 17 * n, MODES[n % 4], n) for n in range(10)]
    crops = np.stack([to_pixels(image, encoder.settings) for image in images])
    assert np.array_equal(encoder.encode_windows(make_windows(images, encoder.settings)), encoder.encode_pixels(crops))
