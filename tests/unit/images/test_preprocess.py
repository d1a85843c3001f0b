"""The transform beside a slow reference, and the forms an image may come in. Golden pixels: tests/parity."""

import hashlib
import io
import itertools
import re
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kit import formula
from PIL import Image

from clip.errors import ImageError, InputTypeError
from clip.images import formats, geometry, steps, transform
from clip.images import preprocess as pre
from clip.images.decode import decode
from clip.images.transform import to_pixels
from clip.jobs.options import Limits
from clip.network.records import OPENAI_MEAN, OPENAI_STD, PreprocessSettings
from clip.records import Failure, Item, Pixels

sides = st.integers(1, 3000)


@given(sides, sides, st.integers(1, 512))
def test_the_short_side_becomes_the_resolution_and_the_ratio_stays_within_a_pixel(w: int, h: int, n: int) -> None:
    width, height = geometry.resized_size(w, h, n)
    assert min(width, height) == n
    assert max(width, height) == int(n * max(w, h) / min(w, h))
    assert (width >= height) == (w >= h) or width == height


@pytest.mark.parametrize(
    ("size", "resized"),
    [((301, 200), (337, 224)), ((333, 777), (224, 522)), ((1, 50), (224, 11200)), ((2162, 762), (635, 224))],
)
def test_sizes_that_the_reference_was_seen_to_give(size: tuple[int, int], resized: tuple[int, int]) -> None:
    assert geometry.resized_size(*size, 224) == resized


@given(st.integers(1, 5000), st.integers(1, 600))
def test_the_crop_starts_at_half_of_the_rest_rounded_half_to_even(size: int, crop: int) -> None:
    if size >= crop:
        half = (Decimal(size - crop) / 2).quantize(Decimal(1), rounding=ROUND_HALF_EVEN)
        assert geometry.crop_offset(size, crop) == int(half)


def test_the_crop_of_three_spare_pixels_starts_at_the_second_and_not_at_the_floor() -> None:
    assert [geometry.crop_offset(224 + spare, 224) for spare in range(8)] == [0, 0, 1, 2, 2, 2, 3, 4]


@given(
    st.integers(1, 40), st.integers(1, 40), st.integers(1, 30), st.sampled_from(["RGB", "L", "RGBA", "P", "1", "CMYK"])
)
def test_any_image_equals_pillow_called_by_hand(w: int, h: int, n: int, mode: str) -> None:
    image = formula.picture_in_mode(3, w, h, mode)
    size = geometry.resized_size(w, h, n)
    resized = image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)
    left, top = round((size[0] - n) / 2.0), round((size[1] - n) / 2.0)
    pixels = np.asarray(resized.crop((left, top, left + n, top + n)).convert("RGB"))
    by_hand = (
        pixels.transpose(2, 0, 1).astype(np.float32) / np.float32(255) - np.float32(OPENAI_MEAN)[:, None, None]
    ) / (np.float32(OPENAI_STD)[:, None, None])
    assert np.array_equal(to_pixels(image, PreprocessSettings(n)), pixels)
    assert np.array_equal(pre.make_preprocess(PreprocessSettings(n))(image).numpy(), by_hand)
    batch = pre.normalize_pixels(torch.from_numpy(pixels.copy())[None], PreprocessSettings(n))
    assert np.array_equal(batch[0].numpy(), by_hand)


def test_an_image_smaller_than_the_crop_is_filled_up_with_black_as_torchvision_does() -> None:
    cropped = np.asarray(transform.crop_image(Image.new("L", (2, 3), 9), (4, 5)))
    assert cropped.tolist() == [[0, 9, 9, 0, 0], [0, 9, 9, 0, 0], [0, 9, 9, 0, 0], [0, 0, 0, 0, 0]]


def test_a_path_bytes_an_image_and_an_array_give_the_same_tensor(tmp_path: Path) -> None:
    image = formula.picture(1, 61, 47)
    file = tmp_path / "a.png"
    image.save(file)
    transform = pre.make_preprocess(PreprocessSettings(32))
    wanted = transform(image)
    forms = [file, str(file), file.read_bytes(), bytearray(file.read_bytes()), np.asarray(image)]
    assert all(torch.equal(transform(form), wanted) for form in forms)
    assert wanted.dtype == torch.float32
    assert wanted.shape == (3, 32, 32)


