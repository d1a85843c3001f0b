"""Walk through the segments of a JPEG without decoding it.

Source:  ITU-T T.81, annex B.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

SOI, EOI, SOS = 0xD8, 0xD9, 0xDA
BEGIN = b"\xff\xd8\xff"
FRAMES_DECODED = frozenset({0xC0, 0xC1, 0xC2})  # baseline, extended, progressive; the others, as lossless, are not
FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
NO_LENGTH = frozenset({0x01, *range(0xD0, 0xD8)})
# The next marker in compressed data: neither a byte 255 of the data, nor a restart.
NEXT_MARKER = re.compile(rb"\xff+[^\x00\xd0-\xd7\xff]")


def list_segments(data: bytes, start: int = 0) -> Iterator[tuple[int, int, int]]:
    """Yield the code, the start and the end of each segment from SOI to SOS, and of no other than whole ones.

    Whatever stands between two segments is passed over, as libjpeg does.
    """
    at = start + 2
    while (at := data.find(b"\xff", at)) >= 0 and at + 4 <= len(data):
        code = data[at + 1]
        if code == 0xFF:
            at += 1
        elif code < 0xC0 or code in NO_LENGTH:
            at += 2
        elif code in (SOI, EOI):
            return
        else:
            end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
            if end > len(data) or end < at + 4:
                return
            yield code, at, end
            if code == SOS:
                return
            at = end


def find_frame(data: bytes, start: int = 0) -> tuple[int, int] | None:
    """Return width and height of the JPEG that begins at `start`, by its header; None for one that is not decoded."""
    for code, at, _ in list_segments(data, start):
        if code in FRAMES:
            height, width = int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big")
            return (width, height) if code in FRAMES_DECODED and width and height else None
    return None


def find_end(data: bytes, start: int = 0) -> int | None:
    """Return where the JPEG that begins at `start` ends, after its EOI; None where it has none."""
    at = next((end for code, _, end in list_segments(data, start) if code == SOS), None)
    if at is None:
        return None
    while (marker := NEXT_MARKER.search(data, at)) is not None:
        at = marker.end()
        code = data[at - 1]
        if code == EOI:
            return at
        if code not in NO_LENGTH and code >= 0xC0:  # tables, and the next scan of a progressive image
            at += int.from_bytes(data[at : at + 2], "big")
    return None
