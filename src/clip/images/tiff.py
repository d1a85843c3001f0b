"""Find where a TIFF ends: behind the last byte that its directories name.

Source:  TIFF 6.0, section 2; for 64 bits the BigTIFF proposal of libtiff.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

VALUE_BYTES = (0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8, 8, 8)  # by type; types 14 and 15 are none
INTEGERS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}  # types of offsets and lengths
BLOCKS = {273: 279, 324: 325, 288: 289, 513: 514}  # offsets of strips, tiles, free bytes, a JPEG: and their lengths
DIRECTORIES = (330, 34665, 34853, 40965)  # further ones: smaller images, EXIF, GPS, interoperability
PADDED_BYTES = 16
MAX_DIRECTORIES = 10_000
MAX_VALUES = 10_000_000  # of a tag


def find_tiff_end(data: bytes) -> int:
    """Return where the last byte is that the directories of a TIFF name; the file's end where they are damaged.

    Writers fill the file with zeros up to a multiple of up to 16 bytes, as Pillow does behind each page.
    """
    order, size = {b"II*\0": ("<", 4), b"MM\0*": (">", 4), b"II+\0": ("<", 8), b"MM\0+": (">", 8)}.get(
        data[:4], ("", 0)
    )
    try:
        end = _Walk(data, order, size).find_end() if order else len(data)
    except (struct.error, ValueError):
        return len(data)
    padding = -end % PADDED_BYTES
    return min(len(data), end if data[end : end + padding].strip(b"\0") else end + padding)


@dataclass
class _Walk:
    data: bytes
    order: str
    size: int  # of an offset

    def find_end(self) -> int:
        """Walk through all directories. Raises: struct.error, ValueError for damaged ones."""
        kind = "I" if self.size == 4 else "Q"
        ends, seen = [0], set[int]()
        waiting = list(self._unpack(kind, self.size, 1))
        while waiting:
            at = waiting.pop()
            if not at or at in seen:
                continue
            seen.add(at)
            if len(seen) > MAX_DIRECTORIES:
                raise ValueError("too many directories")
            (count,) = self._unpack("H" if self.size == 4 else "Q", at, 1)
            first = at + (2 if self.size == 4 else 8)
            entry_bytes = 12 if self.size == 4 else 20
            end = first + count * entry_bytes
            if end > len(self.data):
                raise ValueError("a directory is cut")
            tags = dict(self._read_entry(entry, ends) for entry in range(first, end, entry_bytes))
            ends.append(end + self.size)
            for offsets, lengths in BLOCKS.items():
                pairs = zip(tags.get(offsets, ()), tags.get(lengths, ()), strict=False)
                ends.append(max((offset + length for offset, length in pairs), default=0))
            waiting += [offset for tag in DIRECTORIES for offset in tags.get(tag, ())]
            waiting += self._unpack(kind, end, 1) if end + self.size <= len(self.data) else ()
        return max(ends)

    def _read_entry(self, at: int, ends: list[int]) -> tuple[int, tuple[int, ...]]:
        """Return a tag and its values, where they may be offsets or lengths; append where they end."""
        wide = self.size == 8
        tag, kind = self._unpack("H", at, 2)
        (count,) = self._unpack("Q" if wide else "I", at + 4, 1)
        value_bytes = (VALUE_BYTES[kind] if kind < len(VALUE_BYTES) else 0) * count
        place = at + (12 if wide else 8)
        if value_bytes > self.size:
            (place,) = self._unpack("Q" if wide else "I", place, 1)
        ends.append(place + value_bytes)
        is_named = tag in DIRECTORIES or tag in BLOCKS or tag in BLOCKS.values()
        if kind not in INTEGERS or not is_named or count > MAX_VALUES:
            return tag, ()
        return tag, self._unpack(INTEGERS[kind], place, count)

    def _unpack(self, kind: str, at: int, count: int) -> tuple[int, ...]:
        return struct.unpack_from(f"{self.order}{count}{kind}", self.data, at)
