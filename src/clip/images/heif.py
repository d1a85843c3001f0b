"""HEIC files: recognise one, and make its decoder leave it as stored."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

HEIF = "HEIF"  # Pillow's name for what pi-heif reads
HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"})
MAX_BOXES = 2**15  # in one list of a HEIC; an item's reference to a property has 15 bits


def is_heif(data: bytes) -> bool:
    """Whether an encoded image is a HEIC, or of another kind that pi-heif reads, by its header."""
    return data[4:8] == b"ftyp" and data[8:12] in HEIF_BRANDS


def remove_rotation(data: bytes) -> bytes:
    """Return a HEIC that decodes as it is stored, not turned; any other encoded image is returned unchanged.

    libheif turns what it decodes, and turning back is not exact: it crops to odd sizes, and colours have half the
    resolution. So the boxes that ask for it, irot and imir, are overwritten with an irot by 0 degrees, for all images
    of the file at once.

    Source:  ISO/IEC 23008-12, 6.5.10 and 6.5.12.
    """
    if not is_heif(data):
        return data
    first, last = 0, len(data)
    for name in (b"meta", b"iprp", b"ipco"):
        spans = (
            (content, end) for kind, content, end in list_boxes(data, first, last) if data[kind : kind + 4] == name
        )
        first, last = next(spans, (0, 0))
        first += 4 if name == b"meta" else 0  # version and flags
    turns = [
        (kind, content)
        for kind, content, end in list_boxes(data, first, last)
        if data[kind : kind + 4] in (b"irot", b"imir") and content < end
    ]
    if not turns:
        return data
    stored = bytearray(data)
    for kind, content in turns:
        stored[kind : kind + 4] = b"irot"
        stored[content] = 0
    return bytes(stored)


def list_boxes(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield each whole box of a list: the offsets of its name, of its content and of its end.

    Source:  ISO/IEC 14496-12, 4.2.
    """
    for _ in range(MAX_BOXES):
        if start + 8 > end:
            return
        size, header = int.from_bytes(data[start : start + 4], "big"), 8
        if size == 1:
            size, header = int.from_bytes(data[start + 8 : start + 16], "big"), 16
        elif size == 0:  # to the end
            size = end - start
        if size < header or start + size > end:
            return  # damaged; the decoder will say how
        yield start + 4, start + header, start + size
        start += size
