"""The first three steps of OpenAI's transform: resize, crop, RGB. Knows nothing about models; needs no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ..errors import InputTypeError
from ..network.records import PreprocessSettings
from .geometry import SUPPORT, crop_of, crop_offset, reached, target_size

if TYPE_CHECKING:
    from collections.abc import Callable


PREPROCESS_ID = "openai-clip"  # goes into manifests: the five steps, as openai/CLIP@d05afc4 has them
BICUBIC = Image.Resampling.BICUBIC
INTERPOLATIONS = {"bicubic": BICUBIC, "bilinear": Image.Resampling.BILINEAR}
# Formats whose size and mode do not change when they are decoded; None is for images that were made of others.
STEADY = frozenset({None, "AVIF", "BMP", "JPEG", "MPO", "PNG", "PPM", "TIFF", "WEBP"})
TWO_PASSES = frozenset({"CMYK", "L", "RGB"})  # modes that Pillow resizes as they are, by width and then by height
STRIP_ROWS = 512  # resized at a time: a copy of a whole large image costs as much as it saves


class Resize:
    """Scale an image until its shorter side is `size` px, or to (height, width). One that fits is left untouched."""

    def __init__(self, size: int | tuple[int, int], interpolation: Image.Resampling = BICUBIC) -> None:
        self.size = size
        self.interpolation = interpolation

    def __call__(self, image: Image.Image) -> Image.Image:
        """Shapes: (H, W) any mode -> same mode, resized. Raises: ImageError where that is over 256 megapixels."""
        _check_is_image(image, "preprocess")
        size = target_size(*image.size, self.size)
        return image if size == image.size else image.resize(size, self.interpolation)

    def __repr__(self) -> str:
        return f"Resize(size={self.size}, interpolation={self.interpolation.name.lower()})"


class CenterCrop:
    """Cut the middle out of an image; a side that is too short is filled up with 0."""

    def __init__(self, size: int | tuple[int, int]) -> None:
        self.size = (size, size) if isinstance(size, int) else size  # height, width, as in torchvision

    def __call__(self, image: Image.Image) -> Image.Image:
        """Shapes: (H, W) any mode -> (size[0], size[1]), same mode."""
        _check_is_image(image, "CenterCrop")
        height, width = self.size
        left, top = crop_offset(image.width, width), crop_offset(image.height, height)
        return image.crop((left, top, left + width, top + height))

    def __repr__(self) -> str:
        return f"CenterCrop(size={self.size})"


def convert_image_to_rgb(image: Image.Image) -> Image.Image:
    """Pillow's conversion to RGB: alpha is dropped, CMYK converted without a profile, 16 bits clipped to 255."""
    return image.convert("RGB")


def _check_is_image(image: object, where: str) -> None:
    if not isinstance(image, Image.Image):
        raise InputTypeError(
            where,
            f"found {type(image).__name__}",
            "a PIL image",
            "Open it with PIL.Image.open.",
        )


def pixel_steps(settings: PreprocessSettings) -> list[Callable[[Image.Image], Image.Image]]:
    """Resize, crop, convert, as a checkpoint asks for them."""
    side = settings.resolution_px
    resize = Resize((side, side) if settings.resize_mode == "squash" else side, INTERPOLATIONS[settings.interpolation])
    return [resize, CenterCrop(side), convert_image_to_rgb]


def to_pixels(image: Image.Image, settings: PreprocessSettings) -> np.ndarray:
    """The first three steps: a PIL image -> uint8 (R, R, 3), channels R, G, B."""
    if image.format in STEADY and image.mode in TWO_PASSES and (cropped := _cropped_by_rows(image, settings)):
        return np.asarray(convert_image_to_rgb(cropped))
    for step in pixel_steps(settings):
        image = step(image)
    return np.asarray(image)


def _cropped_by_rows(image: Image.Image, settings: PreprocessSettings) -> Image.Image | None:
    """Resize and crop of an upright image without the rows that the crop leaves out; None where that saves nothing.

    The same bits: the pass over the width, which is the dear one, treats each row alone, so rows may be missing in it.
    The pass over the height then finds the others in their places, and what it makes of the black ones is cut off.
    """
    width, height = image.size
    crop = crop_of(width, height, settings)
    if crop.height == crop.side or crop.columns_first or crop.width == width or crop.height == height:
        return None
    resample = INTERPOLATIONS[settings.interpolation]
    bottom = crop.top + crop.side
    first, last = reached(crop.top, bottom, height, crop.height, SUPPORT[settings.interpolation])
    last = min(last, height)
    narrow = Image.new(image.mode, (crop.width, height))
    for start in range(first, last, STRIP_ROWS):
        strip = image.crop((0, start, width, min(start + STRIP_ROWS, last)))
        narrow.paste(strip.resize((crop.width, strip.height), resample), (0, start))
    return narrow.resize((crop.width, crop.height), resample).crop((0, crop.top, crop.width, bottom))
