"""Lists that name pictures: plain lines, CSV, TSV, NDJSON, Parquet. Knows nothing about what the names lead to.

Plain lists have a path or URI a line, or, if they hold a NUL, as of `find -print0`, between NULs. The others have named
columns; which one names the pictures is told, or is the only one with a usual name. Bytes that are no UTF-8 stay what
they are, as paths may have them.
"""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from clip.errors import InputError
from clip.remote import opened, path_of

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator

STDIN = "-"
PLAIN_ENDINGS = (".txt", ".lst", ".list")
COLUMN_ENDINGS = (".csv", ".tsv", ".ndjson", ".jsonl")
USUAL_COLUMNS = ("path", "image_path", "file_path", "filepath", "file", "filename", "file_name", "image", "url", "uri")
PEEKED_CHARACTERS = 65_536
MAX_FIELD = 10_000_000  # characters of a CSV field, as captions and base64 may stand beside the path


def names_in(path: str, column: str | None = None, id_column: str | None = None) -> Iterator[tuple[str, str]]:
    """The id and the path or URI of each picture that a list names, in its order; "-" is a plain list on stdin.

    Raises:  InputError for a list that cannot be read, a column that is not there, a line that is no JSON object.
    """
    try:
        with _opened(path) as file:
            ending = Path(path_of(path)).suffix.lower()
            if ending in COLUMN_ENDINGS:
                yield from _columns(path, _rows(path, ending, file), column, id_column)
            elif column or id_column:
                raise InputError(
                    f"{path}: has no columns, expected {' or '.join(COLUMN_ENDINGS)} for --column and --id-column. "
                    "Leave them out."
                )
            else:
                yield from ((name, name) for name in _plain(file))
    except (OSError, csv.Error) as exc:
        raise InputError(f"{path}: cannot be read ({exc}), expected a list of pictures. Check the file.") from exc


@contextmanager
def _opened(path: str) -> Generator[TextIO]:
    if path == STDIN:
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape", newline="")  # type: ignore[union-attr]
        yield sys.stdin
        return
    with opened(path) as binary, io.TextIOWrapper(binary, "utf-8-sig", "surrogateescape", "") as file:
        yield file


def _plain(file: TextIO) -> Iterator[str]:
    begin = file.read(PEEKED_CHARACTERS)
    if "\0" in begin:
        yield from _separated(begin, file)
        return
    tail = ""
    while begin:
        *lines, tail = (tail + begin).split("\n")
        yield from (line for raw in lines if (line := raw.removesuffix("\r")))
        begin = file.read(PEEKED_CHARACTERS)
    if last := tail.removesuffix("\r"):
        yield last


def _separated(begin: str, file: TextIO) -> Iterator[str]:
    tail = ""
    while begin:
        *names, tail = (tail + begin).split("\0")
        yield from filter(None, names)
        begin = file.read(PEEKED_CHARACTERS)
    if tail:
        yield tail


def _rows(path: str, ending: str, file: TextIO) -> Iterator[dict[str, Any]]:
    if ending in (".csv", ".tsv"):
        csv.field_size_limit(MAX_FIELD)
        yield from csv.DictReader(file, delimiter="\t" if ending == ".tsv" else ",")
        return
    for number, line in enumerate(file, 1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as exc:
                raise InputError(f"{path}: line {number} is no JSON ({exc}), expected an object. Repair it.") from exc
            if not isinstance(row, dict):
                raise InputError(f"{path}: line {number} is {type(row).__name__}, expected an object. Repair it.")
            yield row


def _columns(
    path: str, rows: Iterable[dict[str, Any]], column: str | None, id_column: str | None
) -> Iterator[tuple[str, str]]:
    for number, row in enumerate(rows, 1):
        column = column or usual_column(path, row)
        for name in (column, id_column or column):
            if not isinstance(row.get(name), str) or not row[name]:
                raise InputError(
                    f"{path}: row {number} has {row.get(name)!r} in column {name!r}, expected a text; its columns are "
                    f"{', '.join(map(str, row))}. Name another with --column or --id-column, or repair the row."
                )
        yield row[id_column or column], row[column]


def usual_column(path: str, names: Iterable[str]) -> str:
    """The one column with a usual name. Raises: InputError where there is none, or several."""
    found = [name for name in names if str(name).lower() in USUAL_COLUMNS]
    if len(found) != 1:
        told = f"{len(found)} columns that may name pictures" if found else "no column that seems to name pictures"
        raise InputError(f"{path}: has {told} among {', '.join(map(str, names))}, expected one. Name it with --column.")
    return found[0]


def resolved(name: str, root: str) -> str:
    """Where a name of a list leads: a URI and an absolute path as they are, others below `root`."""
    return name if "://" in name else os.path.join(root, name)  # noqa: PTH118  strings: ten million paths
