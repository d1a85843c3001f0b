"""Lists that name images, or are texts: plain lines, CSV, TSV, NDJSON. Knows nothing about what the names lead to.

Plain lists have a path or URI a line, or, if they hold a NUL, as of `find -print0`, between NULs; of texts each line is
one, also an empty one. The others have named columns; which one names the images, or is the texts, is told, or is the
only one with a usual name. Bytes that are no UTF-8 stay what they are, as paths may have them.
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
from ..records import STDIN
from .remote.client import opened, path_of

if TYPE_CHECKING:
    from collections.abc import Container, Generator, Iterable, Iterator

    from ..jobs.options import Columns

PLAIN_ENDINGS = (".txt", ".lst", ".list")
COLUMN_ENDINGS = (".csv", ".tsv", ".ndjson", ".jsonl")
USUAL_COLUMNS = ("path", "image_path", "file_path", "filepath", "file", "filename", "file_name", "image", "url", "uri")
USUAL_TEXTS = ("text", "caption", "txt", "sentence", "prompt", "title", "description")
PEEKED_CHARACTERS = 65_536
MAX_FIELD = 10_000_000  # characters of a CSV field, as captions and base64 may stand beside the path


class Line(NamedTuple):
    """An entry of a list or a table."""

    id: str | None  # None without an id column
    entry: str | None  # the path or URI of an image, or a text; None for a text that is not there
    values: tuple[str | None, ...]  # of the columns that go along


def lines_in(path: str, columns: Columns) -> Iterator[Line]:
    """The entries of a list, in its order; "-" is a plain list on stdin.

    Raises:  InputError for a list that cannot be read, a column that is not there, a line that is no JSON object, and
             an image without a path.
    """
    try:
        with _opened(path) as file:
            ending = Path(path_of(path)).suffix.lower()
            if ending in COLUMN_ENDINGS:
                yield from _lines(path, _rows(path, ending, file, columns), columns)
            elif columns.named:
                raise InputError(
                    f"{path}: has no column {columns.named[0]!r}, as plain lists have none, expected "
                    f"{' or '.join(COLUMN_ENDINGS)} for it. Leave it out."
                )
            elif columns.kind == "texts":
                yield from (Line(None, text, ()) for text in _plain(file, "\n"))
            else:
                yield from (Line(None, name, ()) for name in _names(file) if name)
    except (OSError, csv.Error) as exc:
        raise InputError(
            path,
            f"cannot be read ({exc})",
            f"a list of {columns.kind}",
            "Check the file.",
        ) from exc


@contextmanager
def _opened(path: str) -> Generator[TextIO]:
    if path == STDIN:
        sys.stdin.reconfigure(encoding="utf-8-sig", errors="surrogateescape", newline="")  # type: ignore[union-attr]
        yield sys.stdin
        return
    with opened(path) as binary:
        peekable = io.BufferedReader(cast("io.RawIOBase", binary))
        if peekable.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            raise InputError(
                path,
                "found UTF-16",
                "UTF-8",
                "Save it as that.",
            )
        with io.TextIOWrapper(peekable, "utf-8-sig", "surrogateescape", "") as file:
            yield file


def _names(file: TextIO) -> Iterator[str]:
    begin = file.read(PEEKED_CHARACTERS)
    return _plain(file, "\0" if "\0" in begin else "\n", begin)


def _plain(file: TextIO, end: str, begin: str = "") -> Iterator[str]:
    """What stands before each `end`, and behind the last one, unless that is nothing."""
    tail = ""
    while begin := begin or file.read(PEEKED_CHARACTERS):
        *lines, tail = (tail + begin).split(end)
        yield from (line.removesuffix("\r") if end == "\n" else line for line in lines)
        begin = ""
    if tail:
        yield tail.removesuffix("\r") if end == "\n" else tail


def _rows(path: str, ending: str, file: TextIO, columns: Columns) -> Iterator[dict[str, Any]]:
    if ending in (".csv", ".tsv"):
        csv.field_size_limit(MAX_FIELD)
        reader = csv.DictReader(file, delimiter="\t" if ending == ".tsv" else ",")
        head = list(reader.fieldnames or ())
        for name in columns.named:
            if head.count(name) != 1:
                found = f"has {head.count(name)} columns {name!r}" if name in head else f"has no column {name!r}"
                raise InputError(f"{path}: {found} among {', '.join(head)}, expected one. Name another, or rename it.")
        yield from reader
        return
    for number, line in enumerate(file, 1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as exc:
                raise InputError(
                    path,
                    f"line {number} is no JSON ({exc})",
                    "an object",
                    "Repair it.",
                ) from exc
            if not isinstance(row, dict):
                raise InputError(
                    path,
                    f"line {number} is {type(row).__name__}",
                    "an object",
                    "Repair it.",
                )
            yield row


def _lines(path: str, rows: Iterable[dict[str, Any]], columns: Columns) -> Iterator[Line]:
    entry = columns.entry
    taken = [name for name, _ in columns.taken]
    texts = columns.kind == "texts"
    missing = {*taken, *([entry] if texts and entry else [])}  # of objects not all have all; a text may lack
    required = [name for name in (None if texts else entry, columns.id) if name]
    for number, row in enumerate(rows, 1):
        if entry is None:
            entry = usual_column(path, row, USUAL_TEXTS if texts else USUAL_COLUMNS)
            required += [] if texts else [entry]
        missing -= row.keys()
        for name in required:
            if not isinstance(row.get(name), str) or not row[name]:
                raise InputError(
                    f"{path}: row {number} has {row.get(name)!r} in column {name!r}, expected a text; its columns are "
                    f"{', '.join(map(str, row))}. Name another with --column or --id-column, or repair the row."
                )
        found = row.get(entry)
        values = tuple(_told(row.get(name), is_text=name == columns.text) for name in taken)
        yield Line(row[columns.id] if columns.id else None, found if isinstance(found, str) else None, values)
    if missing:
        raise InputError(
            path,
            f"none of its rows has a column {sorted(missing)[0]!r}",
            "one",
            "Name one that is there.",
        )


def _told(value: Any, *, is_text: bool) -> str | None:
    """A value to keep as text, of NDJSON what is no text as its JSON; what is to be embedded must be a text."""
    return value if value is None or isinstance(value, str) else None if is_text else json.dumps(value)


def usual_column(path: str, names: Iterable[str], usual: Container[str] = USUAL_COLUMNS) -> str:
    """The one column with a usual name. Raises: InputError where there is none, or several."""
    found = [name for name in names if str(name).lower() in usual]
    if len(found) != 1:
        wanted = "name images" if usual is USUAL_COLUMNS else "be the texts"
        told = f"{len(found)} columns that may {wanted}" if found else f"no column that seems to {wanted}"
        raise InputError(f"{path}: has {told} among {', '.join(map(str, names))}, expected one. Name it with --column.")
    return found[0]


def resolved(name: str, root: str) -> str:
    """Where a name of a list leads: a URI and an absolute path as they are, others below `root`."""
    return name if "://" in name else os.path.join(root, name)  # noqa: PTH118  strings: ten million paths
