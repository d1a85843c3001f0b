"""Decode options: an image turned, scaled to 8 bit, laid on a colour, each where asked. Knows nothing about models or files.

Pure functions from image to image, and from an encoded HEIC to one that decodes as stored. What is done, and why it
is done so, for each format: docs/images.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import ExifTags, Image

from .heif import HEIF

if TYPE_CHECKING:
    from ..jobs.options import Background, DecodeOptions

TURN = Image.Transpose
# What shows an image upright whose EXIF orientation is this. Source: Exif 2.32, 4.6.4, tag 274; as in PIL.ImageOps.
TURNS = {
    2: TURN.FLIP_LEFT_RIGHT,
    3: TURN.ROTATE_180,
    4: TURN.FLIP_TOP_BOTTOM,
    5: TURN.TRANSPOSE,
    6: TURN.ROTATE_270,
    7: TURN.TRANSVERSE,
    8: TURN.ROTATE_90,
}
DEEP_MODES = frozenset({"I;16", "I;16L", "I;16B", "I;16N", "I", "F"})
DEEP_MAX, BYTE_STEP = 65535, 257  # 65535 / 257 = 255


def apply_options(image: Image.Image, options: DecodeOptions) -> Image.Image:
    """An image as the policies want it before the reference's steps; itself where there is nothing to do.

    First turned, then scaled to 8 bit, then laid on the background. One that is asked for nothing is not decoded.

    Shapes:  (H, W) any mode -> (H, W) or (W, H); RGB where it had transparency and there is a background.
    """
    if options.orient == "exif":
        image = upright(image)
    alpha = _alpha_of_deep(image) if options.background != "none" else None
    if options.sixteen_bit == "scale":
        image = eight_bit(image)
    if options.background != "none":
        image = on_background(image, options.background, alpha)
    return image


def images_held(options: DecodeOptions) -> int:
    """How many images of full size these steps hold at a time, the decoded one among them."""
    return 1 + (options.orient == "exif") + 2 * (options.background != "none" or options.sixteen_bit == "scale")


def upright(image: Image.Image) -> Image.Image:
    """An image turned as its EXIF data, or its XMP data, says; itself if they say nothing, or cannot be read.

    Not `ImageOps.exif_transpose`: that copies upright images too, and fails on EXIF data that it cannot write again
    (816 of 40,000 JPEGs with damaged EXIF data, each with a readable orientation).
    Pillow itself calls it when it decodes a TIFF, so there is nothing left to turn in one.

    Shapes:  (H, W) -> (W, H) for orientations 5 to 8.
    """
    image.load()  # a PNG may tell of its orientation late
    # A HEIC is turned by its decoder, as its container says; what its EXIF data says besides does not count.
    turn = None if image.format == HEIF else TURNS.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001  on damaged EXIF data OSError, ValueError, SyntaxError, and with Pillow's next more
        return 1


def eight_bit(image: Image.Image) -> Image.Image:
    """A grey image of 16 bits or more with 65535 as white, rounded; any other is itself.

    The range is the same for all of them, whatever an image holds: 0 to 65535. What is below is black, what is above
    is white (in modes I and F), and so are the infinities; not-a-number is black.

    Shapes:  (H, W) of modes I;16, I;16B, I;16L, I;16N, I, F -> (H, W) of mode L.
    """
    if image.mode not in DEEP_MODES:
        return image
    values = np.array(image, np.float32)  # (H, W); exact up to 2**24
    np.nan_to_num(values, copy=False, nan=0.0, posinf=DEEP_MAX, neginf=0.0)
    np.clip(values, 0, DEEP_MAX, out=values)
    np.divide(values, BYTE_STEP, out=values)
    return Image.fromarray(np.rint(values, out=values).astype(np.uint8))


def on_background(image: Image.Image, background: Background, alpha: Image.Image | None = None) -> Image.Image:
    """An image with transparency laid on a colour; one without is itself.

    `alpha` is that of a deep image, whose transparent value Pillow compares with 8 bits only.

    Shapes:  (H, W) any mode -> RGB, each value round((alpha * value + (255 - alpha) * colour) / 255).
    """
    if alpha is not None:
        image = image.convert("L")
        image.putalpha(alpha)
    if not image.has_transparency_data:
        return image
    # Pillow knows no way from La to RGBA.
    coloured = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    laid = Image.new("RGB", image.size, background)
    laid.paste(coloured, mask=coloured)
    return laid


def _alpha_of_deep(image: Image.Image) -> Image.Image | None:
    """Where a grey image of 16 bits is not of its transparent value. Shapes: (H, W) -> (H, W) of mode L."""
    transparent = image.info.get("transparency")
    if image.mode not in DEEP_MODES or not isinstance(transparent, int):
        return None
    return Image.fromarray(np.where(np.asarray(image) == transparent, np.uint8(0), np.uint8(255)))
