"""Encoded images whose pixels are whole, and that are damaged beside them; RAW photos in outline."""

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from PIL import Image

from kit import formula

PNG_BEGIN = b"\x89PNG\r\n\x1a\n"
PICTURE = formula.picture(0, 64, 48)
VIDEO = struct.pack(">I", 24) + b"ftypmp42" + bytes(12) + struct.pack(">I", 1008) + b"mdat" + bytes(1000)


def encode(image: Image.Image, format_name: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def chunk(name: bytes, content: bytes, crc_error: int = 0) -> bytes:
    """A chunk of a PNG, with a wrong checksum if asked for."""
    crc = zlib.crc32(name + content) ^ crc_error
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc)


def split_png(data: bytes) -> Iterator[bytes]:
    at = len(PNG_BEGIN)
    while at < len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        yield data[at:end]
        at = end


def spoil_chunk(data: bytes, name: bytes) -> bytes:
    """A PNG in which the checksums of the chunks of a name are wrong."""
    return PNG_BEGIN + b"".join(
        part[:-1] + bytes([part[-1] ^ 1]) if part[4:8] == name else part for part in split_png(data)
    )


def insert_chunk(data: bytes, part: bytes, before: bytes = b"IDAT") -> bytes:
    parts = list(split_png(data))
    place = next(place for place, one in enumerate(parts) if one[4:8] == before)
    return PNG_BEGIN + b"".join([*parts[:place], part, *parts[place:]])


def segment(code: int, content: bytes) -> bytes:
    """A segment of a JPEG."""
    return b"\xff" + bytes([code]) + struct.pack(">H", len(content) + 2) + content


def insert_segment(data: bytes, part: bytes) -> bytes:
    return data[:2] + part + data[2:]


PNG, JPEG, WEBP, GIF = (encode(PICTURE, name) for name in ("PNG", "JPEG", "WEBP", "GIF"))
LARGE = zlib.compress(bytes(2**21))  # above Pillow's MAX_TEXT_CHUNK

