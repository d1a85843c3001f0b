"""What `DecodeOptions` ask for before OpenAI's steps: turn an image, scale it to 8 bit, lay it on a colour.

Pure functions from image to image. What is done for each format, and why: docs/images.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import ExifTags, Image

from .heif import HEIF

if TYPE_CHECKING:
    from ..jobs.options import Background, DecodeOptions

TRANSPOSE = Image.Transpose
# EXIF orientation -> what shows the image upright. Source: Exif 2.32, 4.6.4, tag 274; as in PIL.ImageOps.
UPRIGHT_BY = {
    2: TRANSPOSE.FLIP_LEFT_RIGHT,
    3: TRANSPOSE.ROTATE_180,
    4: TRANSPOSE.FLIP_TOP_BOTTOM,
    5: TRANSPOSE.TRANSPOSE,
    6: TRANSPOSE.ROTATE_270,
    7: TRANSPOSE.TRANSVERSE,
    8: TRANSPOSE.ROTATE_90,
}
DEEP_MODES = frozenset({"I;16", "I;16L", "I;16B", "I;16N", "I", "F"})
DEEP_MAX, BYTE_STEP = 65535, 257  # 65535 / 257 = 255


def adjust(image: Image.Image, options: DecodeOptions) -> Image.Image:
    """Return an image turned, then scaled to 8 bit, then laid on the background, each only if asked for.

    Where there is nothing to do, it is the same object; where nothing is asked for, it is not even decoded.

    Shapes:  (H, W) any mode -> (H, W) or (W, H); RGB if it had transparency and there is a background.
    """
    if options.orient == "exif":
        image = turn_upright(image)
    alpha = _alpha_of_deep(image) if options.background != "none" else None
    if options.sixteen_bit == "scale":
        image = scale_to_8_bit(image)
    if options.background != "none":
        image = lay_on_background(image, options.background, alpha)
    return image


def count_held_images(options: DecodeOptions) -> int:
    """Return how many images of full size these steps hold at the same time, including the decoded one."""
    converted = options.pixels == "immich"  # a second one, before the resize
    return (
        1
        + converted
        + (options.orient == "exif")
        + 2 * (options.background != "none" or options.sixteen_bit == "scale")
    )


def turn_upright(image: Image.Image) -> Image.Image:
    """Turn an image as its EXIF data, or its XMP data, says. Return it unchanged if neither says so or can be read.

    Not `ImageOps.exif_transpose`: that copies upright images too, and fails on EXIF data that it cannot write again
    (816 of 40,000 JPEGs with damaged EXIF data, each with a readable orientation).
    Pillow itself calls it when it decodes a TIFF, so nothing is left to turn in one.

    Shapes:  (H, W) -> (W, H) for orientations 5 to 8.
    """
    image.load()  # a PNG may give its orientation after its pixels
    # A HEIC is turned by its decoder, as its container says; its EXIF data does not count.
    transpose = None if image.format == HEIF else UPRIGHT_BY.get(read_orientation(image) or 1)
    return image if transpose is None else image.transpose(transpose)


def read_orientation(image: Image.Image) -> int | None:
    """Return the EXIF orientation of an image, 1 where it has none; None where it cannot be read."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception as exc:  #  damaged EXIF data raises OSError, ValueError, SyntaxError; a newer Pillow may add
        if isinstance(exc, MemoryError):
            raise
        return None


def scale_to_8_bit(image: Image.Image) -> Image.Image:
    """Scale a grey image of 16 bits or more so that 65535 becomes white, rounded. Return any other unchanged.

    The range is always 0 to 65535, whatever an image holds. Values below are black, values above are white (in modes I
    and F), and so are the infinities; not-a-number is black.

    Shapes:  (H, W) of modes I;16, I;16B, I;16L, I;16N, I, F -> (H, W) of mode L.
    """
    if image.mode not in DEEP_MODES:
        return image
    values = np.array(image, np.float32)  # (H, W); exact up to 2**24
    np.nan_to_num(values, copy=False, nan=0.0, posinf=DEEP_MAX, neginf=0.0)
    np.clip(values, 0, DEEP_MAX, out=values)
    np.divide(values, BYTE_STEP, out=values)
    return Image.fromarray(np.rint(values, out=values).astype(np.uint8))


def lay_on_background(image: Image.Image, background: Background, alpha: Image.Image | None = None) -> Image.Image:
    """Lay an image with transparency on a colour. Return one without transparency unchanged.

    `alpha` is for a deep image, whose transparent value Pillow would compare in 8 bits only.

    Shapes:  (H, W) any mode -> RGB, each value round((alpha * value + (255 - alpha) * colour) / 255).
    """
    if alpha is not None:
        image = image.convert("L")
        image.putalpha(alpha)
    if not image.has_transparency_data:
        return image
    # Pillow cannot convert La to RGBA.
    coloured = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    canvas = Image.new("RGB", image.size, background)
    canvas.paste(coloured, mask=coloured)
    return canvas


def _alpha_of_deep(image: Image.Image) -> Image.Image | None:
    """Return the alpha of a 16-bit grey image with one transparent value. Shapes: (H, W) -> (H, W) of mode L."""
    transparent = image.info.get("transparency")
    if image.mode not in DEEP_MODES or not isinstance(transparent, int):
        return None
    return Image.fromarray(np.where(np.asarray(image) == transparent, np.uint8(0), np.uint8(255)))