@pytest.mark.parametrize(
    "wrong",
    [None, 3, [1], np.zeros((8, 8, 3)), np.zeros((8, 8), np.uint8), np.zeros((3, 8, 8), np.uint8)],
    ids=["None", "int", "list", "floats", "grey", "channels first"],
)
def test_what_is_not_an_image_is_a_type_error_that_names_what_was_found(wrong: object) -> None:
    with pytest.raises(InputTypeError, match=r"found .*expected") as caught:
        pre.make_preprocess(PreprocessSettings(32))(wrong)
    assert isinstance(caught.value, TypeError)


def test_a_canvas_over_256_megapixels_is_refused_with_its_size_before_it_is_made() -> None:
    with pytest.raises(ImageError, match=re.escape("1 x 100000 px would be resized to 224 x 22400000")):
        pre.make_preprocess(PreprocessSettings(224))(Image.new("1", (1, 100_000)))
    assert geometry.MAX_CANVAS_PX > 224 * 1_120_000, "a 1 x 5000 image still passes"


def test_an_image_without_pixels_is_an_image_error() -> None:
    with pytest.raises(ImageError, match="0 x 3 px"):
        pre.make_preprocess(PreprocessSettings(8))(Image.new("RGB", (0, 3)))


def test_integers_and_images_are_not_normalised() -> None:
    for wrong, shown in [
        (torch.zeros(3, 2, 2, dtype=torch.uint8), r"torch\.uint8"),
        (Image.new("RGB", (2, 2)), "Image"),
    ]:
        with pytest.raises(InputTypeError, match=shown):
            steps.Normalize(OPENAI_MEAN, OPENAI_STD)(wrong)


def test_a_tensor_goes_to_the_first_step_and_meets_openais_error_at_the_third() -> None:
    with pytest.raises(AttributeError, match="convert"):
        pre.make_preprocess(PreprocessSettings(32))(torch.zeros(3, 40, 40))


tensors = st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 40)).map(
    lambda shape: torch.rand(shape, generator=torch.manual_seed(sum(shape)))
)


@given(tensors, st.integers(1, 50), st.integers(1, 50))
def test_a_crop_of_a_tensor_is_that_of_its_channels_as_images(tensor: torch.Tensor, height: int, width: int) -> None:
    pixels = (tensor * 255).to(torch.uint8)
    cropped = steps.CenterCrop((height, width))(pixels)
    for channel, found in zip(pixels, cropped, strict=True):
        image = transform.crop_image(Image.fromarray(channel.numpy()), (height, width))
        assert np.array_equal(np.asarray(image), found.numpy())


@given(tensors, st.integers(1, 50), st.sampled_from(["bicubic", "bilinear"]))
def test_a_tensor_is_resized_to_the_size_of_the_same_image(tensor: torch.Tensor, short: int, mode: str) -> None:
    step = steps.Resize(short, steps.InterpolationMode(mode))
    height, width = tensor.shape[1:]
    assert step(Image.new("L", (width, height))).size == tuple(reversed(step(tensor).shape[1:]))
    assert torch.equal(step(tensor[None])[0], step(tensor))


def test_the_transform_prints_its_steps() -> None:
    shown = repr(pre.make_preprocess(PreprocessSettings(224)))
    words = ("Resize(size=224, interpolation=bicubic", "CenterCrop", "_convert_image_to_rgb", "ToTensor", "Normalize")
    assert [word for word in words if word not in shown] == []
    assert shown.count("\n") == 6


def encoded(image: Image.Image, name: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, name)
    return buffer.getvalue()


def test_decode_gives_the_transforms_pixels_and_what_the_original_was() -> None:
    image = formula.picture(2, 50, 40)
    data = encoded(image, "PNG")
    [outcome] = decode(Item("a", "/b/a", 7), data, PreprocessSettings(16))
    assert isinstance(outcome, Pixels)
    assert np.array_equal(outcome.array, to_pixels(image, PreprocessSettings(16)))
    row = outcome.row
    assert (row.id, row.path, row.width, row.height, row.format) == ("a", "/b/a", 50, 40, "PNG")
    assert row.size_bytes == len(data)


