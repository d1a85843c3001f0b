"""A file of named sections with checksums: written once, mapped, checked before use. Knows nothing about vectors.

    MAGIC; sections, each at a multiple of 4096; the header, JSON; its length and crc32, MAGIC

The header is a dict of the writer's own fields and of "sections": for each its offset, its size, the size of its
blocks, and a crc32 for each block, so that a reader can check what it uses and no more. A crc32 finds every damage of
up to 32 bits in a row, and misses one in 2**32 of the others.
"""

from __future__ import annotations

import json
import mmap
import struct
import zlib
from typing import TYPE_CHECKING, Any, BinaryIO

from ..errors import StoreError
from ..parallel import available_cores, map_ahead

if TYPE_CHECKING:
    from collections.abc import Iterable

MAGIC = b"clipturb"
TRAILER = struct.Struct("<QI8s")  # length and crc32 of the header, MAGIC
PAGE = 4096  # what offsets are a multiple of [Unit: byte]


class SectionWriter:
    """Sections on their way into a file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._end = file.write(MAGIC)
        self._sections: dict[str, Section] = {}

    def section(self, name: str, block_bytes: int, size_bytes: int = 0) -> Section:
        """A new section. Only the one that was made last may grow beyond the size that it was given."""
        self._end = max([self._end, *(section.end for section in self._sections.values())])
        offset = -(-self._end // PAGE) * PAGE
        self._end = offset + size_bytes
        self._sections[name] = Section(self._file, offset, block_bytes)
        return self._sections[name]

    def finish(self, header: dict[str, Any]) -> None:
        """Write the header behind all sections."""
        told = json.dumps({**header, "sections": {name: s.told() for name, s in self._sections.items()}}).encode()
        self._file.seek(max([self._end, *(section.end for section in self._sections.values())]))
        self._file.write(told + TRAILER.pack(len(told), zlib.crc32(told), MAGIC))


class Section:
    """A section that grows."""

    closed = False  # what pyarrow asks of a file

    def __init__(self, file: BinaryIO, offset: int, block_bytes: int) -> None:
        self._file = file
        self._offset = offset
        self._block_bytes = block_bytes
        self._checks: list[int] = []  # of whole blocks
        self._check = 0  # of the block that is not full yet
        self.size_bytes = 0

    @property
    def end(self) -> int:
        """Where it ends in the file, so far."""
        return self._offset + self.size_bytes

    def write(self, data: Any) -> int:
        """Add some bytes; tells how many."""
        rest = memoryview(data).cast("B")
        self._file.seek(self.end)
        self._file.write(rest)
        written = len(rest)
        while len(rest):
            room = self._block_bytes - self.size_bytes % self._block_bytes
            self._check = zlib.crc32(rest[:room], self._check)
            self.size_bytes += len(rest[:room])
            if self.size_bytes % self._block_bytes == 0:
                self._checks.append(self._check)
                self._check = 0
            rest = rest[room:]
        return written

    def flush(self) -> None:
        """What pyarrow asks of a file."""

    def told(self) -> dict[str, Any]:
        """What the header has to say of it."""
        open_block = [self._check] if self.size_bytes % self._block_bytes else []
        size = {"offset": self._offset, "size_bytes": self.size_bytes, "block_bytes": self._block_bytes}
        return {**size, "checks": [*self._checks, *open_block]}


class Sections:
    """A file of sections, mapped. It stays as it is, whatever takes its place in its folder."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        """Read the header; `name` is what errors call the file, which may be closed afterwards.

        Raises:  StoreError where the file is cut, or its header is damaged.
        """
        self._name = name
        try:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as exc:
            raise self._damaged("empty") from exc
        end = len(self._map) - TRAILER.size
        length, check, magic = TRAILER.unpack(self._map[end:]) if end >= 0 else (0, 0, b"")
        if magic != MAGIC or self._map[: len(MAGIC)] != MAGIC or length > end:
            raise self._damaged("its end is missing")
        told = self._map[end - length : end]
        if zlib.crc32(told) != check:
            raise self._damaged("its header is not as it was written")
        self.header: dict[str, Any] = json.loads(told)  # ours: the checksum says so
        self._sections: dict[str, dict[str, Any]] = self.header.pop("sections")

    def view(self, name: str) -> memoryview:
        """A section's bytes, mapped, not checked."""
        start = self._sections[name]["offset"]
        return memoryview(self._map)[start : start + self._sections[name]["size_bytes"]]

    def check(self, name: str) -> None:
        """Check all of a section, in threads. Raises: StoreError where it is damaged."""
        blocks = range(len(self._sections[name]["checks"]))
        workers = available_cores()
        for _ in map_ahead(lambda block: self.checked(name, block), blocks, workers=workers, ahead=4 * workers):
            pass

    def checked(self, name: str, block: int) -> memoryview:
        """A block of a section. Raises: StoreError where it is damaged."""
        size, checks = self._sections[name]["block_bytes"], self._sections[name]["checks"]
        data = self.view(name)[block * size : (block + 1) * size]
        if zlib.crc32(data) != checks[block]:
            raise self._damaged(f"block {block} of its {name} is not as it was written")
        return data

    def forget(self, name: str, blocks: Iterable[int]) -> None:
        """Let go of the memory that blocks of a section take, which the system reads again when they are needed."""
        if not hasattr(self._map, "madvise"):
            return  # Windows
        size, offset = self._sections[name]["block_bytes"], self._sections[name]["offset"]
        for block in blocks:
            start = (offset + block * size) // mmap.PAGESIZE * mmap.PAGESIZE
            self._map.madvise(mmap.MADV_DONTNEED, start, min(offset + (block + 1) * size, len(self._map)) - start)

    def _damaged(self, what: str) -> StoreError:
        return StoreError(
            self._name,
            f"damaged ({what})",
            "it as it was written",
            "Run clip index to remake it.",
        )
