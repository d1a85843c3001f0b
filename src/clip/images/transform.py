"""A PIL image -> uint8 pixels, bit for bit OpenAI's: resize, crop and convert to RGB. Needs no torch.

The order matters: Pillow resizes palettes with NEAREST and premultiplies alpha, so converting first would change the
vectors of these images.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from ..network.records import PreprocessSettings
from .geometry import SUPPORT, compute_crop, crop_offset, source_range, target_size

# In every manifest: the five steps, as openai/CLIP@d05afc4 has them. Whoever changes a pixel gives it another name.
PREPROCESS_ID = "openai-clip"
BICUBIC = Image.Resampling.BICUBIC
INTERPOLATIONS = {"bicubic": BICUBIC, "bilinear": Image.Resampling.BILINEAR}
# Formats whose size and mode do not change when they are decoded; None is for images made from other images.
STEADY_FORMATS = frozenset({None, "AVIF", "BMP", "JPEG", "MPO", "PNG", "PPM", "TIFF", "WEBP"})
TWO_PASS_MODES = frozenset({"CMYK", "L", "RGB"})  # Pillow resizes these as they are, first the width, then the height
STRIP_ROWS = 512  # resized at a time: copying the whole of a large image would cost as much as is saved


def to_pixels(image: Image.Image, settings: PreprocessSettings) -> np.ndarray:
    """Resize, crop and convert a PIL image. Shapes: (H, W) any mode -> uint8 (R, R, 3), channels R, G, B."""
    cropped = None
    if image.format in STEADY_FORMATS and image.mode in TWO_PASS_MODES:
        cropped = crop_by_rows(image, settings)
    return np.asarray(convert_image_to_rgb(crop_whole(image, settings) if cropped is None else cropped))


def crop_whole(image: Image.Image, settings: PreprocessSettings) -> Image.Image:
    """Resize all of an image, then crop it, as OpenAI does. Shapes: (H, W) any mode -> (R, R), same mode."""
    side = settings.resolution_px
    size = (side, side) if settings.resize_mode == "squash" else side
    return crop_image(resize_image(image, size, INTERPOLATIONS[settings.interpolation]), (side, side))


def resize_image(image: Image.Image, size: int | tuple[int, int], interpolation: Image.Resampling) -> Image.Image:
    """Scale an image until its shorter side is `size` px, or to (height, width). One that fits is left untouched.

    Raises:  ImageError where the result would be over 256 megapixels.
    """
    target = target_size(*image.size, size)
    return image if target == image.size else image.resize(target, interpolation)


def crop_image(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Cut (height, width) out of the middle; a side that is too short is filled up with 0."""
    height, width = size
    left, top = crop_offset(image.width, width), crop_offset(image.height, height)
    return image.crop((left, top, left + width, top + height))


def convert_image_to_rgb(image: Image.Image) -> Image.Image:
    """Convert as Pillow does: alpha is dropped, CMYK converted without a profile, 16 bits clipped to 255."""
    return image.convert("RGB")


def crop_by_rows(image: Image.Image, settings: PreprocessSettings, strip_rows: int = STRIP_ROWS) -> Image.Image | None:
    """Resize and crop an upright image without the rows that the crop leaves out; None if that saves nothing.

    The bits are the same. The pass over the width, which is the slow one, treats each row alone, so it can skip rows.
    The rows that were skipped stay black; the pass over the height reads them for rows that the crop cuts off only.
    Columns are not left out: Pillow takes a part of them only as a float32 box, which shifts the weights.
    """
    width, height = image.size
    crop = compute_crop(width, height, settings)
    if crop.height == crop.side or crop.columns_first or crop.width == width or crop.height == height:
        return None
    resample = INTERPOLATIONS[settings.interpolation]
    bottom = crop.top + crop.side
    first, last = source_range(crop.top, bottom, height, crop.height, SUPPORT[settings.interpolation])
    last = min(last, height)
    narrow = Image.new(image.mode, (crop.width, height))
    for start in range(first, last, strip_rows):
        strip = image.crop((0, start, width, min(start + strip_rows, last)))
        narrow.paste(strip.resize((crop.width, strip.height), resample), (0, start))
    return narrow.resize((crop.width, crop.height), resample).crop((0, crop.top, crop.width, bottom))
