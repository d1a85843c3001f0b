"""An image in any form -> a PIL image. Knows nothing about models."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..errors import ImageError, InputTypeError
from .formats import SNIFF_BYTES, decodable_formats
from .heif import HEIF, encoded_as_asked, is_heif

if TYPE_CHECKING:
    from ..jobs.options import Orient


def open_image(image: object) -> Image.Image:
    """An image in any form that `preprocess` takes -> a PIL image, decoded only if it came as a path.

    Raises:  InputTypeError (a TypeError) for another type or an array that is not uint8 (H, W, 3), ImageError for bytes
             of no format that Pillow decodes.
    """
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, (str, os.PathLike)):
        with Image.open(Path(image), formats=decodable_formats()) as opened:
            if opened.format == HEIF:
                return open_encoded(Path(image).read_bytes())  # as stored, like all others
            opened.load()  # before the file is closed
            return opened
    if isinstance(image, (bytes, bytearray, memoryview)):
        return open_encoded(bytes(image))
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise InputTypeError(
                "image",
                f"found an array of {image.dtype} {image.shape}",
                "uint8 (H, W, 3)",
                "Scale it to 0..255 and put the channels last.",
            )
        return Image.fromarray(image)
    raise InputTypeError(
        "image",
        f"found {type(image).__name__}",
        "a PIL image, a path, bytes or a uint8 array",
        "Open it with PIL.Image.open.",
    )


def open_encoded(data: bytes, orient: Orient = "none") -> Image.Image:
    """An encoded image -> a PIL image that is not decoded yet. Raises: ImageError for what Pillow does not decode."""
    if not data:
        raise ImageError(
            "image",
            "empty",
            "an encoded one",
            "Restore it from where it came.",
        )
    try:
        return Image.open(io.BytesIO(encoded_as_asked(data, orient)), formats=decodable_formats())
    except UnidentifiedImageError as exc:  # whose own message names a buffer at an address
        if is_heif(data) and HEIF not in decodable_formats():
            raise ImageError(
                "image",
                "a HEIC",
                "a format that Pillow decodes",
                "Run: pip install 'clip-turbo[heic]'",
            ) from exc
        if is_heif(data):
            raise ImageError(
                "image",
                "a damaged HEIC",
                "a whole one",
                "Restore it from where it came.",
            ) from exc
        raise ImageError(
            "image",
            f"starts with {data[:SNIFF_BYTES]!r}",
            "a format that Pillow decodes",
            "Check what it is.",
        ) from exc
