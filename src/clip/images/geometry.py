"""Resize and crop in numbers: sizes, offsets, and which pixels of the original have a part in the result."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import ImageError

if TYPE_CHECKING:
    from ..network.records import PreprocessSettings

# A 1 x 50 image is resized to 224 x 11200 before its middle is cut out, and thinner ones to more than memory holds.
MAX_CANVAS_PX = 256_000_000  # pixels of the resized image; up to 1 GB in Pillow's four bytes per pixel
SUPPORT = {"bicubic": 2.0, "bilinear": 1.0}  # half a filter's width, in pixels of the coarser side


@dataclass(frozen=True)
class Crop:
    """How an image becomes R x R: all of it is resized, then a square is cut out."""

    width: int  # after the resize [Unit: px], as all the others
    height: int
    left: int
    top: int
    side: int
    columns_first: bool  # whether Pillow resizes the height before the width


def compute_crop(width: int, height: int, settings: PreprocessSettings) -> Crop:
    """Return the crop that a checkpoint asks for of an image of this size. Raises: ImageError, as `target_size`."""
    side = settings.resolution_px
    new_width, new_height = target_size(width, height, (side, side) if settings.resize_mode == "squash" else side)
    # Source: Pillow 13.0.0 src/libImaging/Resample.c, ImagingResampleInner.
    columns_first = height - new_height > max(0, 2 * (width - new_width))
    return Crop(new_width, new_height, crop_offset(new_width, side), crop_offset(new_height, side), side, columns_first)


def target_size(width: int, height: int, size: int | tuple[int, int]) -> tuple[int, int]:
    """Return the width and height after a resize to a shorter side, or to (height, width).

    Raises:  ImageError for an image without pixels, and for one that would have over 256 megapixels.
    """
    check_has_pixels(width, height)
    target = resized_size(width, height, size) if isinstance(size, int) else (size[1], size[0])
    if target != (width, height) and target[0] * target[1] > MAX_CANVAS_PX:
        found = f"{width} x {height} px would be resized to {target[0]} x {target[1]}"
        raise ImageError("image", found, f"at most {MAX_CANVAS_PX:,} pixels", "Crop it first, or leave it out.")
    return target


def check_has_pixels(width: int, height: int) -> None:
    """Raise ImageError for an image without pixels."""
    if not width or not height:
        raise ImageError("image", f"{width} x {height} px", "sides above 0", "Leave it out.")


def resized_size(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Return the width and height once the shorter side is `short_side`; the longer one is rounded down.

    Units:   px.
    Source:  torchvision 0.29.2 transforms/functional.py:358, whose float arithmetic decides 1 px cases.
    """
    short, long = (width, height) if width <= height else (height, width)
    new_long = int(short_side * long / short)
    return (short_side, new_long) if width <= height else (new_long, short_side)


def crop_offset(size: int, crop: int) -> int:
    """Return where a centre crop starts: at half of the remainder, rounded half to even. Units: px.

    Rounding down instead shifts the crop by a pixel wherever `size - crop` leaves 3 modulo 4.
    Source:  torchvision 0.29.2 transforms/functional.py:592.
    """
    return round((size - crop) / 2.0) if size >= crop else -((crop - size) // 2)


def source_range(first: int, last: int, size: float, resized: int, support: float) -> tuple[int, int]:
    """Return the pixels of a side that the resized pixels `first` to `last` depend on, and up to two more at each end.

    Both ranges exclude their last pixel.
    """
    scale = size / resized
    reach = support * max(scale, 1.0)
    return max(0, math.floor((first + 0.5) * scale - reach) - 1), math.ceil((last - 0.5) * scale + reach) + 1
