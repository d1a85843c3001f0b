"""An image -> uint8 pixels that are nearly OpenAI's, several times faster: what `pixels="fast"` does.

Large JPEGs are decoded at a half, a quarter or an eighth of their size, and torch's SIMD code resizes, with 16-bit
weights where Pillow's have 22 bits. It takes images of modes RGB and L only. How far the pixels are from the exact
ones: docs/images.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .geometry import SUPPORT, compute_crop, source_range

if TYPE_CHECKING:
    from PIL import Image

    from ..jobs.options import DecodeOptions
    from ..network.records import PreprocessSettings

FAST_MODES = frozenset({"L", "RGB"})
DIVISORS = (8, 4, 2)  # of a JPEG's sides, at which libjpeg can decode it
# How many times as large as the resized image a divided one must be: with 2, as in Pillow's `thumbnail`, 6 % of the
# values of sharp images are more than 2 levels off; with 3 it is 0.2 %.
OVERSAMPLING = 3


def shrink_on_load(image: Image.Image, resolution_px: int, options: DecodeOptions) -> int:
    """Make an opened JPEG decode at a part of its size if it is large enough; return the divisor of its sides.

    With orient="exif" an image is divided only if its sides are multiples of the divisor. Otherwise the last row and
    column reach beyond the image, and after a turn they would not be at the bottom and at the right any more.
    """
    width, height = image.size
    one_frame = image.format == "JPEG" or (image.format == "MPO" and options.frames == "first")
    if not one_frame or image.mode not in FAST_MODES:
        return 1
    for divisor in DIVISORS:
        allowed = options.orient == "none" or width % divisor == height % divisor == 0
        if allowed and min(width, height) >= divisor * OVERSAMPLING * resolution_px:
            image.draft(None, (width // divisor, height // divisor))
            return divisor if image.size == (-(-width // divisor), -(-height // divisor)) else 1
    return 1


def to_pixels_fast(image: Image.Image, size: tuple[int, int], divisor: int, settings: PreprocessSettings) -> np.ndarray:
    """Return an image's crop; `size` is its width and height before they were divided by `divisor`.

    The passes have Pillow's order, and what is right of the crop or below it is not computed.

    Shapes:  RGB or L (H / divisor, W / divisor), rounded up -> uint8 (R, R, 3), channels R, G, B.
    Raises:  ImageError, as `compute_crop`.
    """
    import torch  # here, as exact decoding works without it

    crop = compute_crop(*size, settings)
    # Not `interpolate`, which takes a size or a scale: with both, weights are those of the whole image while only the
    # crop is computed, and a JPEG 4001 px wide that was divided by 4 counts as 1000.25 wide.
    aten = torch.ops.aten
    resize = aten._upsample_bicubic2d_aa if settings.interpolation == "bicubic" else aten._upsample_bilinear2d_aa
    support = SUPPORT[settings.interpolation]
    right, bottom = crop.left + crop.side, crop.top + crop.side
    width, height = size[0] / divisor, size[1] / divisor  # of the image itself; the last decoded row may reach beyond
    needed_columns = source_range(crop.left, right, width, crop.width, support)[1]
    needed_rows = source_range(crop.top, bottom, height, crop.height, support)[1]
    columns, right = _choose_lengths(needed_columns, image.width, right, crop.width)
    rows, bottom = _choose_lengths(needed_rows, image.height, bottom, crop.height)
    # torch is slow with one channel, and channels do not affect each other.
    coloured = image if image.mode == "RGB" else image.convert("RGB")
    stored = np.array(np.asarray(coloured)[:rows, :columns])  # a copy, as torch takes no read-only array
    pixels = torch.from_numpy(stored).permute(2, 0, 1)[None]  # (1, 3, H, W), channels last in memory
    scale_x, scale_y = crop.width / width, crop.height / height
    if crop.columns_first:
        pixels = resize(pixels, [bottom, pixels.shape[3]], False, scale_y, None)
        pixels = resize(pixels, [bottom, right], False, None, scale_x)
    else:
        pixels = resize(pixels, [bottom, right], False, scale_y, scale_x)
    square = pixels[0, :, crop.top : crop.top + crop.side, crop.left : crop.left + crop.side]  # (3, R, R)
    return np.ascontiguousarray(square.permute(1, 2, 0).numpy())  # (R, R, 3)


def _choose_lengths(needed: int, stored: int, wanted: int, resized: int) -> tuple[int, int]:
    """Return how many pixels of a side to read, and how many resized ones to compute from them.

    Usually `needed` and `wanted`. If these are equal although the scale is not 1, all of the side: torch would skip a
    pass between equal lengths.
    """
    return (stored, resized) if min(needed, stored) == wanted and stored != resized else (min(needed, stored), wanted)