@pytest.mark.parametrize(
    ("data", "stage", "message"),
    [
        (b"", "open", "is empty. Restore it from its source."),
        (b"just a text", "open", "starts with b'just a text'"),
        (encoded(formula.picture(0, 64, 64), "JPEG")[:400], "open", "Truncated"),
        (encoded(formula.picture(0, 64, 64), "PNG")[:900], "decode", "truncated"),
        (encoded(Image.new("1", (1, 100_000)), "PNG"), "decode", "would be resized"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "open", "starts with b'%!PS"),
    ],
    ids=["empty", "text", "cut header", "cut pixels", "canvas", "a program for Ghostscript"],
)
def test_decode_gives_a_failure_with_stage_and_reason(data: bytes, stage: str, message: str) -> None:
    [outcome] = decode(Item("a", "/b/a", 7), data, PreprocessSettings(224))
    assert isinstance(outcome, Failure)
    assert (outcome.id, outcome.path, outcome.stage) == ("a", "/b/a", stage)
    assert message in outcome.message
    assert "0x" not in outcome.message


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded() -> None:
    data = encoded(Image.new("1", (300, 200)), "PNG")
    [outcome] = decode(Item("a", "a", 7), data, PreprocessSettings(224), limits=Limits(max_pixels=59_999))
    assert isinstance(outcome, Failure)
    assert (outcome.stage, "300 x 200 px, expected at most 59,999 pixels" in outcome.message) == ("open", True)


@given(st.binary(max_size=300))
def test_decode_never_raises(data: bytes) -> None:
    assert isinstance(decode(Item("a", "a", len(data)), data, PreprocessSettings(8))[0], (Pixels, Failure))


def test_extensions_are_those_of_formats_pillow_decodes_by_itself() -> None:
    extensions = formats.decodable_extensions()
    assert {".jpg", ".jpeg", ".png", ".gif", ".webp", ".tif", ".tiff", ".bmp", ".avif", ".mpo", ".jp2"} <= extensions
    assert not {".eps", ".ps", ".pdf", ".mpg", ".h5", ".txt", ""} & extensions


@pytest.mark.parametrize("name", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
def test_content_is_recognised_without_a_name(tmp_path: Path, name: str) -> None:
    file = tmp_path / "nameless"
    file.write_bytes(encoded(formula.picture(0, 9, 9), name))
    assert formats.looks_like_image(str(file))
    file.write_bytes(b"#!/bin/sh\necho hello\n")
    assert not formats.looks_like_image(str(file))


# PREPROCESS_ID

# sha256 of `to_pixels` of the images below. Whoever changes a pixel adds a line; the lines above it stay.
PIXELS_BY_ID = {"openai-clip": "8a71c71e85c24deb787c4eab9072d0268e6214b2c6a5406b47fa2191c9cb02fb"}
SIZES = [(640, 427), (333, 500), (227, 224), (31, 47), (50, 400), (650, 900)]
MODES = ["RGB", "L", "LA", "RGBA", "P", "1", "CMYK", "I;16"]


def test_whoever_changes_a_pixel_gives_the_transform_another_id() -> None:
    """Images by formula, so that no decoder has a part in it. Fast pixels are held to these in test_fast.py."""
    variants = [PreprocessSettings(224), PreprocessSettings(32), PreprocessSettings(48, interpolation="bilinear")]
    variants.append(PreprocessSettings(32, resize_mode="squash"))
    digest = hashlib.sha256()
    for number, ((width, height), mode) in enumerate(itertools.product(SIZES, MODES)):
        image = formula.picture_in_mode(number, width, height, mode)
        for settings in variants:
            digest.update(to_pixels(image, settings).tobytes())
    assert PIXELS_BY_ID.get(transform.PREPROCESS_ID) == digest.hexdigest(), (
        f"Pixels under the id {transform.PREPROCESS_ID!r} have changed, so vectors of old and new runs must not mix: "
        f"give PREPROCESS_ID in clip/images/transform.py a new name, and add a line NAME: {digest.hexdigest()!r} here."
    )
