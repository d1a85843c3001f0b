"""An image -> uint8 pixels nearly as a model reads them, several times faster. Knows nothing about files or models.

What `decode="fast"` adds to `pixels`: large JPEGs are decoded at a half, a quarter or an eighth of their size, and
torch's SIMD code resizes, with 16-bit weights where Pillow's have 22 bits. Only images of modes RGB and L are for it.
How far the pixels are from the exact ones: docs/images.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .geometry import SUPPORT, crop_of, reached

if TYPE_CHECKING:
    from PIL import Image

    from ..jobs.options import DecodeOptions
    from ..network.records import PreprocessSettings

FAST_MODES = frozenset({"L", "RGB"})
DENOMINATORS = (8, 4, 2)  # of the scales that libjpeg decodes at
# How many times as large as what is made of it a divided image is, at least: with 2, as Pillow's `thumbnail` has it,
# 6 % of the values of sharp images are more than 2 levels off; with 3 it is 0.2 %.
OVERSAMPLING = 3


def shrink(image: Image.Image, resolution_px: int, options: DecodeOptions) -> int:
    """Have an opened JPEG decoded at a part of its size, where it is large enough; tells by how much it is divided.

    One that may yet be turned is only divided where nothing is left over: the last row and column of the others reach
    beyond the image, and `fast_pixels` knows them at the right and at the bottom.
    """
    width, height = image.size
    one_frame = image.format == "JPEG" or (image.format == "MPO" and options.frames == "first")
    if not one_frame or image.mode not in FAST_MODES:
        return 1
    for by in DENOMINATORS:
        whole = options.orient == "none" or width % by == height % by == 0
        if whole and min(width, height) >= by * OVERSAMPLING * resolution_px:
            image.draft(None, (width // by, height // by))
            return by if image.size == (-(-width // by), -(-height // by)) else 1
    return 1


def fast_pixels(image: Image.Image, size: tuple[int, int], by: int, settings: PreprocessSettings) -> np.ndarray:
    """An image's crop; `size` is its width and height before they were divided by `by`.

    The passes have Pillow's order, and what is right of the crop or below it is left out.

    Shapes:  RGB or L (H / by, W / by), rounded up -> uint8 (R, R, 3), channels R, G, B.
    Raises:  ImageError, as `crop_of`.
    """
    import torch  # here, as what decodes exactly does without

    crop = crop_of(*size, settings)
    aten = torch.ops.aten
    resize = aten._upsample_bicubic2d_aa if settings.interpolation == "bicubic" else aten._upsample_bilinear2d_aa
    support = SUPPORT[settings.interpolation]
    right, bottom = crop.left + crop.side, crop.top + crop.side
    width, height = size[0] / by, size[1] / by  # of the image itself; the last decoded row may reach beyond it
    columns, right = _cut(reached(crop.left, right, width, crop.width, support)[1], image.width, right, crop.width)
    rows, bottom = _cut(reached(crop.top, bottom, height, crop.height, support)[1], image.height, bottom, crop.height)
    # torch is slow with one channel, and no channel knows of another.
    coloured = image if image.mode == "RGB" else image.convert("RGB")
    stored = np.array(np.asarray(coloured)[:rows, :columns])  # of its own, as torch takes none that is read-only
    pixels = torch.from_numpy(stored).permute(2, 0, 1)[None]  # (1, 3, H, W), channels last in memory
    across, down = crop.width / width, crop.height / height
    if crop.columns_first:
        pixels = resize(pixels, [bottom, pixels.shape[3]], False, down, None)
        pixels = resize(pixels, [bottom, right], False, None, across)
    else:
        pixels = resize(pixels, [bottom, right], False, down, across)
    cut = pixels[0, :, crop.top : crop.top + crop.side, crop.left : crop.left + crop.side]  # (3, R, R)
    return np.ascontiguousarray(cut.permute(1, 2, 0).numpy())  # (R, R, 3)


def _cut(needed: int, stored: int, wanted: int, resized: int) -> tuple[int, int]:
    """How much of a side is read, and how much is made of it.

    Not what is needed alone where these are equal and the scale is not 1: torch leaves out a pass between equal sides.
    """
    return (stored, resized) if min(needed, stored) == wanted and stored != resized else (min(needed, stored), wanted)
