"""An image in any form -> a PIL image."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..errors import ImageError, InputTypeError
from .formats import SNIFF_BYTES, decodable_formats
from .heif import HEIF, is_heif, remove_rotation

if TYPE_CHECKING:
    from ..jobs.options import Orient


def open_image(image: object) -> Image.Image:
    """Return a PIL image of anything that `preprocess` takes; only what comes as a path is decoded already.

    Raises:  InputTypeError (a TypeError) for another type or an array that is not uint8 (H, W, 3), ImageError for bytes
             in no format that Pillow decodes.
    """
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, (str, os.PathLike)):
        with Image.open(Path(image), formats=decodable_formats()) as opened:
            if opened.format == HEIF:
                return open_encoded(Path(image).read_bytes())  # as stored, like all other formats
            opened.load()  # before the file is closed
            return opened
    if isinstance(image, (bytes, bytearray, memoryview)):
        return open_encoded(bytes(image))
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            found = f"found an array of {image.dtype} {image.shape}"
            raise InputTypeError("image", found, "uint8 (H, W, 3)", "Scale it to 0..255 and put the channels last.")
        return Image.fromarray(image)
    found, forms = f"found {type(image).__name__}", "a PIL image, a path, bytes or a uint8 array"
    raise InputTypeError("image", found, forms, "Open it with PIL.Image.open.")


def open_encoded(data: bytes, orient: Orient = "none") -> Image.Image:
    """Return a PIL image of an encoded one, not decoded yet. Raises: ImageError for what Pillow does not decode."""
    if not data:
        raise ImageError("image", "is empty", remedy="Restore it from its source.")
    stored = remove_rotation(data) if orient == "none" else data
    try:
        return Image.open(io.BytesIO(stored), formats=decodable_formats())
    except UnidentifiedImageError as exc:  # whose own message names a buffer by its address
        if is_heif(data) and HEIF not in decodable_formats():
            remedy = "Run: pip install 'clip-turbo[heic]'"
            raise ImageError("image", "is a HEIC", "a format that Pillow decodes", remedy) from exc
        if is_heif(data):
            raise ImageError("image", "is a damaged HEIC", remedy="Restore it from its source.") from exc
        found = f"starts with {data[:SNIFF_BYTES]!r}"
        raise ImageError("image", found, "a format that Pillow decodes", "Check what kind of file it is.") from exc
