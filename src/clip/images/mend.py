"""Take out of an encoded image what is damaged and holds no pixels, so that Pillow reads the rest.

Pillow refuses whole images for what is beside their pixels: a wrong checksum of a PNG's text, texts larger than its own
limits, short segments of a JPEG. Its switch for that, LOAD_TRUNCATED_IMAGES, is one for the whole program, and accepts
missing pixels too. So the file is cut into its chunks here, and those that hold no pixels are left out. The alpha and
the frames that an option asks for are pixels too: where they are damaged, the image stays refused.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .ending import PNG_BEGIN, find_box_end
from .jpeg import BEGIN, FRAMES, SOS, list_segments

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..jobs.options import DecodeOptions

PNG_PIXELS = frozenset({b"IHDR", b"PLTE", b"IDAT", b"IEND"})
PNG_FRAMES = frozenset({b"acTL", b"fcTL", b"fdAT"})
PNG_ALPHA, PNG_EXIF, PNG_TEXT, PNG_XMP = b"tRNS", b"eXIf", b"iTXt", b"XML:com.adobe.xmp\0\0"
JPEG_TABLES = frozenset({0xC4, 0xCC, 0xDB, 0xDC, 0xDD, 0xDE, 0xDF, *FRAMES})
# Names of segments on which colours depend, and how long they are at least; libjpeg passes over shorter ones.
# Source: libjpeg jdmarker.c, examine_app0 and examine_app14.
JPEG_COLOURS = {0xE0: (b"JFIF\0", 14), 0xEE: (b"Adobe", 12)}
APP0, COMMENT = 0xE0, 0xFE
EXIF_SEGMENT, EXIF_NAME = 0xE1, b"Exif\0\0"
MPF_SEGMENT, MPF_NAME = 0xE2, b"MPF\0"
WEBP_PIXELS = frozenset({b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF"})
WEBP_FLAGS = {b"ICCP": 0x20, b"EXIF": 0x08, b"XMP ": 0x04}  # in VP8X. Source: RFC 9649, 2.7.1
JP2_BEGIN = b"\0\0\0\x0cjP  \r\n\x87\n"  # whose decoder refuses boxes of a video behind the image
MAX_NAMED = 5  # kinds of chunks in a warning
KEPT_TEXT_BYTES = 1_000_000  # of XMP, which may hold an orientation


@dataclass(frozen=True)
class Mended:
    """An encoded image without what was damaged."""

    data: bytes
    warning: str


def mend(data: bytes, options: DecodeOptions) -> Iterator[Mended]:
    """Yield what is left of an image that could not be read, the least changed first; nothing for other formats.

    All pixels are kept, so what is yielded has the image's pixels if it can be read.
    """
    if data.startswith(PNG_BEGIN):
        attempts = (_mend_png(data, options, keep_exif=keep) for keep in (True, False))
    elif data.startswith(BEGIN):
        attempts = (_mend_jpeg(data, options, keep_exif=keep) for keep in (True, False))
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        attempts = (_mend_webp(data, options, keep_exif=keep) for keep in (True, False))
    elif data.startswith(JP2_BEGIN) and (end := find_box_end(data)) < len(data):
        yield Mended(data[:end], f"{len(data) - end:,} bytes behind the end of the image are left out")
        return
    else:
        return
    before = data
    for found in attempts:
        if found is not None and found[0] != before:
            before, damaged = found
            yield Mended(before, f"metadata that is damaged or too large is left out ({damaged})")


def _mend_png(data: bytes, options: DecodeOptions, *, keep_exif: bool) -> tuple[bytes, str] | None:
    """Return a PNG without the chunks that are not needed, and what is wrong with them; None if others are damaged."""
    needed = PNG_PIXELS | (PNG_FRAMES if options.frames == "all" else set())
    needed |= {PNG_ALPHA} if options.background != "none" else set()
    kept, left_out = [PNG_BEGIN], list[str]()
    at = len(PNG_BEGIN)
    while at + 12 <= len(data):
        name, end = data[at + 4 : at + 8], at + 12 + int.from_bytes(data[at : at + 4], "big")
        is_whole = end <= len(data) and zlib.crc32(data[at + 4 : end - 4]) == int.from_bytes(data[end - 4 : end], "big")
        if name in needed and not is_whole:
            return None
        is_kept = name in needed or name in PNG_FRAMES or name == PNG_ALPHA
        is_kept |= keep_exif and (name == PNG_EXIF or _is_xmp(name, data[at + 8 : end - 4]))
        if is_kept and is_whole:
            kept.append(data[at:end])
        else:
            left_out.append(name.decode("latin-1") + ("" if is_whole else " with a wrong checksum"))
        if name == b"IEND":
            break
        at = end
    return b"".join(kept), _join(left_out)


def _is_xmp(name: bytes, content: bytes) -> bool:
    return name == PNG_TEXT and content.startswith(PNG_XMP) and len(content) <= KEPT_TEXT_BYTES


def _mend_jpeg(data: bytes, options: DecodeOptions, *, keep_exif: bool) -> tuple[bytes, str] | None:
    """Return a JPEG without the segments, and the bytes between segments, that do not matter to its pixels."""
    kept, left_out, before, between = [data[:2]], list[str](), 2, 0
    for code, at, end in list_segments(data):
        between += at - before
        before = end
        if code == SOS:
            kept.append(data[at:])
            left_out += [f"{between:,} bytes between segments"] if between else []
            return b"".join(kept), _join(left_out)
        name, length = JPEG_COLOURS.get(code, (b"", 0))
        content = data[at + 4 : end]
        if options.frames == "all" and code == MPF_SEGMENT and content.startswith(MPF_NAME):
            return None  # it says where the other images begin, counted from its own place
        is_colour = bool(length) and content.startswith(name) and len(content) >= length
        is_exif = keep_exif and code == EXIF_SEGMENT and content.startswith(EXIF_NAME)
        if code in JPEG_TABLES or is_colour or is_exif:
            kept.append(data[at:end])
        else:
            left_out.append("COM" if code == COMMENT else f"APP{code & 15}" if code >= APP0 else f"marker {code:02X}")
    return None


def _mend_webp(data: bytes, options: DecodeOptions, *, keep_exif: bool) -> tuple[bytes, str] | None:
    """Return a WebP without the chunks that hold no pixels; None if others are cut off."""
    if options.frames == "all" and len(data) < int.from_bytes(data[4:8], "little") + 8:
        return None  # frames may have been in the rest
    kept, left_out, at, flags = list[bytes](), list[str](), 12, 0
    while at + 8 <= len(data):
        name, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        end = at + 8 + size + size % 2
        if name in WEBP_PIXELS and end <= len(data) + size % 2:
            kept.append(data[at:end] + b"\0" * (end - len(data)))
        elif name in WEBP_PIXELS:
            return None
        elif keep_exif and name == b"EXIF" and end <= len(data):
            kept.append(data[at:end])
            flags |= WEBP_FLAGS[name]
        else:
            left_out.append(name.decode("latin-1"))
        at = end
    if kept and kept[0].startswith(b"VP8X"):
        others = kept[0][8] & ~sum(WEBP_FLAGS.values())
        kept[0] = kept[0][:8] + bytes([others | flags]) + kept[0][9:]
    body = b"WEBP" + b"".join(kept)
    return b"RIFF" + len(body).to_bytes(4, "little") + body, _join(left_out)


def _join(names: list[str]) -> str:
    different = list(dict.fromkeys(names))
    return ", ".join(different[:MAX_NAMED]) + (", ..." if len(different) > MAX_NAMED else "")
