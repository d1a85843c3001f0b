"""The checksum that a file of an output carries, of all its bytes: what was changed in it is found when it is read.

    JSON      the last key is "checksum": the crc32 of the file with zeros in its place
    Parquet   the last key of the metadata is clip.checksum: the crc32 of the footer, and that of the whole file, with
              zeros in their place; and each page has its own, as the format provides

The footer is compared at each reading, the pages when they are read, the whole file by verify and by a run that is
resumed. A seed goes into the two sums of a Parquet file: the file's name, and the run that it is of, so that neither a
part under another name nor one of another run passes. A crc32 finds every damage of up to 32 successive bits, and
misses one in 2**32 of the others; it is no guard against an author. pyarrow checks 5 GB/s by it, zlib 4.5.
"""

from __future__ import annotations

import json
import re
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from ..atomic_files import read_regular

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

CHANGED = "is not as it was written"
CHECKSUM, NO_CHECKSUM = "checksum", "00000000"
JSON_END = re.compile(rb'"checksum": "([0-9a-f]{8})"\n}\n\Z')
MAX_JSON_BYTES = 2**26  # of a manifest that names a million inputs
KEY, BLANK = b"clip.checksum", b"0" * 16
MARK = KEY + b"\x18\x10"  # as Thrift's compact protocol writes the key before a value of 16 bytes
PARQUET_MAGIC, PARQUET_END = b"PAR1", 8  # the footer's length (4 bytes, little-endian), and the magic
CHUNK_BYTES = 2**22  # read at a time


def dump_json(content: dict[str, Any]) -> bytes:
    """Return the content of a JSON file that carries its checksum."""
    blank = json.dumps({**content, CHECKSUM: NO_CHECKSUM}, indent=2).encode() + b"\n"
    end = JSON_END.search(blank)
    if end is None:
        raise AssertionError("the last key is the checksum")
    return blank[: end.start(1)] + f"{zlib.crc32(blank):08x}".encode() + blank[end.end(1) :]


def load_json(path: Path) -> tuple[dict[str, Any], bool]:
    """Return the object in a JSON file without its checksum, and whether it carried one.

    Raises:  OSError; ValueError for a file that holds anything else, or is not as it was written.
    """
    data = read_regular(path, MAX_JSON_BYTES)
    try:
        content = json.loads(data)
    except RecursionError as exc:
        raise ValueError("it is nested too deeply") from exc
    if not isinstance(content, dict):
        raise ValueError("it is no object")
    if content.pop(CHECKSUM, None) is None:
        return content, False
    end = JSON_END.search(data)
    blank = data if end is None else data[: end.start(1)] + NO_CHECKSUM.encode() + data[end.end(1) :]
    if end is None or f"{zlib.crc32(blank):08x}".encode() != end.group(1):
        raise ValueError(f"it {CHANGED}")
    return content, True


class TableWriter:
    """Writes a Parquet file with checksums, table by table."""

    def __init__(
        self,
        file: BinaryIO,
        schema: pa.Schema,
        seed: str,
        *,
        dictionary: bool | list[str] = True,
        encoding: dict[str, str] | None = None,
    ) -> None:
        """Begin a file, which must be empty and stays open; `dictionary` and `encoding` are pyarrow's, by column."""
        self._file = file
        self._seed = zlib.crc32(seed.encode())
        self._sink = _Sink(file, self._seed)
        self._writer = pq.ParquetWriter(
            self._sink,
            schema,
            compression="zstd",
            use_dictionary=dictionary,  # pyright: ignore[reportArgumentType]  the stubs know no list
            column_encoding=encoding,
            write_page_checksum=True,
        )

    def write(self, table: pa.Table) -> None:
        """Append the rows of a table."""
        self._writer.write_table(table)

    def note(self, notes: Mapping[bytes, str]) -> None:
        """Add to the metadata."""
        self._writer.add_key_value_metadata(dict(notes))

    def close(self) -> None:
        """Write the footer, and the checksums into it."""
        self._writer.add_key_value_metadata({KEY: BLANK})
        start, self._sink.footer = self._sink.size_bytes, bytearray()
        self._writer.close()
        footer = self._sink.footer
        place = footer.rindex(MARK + BLANK) + len(MARK)
        self._file.seek(start + place)
        self._file.write(f"{zlib.crc32(footer, self._seed):08x}{self._sink.checksum:08x}".encode())

    def abandon(self) -> None:
        """Close pyarrow's writer of a file that is removed afterwards."""
        self._writer.close()


class _Sink:
    """What pyarrow writes a file to."""

    closed = False  # pyarrow reads it

    def __init__(self, file: BinaryIO, seed: int) -> None:
        self._file = file
        self.checksum = seed
        self.size_bytes = 0
        self.footer: bytearray | None = None  # what is written from then on

    def write(self, data: Any) -> int:
        """Append bytes, and return how many."""
        piece = memoryview(data).cast("B")
        self.checksum = zlib.crc32(piece, self.checksum)
        self.size_bytes += len(piece)
        if self.footer is not None:
            self.footer += piece
        return self._file.write(piece)

    def flush(self) -> None:
        """Do nothing; pyarrow calls it."""


@dataclass(frozen=True)
class Checksum:
    """What a Parquet file says of itself."""

    start: int  # of the footer [Unit: byte]
    footer: bytes  # with zeros for the checksums
    whole: bytes  # in hexadecimal


def check_footer(file: BinaryIO, seed: str) -> Checksum | None:
    """Compare the footer of a Parquet file with its checksum; return None where it carries none.

    Raises:  OSError; ValueError where the file is cut, or the footer is not as it was written.
    """
    size_bytes = file.seek(0, 2)
    end = max(0, size_bytes - PARQUET_END)
    file.seek(end)
    tail = file.read(PARQUET_END)
    start = end - int.from_bytes(tail[:4], "little")
    if tail[4:] != PARQUET_MAGIC or start < len(PARQUET_MAGIC):
        raise ValueError("its end is missing, or it is no Parquet file")
    file.seek(start)
    footer = file.read(size_bytes - start)
    file.seek(0)
    place = footer.rfind(MARK)
    if place < 0:
        return None
    place += len(MARK)
    value, blank = footer[place : place + len(BLANK)], footer[:place] + BLANK + footer[place + len(BLANK) :]
    if f"{zlib.crc32(blank, zlib.crc32(seed.encode())):08x}".encode() != value[:8]:
        raise ValueError(f"its footer {CHANGED}, or it is of another run or name")
    return Checksum(start, blank, value[8:])


def check_whole(file: BinaryIO, seed: str) -> bool:
    """Compare all of a Parquet file with its checksum; return False where it carries none.

    Raises:  as `check_footer`.
    """
    checksum = check_footer(file, seed)
    if checksum is None:
        return False
    found, rest = zlib.crc32(seed.encode()), checksum.start
    while rest and (chunk := file.read(min(rest, CHUNK_BYTES))):
        found, rest = zlib.crc32(chunk, found), rest - len(chunk)
    file.seek(0)
    if f"{zlib.crc32(checksum.footer, found):08x}".encode() != checksum.whole:
        raise ValueError(f"it {CHANGED}")
    return True
