"""Read lists of images or texts: plain lines, CSV, TSV, NDJSON.

A plain list has a path or URL per line, or between NULs if it holds one, as `find -print0` writes. In a plain list of
texts every line is a text, also an empty one. The other formats have named columns; the images or texts are in the
column that the user names, or in the only one with a usual name. Bytes that are not UTF-8 are kept as surrogates, as
paths may have them.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO, cast

from ..errors import InputError
from ..records import STDIN, Item, as_utf8, utf8_path
from .files import open_file, stat_here
from .remote.client import get_path

if TYPE_CHECKING:
    from collections.abc import Container, Generator, Iterable, Iterator

    from ..jobs.options import Columns

PLAIN_ENDINGS = (".txt", ".lst", ".list")
COLUMN_ENDINGS = (".csv", ".tsv", ".ndjson", ".jsonl")
LIST_ENDINGS = PLAIN_ENDINGS + COLUMN_ENDINGS
DELIMITERS = {".csv": ",", ".tsv": "\t"}
USUAL_COLUMNS = ("path", "image_path", "file_path", "filepath", "file", "filename", "file_name", "image", "url", "uri")
USUAL_TEXTS = ("text", "caption", "txt", "sentence", "prompt", "title", "description")
PEEKED_CHARACTERS = 65_536
MAX_FIELD = 10_000_000  # characters of a CSV field, as captions and base64 may be in the column beside the path


class Line(NamedTuple):
    """An entry of a list or a table."""

    id: str | None  # None without an id column
    entry: str | None  # the path or URL of an image, or a text; None where a text is missing
    values: tuple[str | None, ...]  # of the columns that are copied


def is_list(path: str) -> bool:
    """Whether a file is a list by its name; "-", standard input, is one."""
    return path == STDIN or get_path(path).lower().endswith(LIST_ENDINGS)


def read_lines(path: str, columns: Columns) -> Iterator[Line]:
    """Read the entries of a list, in order; "-" is a plain list on standard input.

    Raises:  InputError for a list that cannot be read, a missing column, a line that is not a JSON object, and an image
             without a path.
    """
    try:
        with _open_text(path) as file:
            ending = Path(get_path(path)).suffix.lower()
            if ending in COLUMN_ENDINGS:
                yield from _make_lines(path, _read_rows(path, ending, file, columns), columns)
            elif columns.named:
                found = f"has no column {columns.named[0]!r}, as plain lists have none"
                raise InputError(path, found, " or ".join(COLUMN_ENDINGS), "Leave the column out.")
            elif columns.kind == "texts":
                yield from (Line(None, text, ()) for text in _split_text(file, "\n"))
            else:
                yield from (Line(None, name, ()) for name in _read_names(file) if name)
    except (OSError, csv.Error) as exc:
        raise InputError(path, f"cannot be read ({exc})", f"a list of {columns.kind}", "Check the file.") from exc


def make_item(line: Line, path: str, own_id: str, number: int, columns: Columns, root: str) -> Item:
    """Return the image that a line of a list names, or the text of line `number`, whose file is the list."""
    if columns.kind == "texts":
        size_bytes = len((line.entry or "").encode("utf-8", "surrogatepass"))
        return Item(utf8_path(line.id or f"{own_id}!{number}"), path, size_bytes, values=(line.entry, *line.values))
    location = _make_openable(locate(line.entry or "", root))
    return Item(utf8_path(line.id or line.entry or ""), location, *stat_here(location), line.values)


def locate(name: str, root: str) -> str:
    """Return where a name in a list leads: a URL and an absolute path stay, others start at `root`."""
    return name if "://" in name else os.path.join(root, name)  # noqa: PTH118  strings: ten million paths


def _make_openable(path: str) -> str:
    """Return a path that the system accepts; half of a surrogate pair is spelt out, and names no file."""
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        return as_utf8(path)
    return path


@contextmanager
def _open_text(path: str) -> Generator[TextIO]:
    if path == STDIN:
        sys.stdin.reconfigure(encoding="utf-8-sig", errors="surrogateescape", newline="")  # type: ignore[union-attr]
        yield sys.stdin
        return
    with open_file(path) as binary:
        peekable = io.BufferedReader(cast("io.RawIOBase", binary))
        if peekable.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            raise InputError(path, "found UTF-16", "UTF-8", "Save it as UTF-8.")
        with io.TextIOWrapper(peekable, "utf-8-sig", "surrogateescape", "") as file:
            yield file


def _read_names(file: TextIO) -> Iterator[str]:
    begin = file.read(PEEKED_CHARACTERS)
    return _split_text(file, "\0" if "\0" in begin else "\n", begin)


def _split_text(file: TextIO, end: str, begin: str = "") -> Iterator[str]:
    """Return the text before each `end`, and the text after the last one unless it is empty."""
    tail = ""
    while begin := begin or file.read(PEEKED_CHARACTERS):
        *lines, tail = (tail + begin).split(end)
        yield from (line.removesuffix("\r") if end == "\n" else line for line in lines)
        begin = ""
    if tail:
        yield tail.removesuffix("\r") if end == "\n" else tail


def _read_rows(path: str, ending: str, file: TextIO, columns: Columns) -> Iterator[dict[str, Any]]:
    if ending in DELIMITERS:
        csv.field_size_limit(MAX_FIELD)
        reader = csv.DictReader(file, delimiter=DELIMITERS[ending])
        check_names(path, list(reader.fieldnames or ()), columns)
        yield from reader
        return
    for number, line in enumerate(file, 1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as exc:
                raise InputError(path, f"line {number} is not JSON ({exc})", "an object", "Repair it.") from exc
            if not isinstance(row, dict):
                raise InputError(path, f"line {number} is {type(row).__name__}", "an object", "Repair it.")
            yield row


def check_names(path: str, names: list[str], columns: Columns) -> None:
    """Raise InputError for a column that the user named and that is not there exactly once."""
    for name in columns.named:
        if names.count(name) != 1:
            count = f"{names.count(name)} columns" if name in names else "no column"
            found = f"has {count} {name!r} among {', '.join(names)}"
            raise InputError(path, found, "one", "Name another column, or rename it.")


def _make_lines(path: str, rows: Iterable[dict[str, Any]], columns: Columns) -> Iterator[Line]:
    entry = columns.entry
    copied = [name for name, _ in columns.taken]
    texts = columns.kind == "texts"
    missing = {*copied, *([entry] if texts and entry else [])}  # not every object has all; a text may be missing
    required = [name for name in (None if texts else entry, columns.id) if name]
    for number, row in enumerate(rows, 1):
        if entry is None:
            entry = find_usual_column(path, row, USUAL_TEXTS if texts else USUAL_COLUMNS)
            required += [] if texts else [entry]
        missing -= row.keys()
        for name in required:
            if not isinstance(row.get(name), str) or not row[name]:
                found = f"row {number} has {row.get(name)!r} in column {name!r}"
                remedy = "Name another with `columns.entry` or `columns.id`, or repair the row."
                raise InputError(path, found, f"a text; its columns are {', '.join(map(str, row))}", remedy)
        value = row.get(entry)
        values = tuple(_to_text(row.get(name), is_text=name == columns.text) for name in copied)
        yield Line(row[columns.id] if columns.id else None, value if isinstance(value, str) else None, values)
    if missing:
        raise InputError(path, f"none of its rows has a column {sorted(missing)[0]!r}", "one", "Name another column.")


def _to_text(value: Any, *, is_text: bool) -> str | None:
    """Return a value to copy: a text as it is, others of NDJSON as JSON; a caption that is no text is missing."""
    return value if value is None or isinstance(value, str) else None if is_text else json.dumps(value)


def find_usual_column(path: str, names: Iterable[str], usual: Container[str] = USUAL_COLUMNS) -> str:
    """Return the one column with a usual name. Raises: InputError where there is none, or several."""
    candidates = [name for name in names if str(name).lower() in usual]
    if len(candidates) != 1:
        wanted = "name images" if usual is USUAL_COLUMNS else "be the texts"
        count = f"{len(candidates)} columns that may {wanted}" if candidates else f"no column that seems to {wanted}"
        listed = ", ".join(map(str, names))
        raise InputError(path, f"has {count} among {listed}", "one", "Name it with `columns.entry`.")
    return candidates[0]
