"""Open a list as text, and read its lines: their encoding, their ends, and how long they may be.

A list may be compressed, which the last ending of its name says: captions.csv.gz, paths.jsonl.zst. It is UTF-8, with a
byte order mark or without; UTF-16 and UTF-32 are read where a mark says so. Other bytes stay as surrogates,
as paths may have them. A line ends with LF, CRLF or CR, whatever the other lines end with.
"""

from __future__ import annotations

import codecs
import io
import sys
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, cast

import pyarrow as pa

from ..errors import InputError
from ..records import STDIN
from .files import open_file
from .remote.client import get_path

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

PEEKED_BYTES = 65_536
COMPRESSED = {".gz": "gzip", ".zst": "zstd"}  # by the last ending, as pyarrow names the codec
MAX_LINE = 10_000_000  # characters of a line, or of a row of several; captions and base64 may be beside a path
# UTF-32's first, as its mark for little-endian begins with that of UTF-16.
MARKS = (
    *((codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32")),
    *((codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16")),
)
ENDS = "\r\n"
ZERO_PART = 3  # of text in UTF-16 more than a third of the bytes are zero, of names between NULs fewer


# A line of a list: its number from 1, its text with its end, what is wrong with it; a tuple, as there are millions.
TextLine = tuple[int, str, InputError | None]


@contextmanager
def open_text(path: str) -> Generator[tuple[TextIO, str]]:
    """Open a list, or standard input, as text; give its first characters too. Line ends stay as they are.

    Raises:  InputError for UTF-16 without a mark, and for a list with one that its bytes do not keep to; OSError.
    """
    binary = sys.stdin.buffer if path == STDIN else open_file(path)
    codec = COMPRESSED.get(split_ending(path)[1])
    plain = pa.CompressedInputStream(pa.PythonFile(binary, "r"), codec) if codec else binary
    peekable = io.BufferedReader(cast("io.RawIOBase", plain), PEEKED_BYTES)
    try:
        begin = peekable.peek(PEEKED_BYTES)
        encoding = next((encoding for mark, encoding in MARKS if begin.startswith(mark)), "utf-8-sig")
        if encoding == "utf-8-sig" and _looks_wide(begin):
            raise InputError(path, "looks like UTF-16 without a byte order mark", "UTF-8", "Save it as UTF-8.")
        errors = "surrogateescape" if encoding == "utf-8-sig" else "strict"
        text = io.TextIOWrapper(cast("io.BufferedReader", peekable), encoding, errors, newline="")
        try:
            yield text, begin.decode(encoding, "ignore")
        except UnicodeDecodeError as exc:
            found = f"says that it is {encoding.upper()} and is not ({exc.reason})"
            raise InputError(path, found, "UTF-8", "Save it as UTF-8.") from exc
        finally:
            text.detach()
    finally:
        peekable.detach()
        if path != STDIN:
            binary.close()


def split_ending(path: str) -> tuple[str, str]:
    """Return the ending of a list's name, and the one after it that says how the list is compressed, or nothing."""
    name = Path(get_path(path).lower())
    return (Path(name.stem).suffix, name.suffix) if name.suffix in COMPRESSED else (name.suffix, "")


def _looks_wide(begin: bytes) -> bool:
    return begin.count(0) * ZERO_PART > len(begin) and (b"\n\0" in begin or b"\0\n" in begin)


def read_text_lines(file: TextIO) -> Iterator[TextLine]:
    """Yield the lines of a list, with their ends; one that is too long, or that holds a NUL, comes with its fault."""
    read = partial(file.readline, MAX_LINE)
    for number, text in enumerate(iter(read, ""), 1):
        if len(text) == MAX_LINE and not text.endswith(("\n", "\r")):
            while (rest := read()) and not rest.endswith(("\n", "\r")):
                pass
            yield number, "", make_line_error(number, f"is longer than {MAX_LINE:,} characters", "a row")
        elif "\0" in text:
            yield number, text, make_line_error(number, "holds a NUL", "text")
        else:
            yield number, text, None


def make_line_error(number: int, found: str, expected: str, remedy: str = "Repair it, or leave it out.") -> InputError:
    """Return the error for a line of a list; without its item it names the line, as a failure row needs it."""
    return InputError(f"line {number}", f"line {number} {found}", expected, remedy)
