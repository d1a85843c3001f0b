"""RAW photos of cameras: recognise one, and find the JPEG that is inside.

What a sensor saw is no image yet. Pillow opens some of them as TIFF, and gives a thumbnail of 160 x 120 px; others it
refuses. Nearly all hold the camera's own JPEG, often of full size.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from .jpeg import BEGIN, find_end, find_frame

if TYPE_CHECKING:
    from collections.abc import Iterator

BYTE_ORDERS = {b"II": "<", b"MM": ">"}
TIFF_MAGICS = (b"II*\0", b"MM\0*")
# Olympus, Panasonic, Fujifilm, Sigma, Minolta; Canon's CR3 and CR2 have theirs further on.
RAW_MAGICS = (b"IIRO", b"IIRS", b"MMOR", b"IIU\0", b"FUJIFILMCCD-RAW", b"FOVb", b"\0MRM")
CR3_TYPE, CR2_MARK = b"ftypcrx ", b"CR"
PHOTOMETRIC, ORIENTATION, SUB_IFDS, DNG_VERSION = 262, 274, 330, 50706
SENSOR = frozenset({32803, 34892})  # as PHOTOMETRIC: a colour filter array, linear raw. Source: DNG 1.7, chapter 4
SHORT, LONG = 3, 4
MAX_DIRECTORIES = 32  # of a file; cameras write up to ten
MAX_JPEGS = 1024  # in a file, thumbnails and previews


def is_raw(data: bytes) -> bool:
    """Whether an encoded image is a RAW photo, by its header and its TIFF directories."""
    if data.startswith(RAW_MAGICS) or data[4:12] == CR3_TYPE:
        return True
    if not data.startswith(TIFF_MAGICS):
        return False
    if data[8:10] == CR2_MARK:
        return True
    return any(
        tag == DNG_VERSION or (tag == PHOTOMETRIC and value in SENSOR)
        for entries in _read_directories(data)
        for tag, value in entries.items()
    )


def read_orientation(data: bytes) -> int:
    """Return the EXIF orientation in the first directory of a RAW photo; 1 where there is none."""
    return next(iter(_read_directories(data)), {}).get(ORIENTATION, 1)


def find_preview(data: bytes) -> bytes | None:
    """Return the JPEG of most pixels inside a RAW photo; None where there is none."""
    best, pixels = None, 0
    at, found = data.find(BEGIN, 1), 0
    while at >= 0 and found < MAX_JPEGS:
        size, end = find_frame(data, at), None
        if size is not None and (end := find_end(data, at)) is not None:
            found += 1
            if size[0] * size[1] > pixels:
                best, pixels = data[at:end], size[0] * size[1]
        at = data.find(BEGIN, end or at + 2)
    return best


def _read_directories(data: bytes) -> Iterator[dict[int, int]]:
    """Yield the tags of each directory of a TIFF that have a number, the first where there are several.

    Source:  TIFF 6.0, section 2; SubIFDs: TIFF technical note 1.
    """
    order = BYTE_ORDERS.get(data[:2])
    if order is None or len(data) < 8:
        return
    waiting, seen = [struct.unpack_from(f"{order}I", data, 4)[0]], set[int]()
    while waiting and len(seen) < MAX_DIRECTORIES:
        at = waiting.pop(0)
        if at in seen or not 8 <= at <= len(data) - 2:
            continue
        seen.add(at)
        (count,) = struct.unpack_from(f"{order}H", data, at)
        table = data[at + 2 : at + 2 + 12 * count]
        entries: dict[int, int] = {}
        for place in range(0, len(table) - 11, 12):
            tag, kind, number, wide = struct.unpack_from(f"{order}HHII", table, place)
            (narrow,) = struct.unpack_from(f"{order}H", table, place + 8)
            entries[tag] = narrow if kind == SHORT else wide
            if tag == SUB_IFDS and number == 1:
                waiting.append(wide)
            elif tag == SUB_IFDS and wide + 4 * min(number, MAX_DIRECTORIES) <= len(data):
                waiting += struct.unpack_from(f"{order}{min(number, MAX_DIRECTORIES)}I", data, wide)
        yield entries
        if len(data) >= at + 6 + 12 * count:
            waiting.append(struct.unpack_from(f"{order}I", data, at + 2 + 12 * count)[0])
