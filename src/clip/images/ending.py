"""What stands behind the end of an encoded image: phones append videos, programs pad with zeros.

Pillow stops at the end, so the pixels are whole. An ordinary file is told by its last bytes; only others are walked
through.
"""

from __future__ import annotations

from .jpeg import BEGIN, find_end

PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
PNG_BEGIN = b"\x89PNG\r\n\x1a\n"
GIF_END = b";"
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
    else:
        return None
    if end is None:
        return "the file ends without its end mark"
    if end == len(data):
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