# Each with words of its warning.
OTHER_KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "AVIF": ("AVIF", {}),
    "BMP": ("BMP", {}),
    "JPEG2000": ("JPEG2000", {}),
    "QOI": ("QOI", {}),
    "TIFF": ("TIFF", {}),
    "TIFF of strips": ("TIFF", {"compression": "tiff_lzw", "tiffinfo": {278: 7}}),
    "TIFF of pages": ("TIFF", {"save_all": True, "append_images": [formula.picture(1, 9, 8)]}),
    "BigTIFF": ("TIFF", {"big_tiff": True}),
    "WEBP": ("WEBP", {}),
}
WHOLE_PIXELS: dict[str, tuple[bytes, str]] = {
    **{
        f"PNG, {name.decode()} with a wrong checksum": (insert_chunk(PNG, chunk(name, content, 1)), name.decode())
        for name, content in {
            b"tEXt": b"a\0b",
            b"gAMA": bytes(4),
            b"pHYs": bytes(9),
            b"eXIf": b"II*\0\x08\0\0\0\0\0",
            b"iCCP": b"a\0\0" + zlib.compress(b"x"),
            b"prVt": b"private",
        }.items()
    },
    "PNG, text too large": (insert_chunk(PNG, chunk(b"zTXt", b"a\0\0" + LARGE)), "zTXt"),
    "PNG, profile too large": (insert_chunk(PNG, chunk(b"iCCP", b"a\0\0" + LARGE)), "iCCP"),
    "PNG, text too large behind the pixels": (insert_chunk(PNG, chunk(b"zTXt", b"a\0\0" + LARGE), b"IEND"), "zTXt"),
    "PNG, texts too large together": (
        insert_chunk(PNG, b"".join(chunk(b"zTXt", b"%d\0\0" % n + zlib.compress(bytes(2**20))) for n in range(65))),
        "zTXt",
    ),
    "PNG, short gAMA": (insert_chunk(PNG, chunk(b"gAMA", b"\0")), "gAMA"),
    "PNG, short pHYs": (insert_chunk(PNG, chunk(b"pHYs", b"")), "pHYs"),
    "PNG, unknown compression": (insert_chunk(PNG, chunk(b"iCCP", b"a\0\x07x")), "iCCP"),
    "PNG, cut behind its pixels": (insert_chunk(PNG, chunk(b"tEXt", b"a\0" + bytes(400)), b"IEND")[:-200], "end mark"),
    "PNG, without end mark": (PNG[:-12], "end mark"),
    "PNG, video behind it": (PNG + VIDEO, "a video"),
    "JPEG, video behind it": (JPEG + VIDEO, f"{len(VIDEO):,} bytes behind the end of the image (a video)"),
    "JPEG, zeros behind it": (JPEG + bytes(100), "100 bytes behind the end"),
    "JPEG, progressive, video behind it": (encode(PICTURE, "JPEG", progressive=True) + VIDEO, "a video"),
    "WEBP, damaged EXIF": (encode(PICTURE, "WEBP", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"), "EXIF data is damaged"),
    "JPEG, short Adobe segment": (insert_segment(JPEG, segment(0xEE, b"Adobe")), "APP14"),
    "JPEG, short profile segment": (insert_segment(JPEG, segment(0xE2, b"ICC_PROFILE\0")), "APP2"),
    "JPEG, short JFIF segment": (insert_segment(JPEG, segment(0xE0, b"JFIF")), "APP0"),
    "JPEG, reserved marker": (insert_segment(JPEG, b"\xff\x33"), "2 bytes between segments"),
    "WEBP, video behind it": (WEBP + VIDEO, "a video"),
    "WEBP, cut EXIF": (encode(PICTURE, "WEBP", exif=b"Exif\0\0II*\0\x08\0\0\0" + bytes(200))[:-150], "EXIF"),
    "GIF, video behind it": (GIF + VIDEO, "a video"),
    **{
        f"{name}, {what} behind it": (
            encode(PICTURE, kind, **options) + behind,
            f"{'' if kind == 'TIFF' else f'{len(behind):,} '}bytes behind the end of the image",  # a TIFF has padding
        )
        for name, (kind, options) in OTHER_KINDS.items()
        for what, behind in {"video": VIDEO, "trailer": b"SEFH" + bytes(40) + b"SEFT", "zeros": bytes(99)}.items()
    },
}

DAMAGED_PIXELS: dict[str, bytes] = {
    "PNG, header with a wrong checksum": spoil_chunk(PNG, b"IHDR"),
    "PNG, palette with a wrong checksum": spoil_chunk(encode(PICTURE.convert("P"), "PNG"), b"PLTE"),
    "PNG, cut, with damaged text": insert_chunk(PNG, chunk(b"tEXt", b"a\0b", 1))[:-400],
    "PNG, pixels with a wrong checksum, with damaged text": spoil_chunk(
        insert_chunk(PNG, chunk(b"tEXt", b"a\0b", 1)), b"IDAT"
    ),
    "JPEG, cut, with a short segment": insert_segment(JPEG, segment(0xEE, b"Adobe"))[:-400],
    "JPEG, without tables, with a short segment": insert_segment(JPEG, segment(0xEE, b"Adobe")).replace(
        b"\xff\xdb", b"\xff\xe5"
    ),
    "WEBP, cut": WEBP[:-100],
}


def make_raw(previews: list[bytes], orientation: int = 1, *, order: str = "<", sensor: bool = True) -> bytes:
    """A DNG in outline: a directory for the camera, one for the sensor, one for each JPEG, and the JPEGs."""
    begin = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)

    def directory(entries: list[tuple[int, int, int]], following: int = 0) -> bytes:
        body = b"".join(
            struct.pack(order + "HHI", tag, kind, 1)
            + (struct.pack(order + "HH", value, 0) if kind == 3 else struct.pack(order + "I", value))
            for tag, kind, value in entries
        )
        return struct.pack(order + "H", len(entries)) + body + struct.pack(order + "I", following)

    first_size = len(directory([(0, 3, 0)] * 3))
    first = directory([(262, 3, 2), (274, 3, orientation), (330, 4, 8 + first_size)])
    second = directory([(262, 3, 32803 if sensor else 1)])
    pad = bytes(32)
    return begin + first + second + b"".join(pad + preview for preview in previews) + pad


def change_each_bit(data: bytes, part: slice) -> Callable[[int], bytes]:
    """Return what flips one bit of a part of some bytes, by its number."""

    def flip(number: int) -> bytes:
        at = range(len(data))[part][number // 8 % len(range(len(data))[part])]
        return data[:at] + bytes([data[at] ^ 1 << number % 8]) + data[at + 1 :]

    return flip
