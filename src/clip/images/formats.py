"""The image formats that Pillow decodes for us, by name, extension and first bytes."""

from __future__ import annotations

import struct
from contextlib import suppress
from functools import cache
from pathlib import Path

from PIL import Image

from .heif import HEIF

# Pillow's readers that start another program (EPS runs Ghostscript), or that read the header only.
UNDECODABLE_FORMATS = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})
SNIFF_BYTES = 16  # what Pillow hands its readers to recognise a format by


@cache
def decodable_formats() -> tuple[str, ...]:
    """Return Pillow's names of the formats we decode: all it reads without starting another program.

    HEIF, for HEIC files, is among them if the extra `heic` is installed or a reader was registered before.
    """
    Image.init()
    if HEIF not in Image.OPEN:
        with suppress(ImportError):
            from pi_heif import register_heif_opener

            register_heif_opener()
    return tuple(name for name in Image.ID if name not in UNDECODABLE_FORMATS)


@cache
def decodable_extensions() -> frozenset[str]:
    """Return the file name extensions of these formats, in lower case, with their dot."""
    formats = {*decodable_formats(), "MPO"}  # the JPEG reader reads MPO, several JPEGs in one file
    return frozenset(extension for extension, name in Image.registered_extensions().items() if name in formats)


def looks_like_image(path: str) -> bool:
    """Whether a file's header is one of these formats. Raises: OSError if it cannot be read."""
    with Path(path).open("rb") as file:
        return begins_like_image(file.read(SNIFF_BYTES))


def begins_like_image(prefix: bytes) -> bool:
    """Whether the first SNIFF_BYTES bytes of a file are those of one of these formats."""
    return any(accepts(name, prefix) for name in decodable_formats())


def accepts(name: str, prefix: bytes) -> bool:
    """Whether Pillow's reader of a format takes a file that begins like this."""
    if name not in Image.OPEN:
        return False
    accepts = Image.OPEN[name][1]
    try:
        return accepts is not None and accepts(prefix) is True
    except (SyntaxError, IndexError, TypeError, struct.error):  # as in Image.open: the prefix is shorter than a header
        return False
