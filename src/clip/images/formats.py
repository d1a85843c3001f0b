"""The image formats that Pillow decodes for us, by name, extension and first bytes. Knows nothing about models."""

from __future__ import annotations

import struct
from contextlib import suppress
from functools import cache
from pathlib import Path

from PIL import Image

from .heif import HEIF

# Pillow's readers that start another program (EPS runs Ghostscript), or that only tell the header.
UNDECODABLE_FORMATS = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})
SNIFF_BYTES = 16  # what Pillow hands its readers to recognise a format by


@cache
def decodable_formats() -> tuple[str, ...]:
    """Pillow's names of the formats we decode: all it reads by itself, without starting another program.

    HEIF, for HEIC files, is among them where the extra `heic` is installed, or a reader of them registered before.
    """
    Image.init()
    if HEIF not in Image.OPEN:
        with suppress(ImportError):
            from pi_heif import register_heif_opener

            register_heif_opener()
    return tuple(name for name in Image.ID if name not in UNDECODABLE_FORMATS)


@cache
def decodable_extensions() -> frozenset[str]:
    """The file name extensions of these formats, in lower case, with their dot."""
    formats = {*decodable_formats(), "MPO"}  # MPO, several JPEGs in one file, is read by the JPEG reader
    return frozenset(ext for ext, name in Image.registered_extensions().items() if name in formats)


def looks_like_image(path: str) -> bool:
    """Whether a file's content is one of these formats, by its header. Raises OSError where it cannot be read."""
    with Path(path).open("rb") as file:
        return begins_like_image(file.read(SNIFF_BYTES))


def begins_like_image(prefix: bytes) -> bool:
    """Whether the first SNIFF_BYTES bytes are of one of these formats."""
    return any(_accepts(name, prefix) for name in decodable_formats())


def _accepts(name: str, prefix: bytes) -> bool:
    accepts = Image.OPEN[name][1]
    try:
        return accepts is not None and accepts(prefix) is True
    except (SyntaxError, IndexError, TypeError, struct.error):  # as in Image.open: prefixes shorter than a header
        return False
