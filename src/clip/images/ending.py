"""What stands behind the end of an encoded image: phones append videos, programs pad with zeros.

Pillow stops at the end, so the pixels are whole. An ordinary file is told by its last bytes; only others are walked
through.
"""

from __future__ import annotations

import struct

from .heif import HEIF, list_boxes
from .jpeg import BEGIN, find_end
from .tiff import find_tiff_end

PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
PNG_BEGIN = b"\x89PNG\r\n\x1a\n"
GIF_END = b";"
QOI_END = b"\0\0\0\0\0\0\0\1"
# What a file of boxes is made of; behind the last of them is what a camera adds, as a video in a box `mpvd`.
# Source: ISO/IEC 14496-12, table 1; ISO/IEC 15444-1, table I.2.
BOXES = frozenset(
    {
        *(b"ftyp", b"meta", b"mdat", b"moov", b"moof", b"mfra", b"free", b"skip", b"wide", b"pdin", b"uuid", b"idat"),
        *(b"meco", b"sidx", b"styp", b"jP  ", b"jp2h", b"jp2c", b"jp2i", b"xml ", b"uinf", b"asoc", b"res "),
    }
)
CODESTREAM, CODESTREAM_DATA, CODESTREAM_END = b"\xff\x4f\xff\x51", b"\xff\x93", b"\xff\xd9"
BMP_CORE_BYTES, BMP_V5_BYTES = 12, 124  # of the two headers that differ from the others
VIDEO_BOX = b"ftyp"
VIDEO_WITHIN = 4096  # bytes behind an image, in which a video that a phone appends begins


def describe_ending(data: bytes, format_name: str | None) -> str | None:
    """Say what is behind the end of an image, or that its end mark is missing; None where all is as usual."""
    if format_name in ("JPEG", "MPO"):
        end = len(data) if data.endswith(b"\xff\xd9") else _find_end_of_several(data)
    elif format_name == "PNG":
        end = len(data) if data.endswith(PNG_END) else _find_png_end(data)
    elif format_name == "WEBP":
        size_bytes = int.from_bytes(data[4:8], "little") + 8
        end = min(len(data), size_bytes + size_bytes % 2)
    elif format_name == "GIF":
        end = len(data) if data.endswith(GIF_END) else _find_gif_end(data)
    elif format_name in (HEIF, "AVIF", "JPEG2000"):
        end = find_box_end(data)
    elif format_name == "TIFF":
        end = find_tiff_end(data)
    elif format_name == "BMP":
        end = _find_bmp_end(data)
    elif format_name == "QOI":
        mark = data.rfind(QOI_END)
        end = None if mark < 0 else mark + len(QOI_END)
    else:
        return None
    if end is None:
        return "the file ends without its end mark"
    if end >= len(data):
        return None
    what = "a video" if data.find(VIDEO_BOX, end, end + VIDEO_WITHIN) >= 0 else "other data"
    return f"{len(data) - end:,} bytes behind the end of the image ({what}) are left out"


def _find_end_of_several(data: bytes) -> int | None:
    """Return where the last of the JPEGs in a file ends: an MPO, or one with a map of its brightness, has several."""
    end = find_end(data)
    while end is not None:
        start = end
        while data[start : start + 1] == b"\0":
            start += 1
        further = find_end(data, start) if data.startswith(BEGIN, start) else None
        if further is None:
            return end
        end = further
    return end


def _find_png_end(data: bytes) -> int | None:
    at = len(PNG_BEGIN)
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] == b"IEND":
            return min(end, len(data))
        at = end
    return None


def _find_gif_end(data: bytes) -> int | None:
    """Source: GIF89a specification, appendix B."""

    def skip_table(flags: int, at: int) -> int:
        return at + (3 << ((flags & 7) + 1) if flags & 0x80 else 0)

    at = skip_table(data[10], 13) if len(data) > 10 else len(data)
    while at < len(data):
        kind = data[at : at + 1]
        if kind == GIF_END:
            return at + 1
        if kind == b"!":
            at += 2
        elif kind == b"," and at + 10 <= len(data):
            at = skip_table(data[at + 9], at + 10) + 1
        else:
            return None
        while at < len(data) and data[at]:  # blocks of at most 255 bytes
            at += 1 + data[at]
        at += 1
    return None


def find_box_end(data: bytes) -> int:
    """Return where the last box is that belongs to an image; the file's end where its boxes are damaged."""
    if data.startswith(CODESTREAM):  # of a JPEG 2000 without boxes, in whose data no marker occurs
        mark = data.find(CODESTREAM_END, data.find(CODESTREAM_DATA))
        return len(data) if mark < 0 else mark + len(CODESTREAM_END)
    end, names = 0, set[bytes]()
    for kind, _, box_end in list_boxes(data, 0, len(data)):
        name = data[kind : kind + 4]
        if name == VIDEO_BOX and name in names:
            break  # another file
        names.add(name)
        end = box_end if name in BOXES else end
    return end or len(data)


def _find_bmp_end(data: bytes) -> int:
    """Source: Microsoft's BITMAPFILEHEADER, BITMAPINFOHEADER and BITMAPV5HEADER."""
    try:
        counted, pixels_at, header_bytes = struct.unpack_from("<I4xII", data, 2)
        if header_bytes == BMP_CORE_BYTES:
            width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
            compression = size_bytes = 0
        else:
            width, height, _, bits, compression, size_bytes = struct.unpack_from("<iiHHII", data, 18)
        if compression in (0, 3, 6):  # none, in bit fields, and those with alpha; the others say their size
            size_bytes = (abs(width) * bits + 31) // 32 * 4 * abs(height)
        profile_at, profile_bytes = struct.unpack_from("<II", data, 126) if header_bytes == BMP_V5_BYTES else (0, 0)
    except struct.error:
        return len(data)
    # Photoshop writes two bytes more than there are pixels, and counts them.
    whole = pixels_at + size_bytes if size_bytes else len(data)
    return max(whole, counted if counted <= len(data) else 0, 14 + profile_at + profile_bytes if profile_at else 0)
