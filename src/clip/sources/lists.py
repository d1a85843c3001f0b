"""Read lists of images or texts: plain lines, CSV, TSV, NDJSON.

A plain list has a path or URL per line, or between NULs, as `find -print0` writes. In a plain list of texts every line
is a text, also an empty one. The other formats have named columns; the images or texts are in the column that the user
names, or in the only one with a usual name.

Each row becomes an entry or a failure row that names its line. A list whose form is in doubt is refused as a whole.
"""

from __future__ import annotations

import json
import os
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from ..errors import InputError
from ..records import STDIN, Failure, Item, as_utf8, join_root, utf8_path
from .columns import find_entry_column, is_id, list_usual_columns, to_text
from .delimited import DELIMITERS, read_rows
from .files import stat_here
from .remote.client import get_local_path, get_path
from .text_file import COMPRESSED, TextLine, make_line_error, open_text, read_text_lines, split_ending

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ..jobs.options import Columns
    from .members import Selection

PLAIN_ENDINGS = (".txt", ".lst", ".list")
COLUMN_ENDINGS = (*DELIMITERS, ".ndjson", ".jsonl")
PLAIN_LIST_ENDINGS = PLAIN_ENDINGS + COLUMN_ENDINGS
LIST_ENDINGS = PLAIN_LIST_ENDINGS + tuple(ending + more for ending in PLAIN_LIST_ENDINGS for more in COMPRESSED)
FIRST_LINES = 10  # of NDJSON: where none is an object, the file is something else


class Line(NamedTuple):
    """An entry of a list or a table; with a `fault` it becomes a failure row."""

    mark: str = ""  # with a fault: where it is, as it follows the file's name, ":7" in a list and "!5" in a table
    id: str | None = None  # None without an id column
    entry: str | None = None  # the path or URL of an image, or a text; None where a text is missing
    values: tuple[str | None, ...] = ()  # of the columns that are copied
    fault: InputError | None = None


def is_list(path: str) -> bool:
    """Whether a file is a list by its name; "-", standard input, is one."""
    return path == STDIN or get_path(path).lower().endswith(LIST_ENDINGS)


def read_lines(path: str, columns: Columns) -> Iterator[Line]:
    """Read the entries of a list, in order; "-" is a plain list on standard input.

    Raises:  InputError for a list that cannot be read, whose form is in doubt, or without a column that is asked for.
    """
    try:
        with open_text(path) as (file, begin):
            ending = split_ending(path)[0]
            if ending in DELIMITERS:
                yield from _read_delimited(path, ending, file, columns)
            elif ending in COLUMN_ENDINGS:
                yield from _read_objects(path, file, columns)
            elif columns.named:
                found = f"has no column {columns.named[0]!r}, as plain lists have none"
                raise InputError(path, found, " or ".join(COLUMN_ENDINGS), "Leave the column out.")
            else:
                yield from _read_plain(file, begin, is_texts=columns.kind == "texts")
    except OSError as exc:
        raise InputError(path, f"cannot be read ({exc})", f"a list of {columns.kind}", "Check the file.") from exc


def make_item(line: Line, path: str, own_id: str, number: int, selection: Selection) -> Item | Failure:
    """Return the image that a line of a list names, or the text of line `number`, whose file is the list."""
    columns = selection.columns
    if line.fault:
        return Failure.of(Item(f"{own_id}{line.mark}", path, 0), "read", line.fault)
    if columns.kind == "texts":
        size_bytes = len((line.entry or "").encode("utf-8", "surrogatepass"))
        return Item(utf8_path(line.id or f"{own_id}!{number}"), path, size_bytes, values=(line.entry, *line.values))
    location = _make_openable(locate(line.entry or "", selection.root))
    status = stat_here(join_root(selection.base, location))
    return Item(utf8_path(line.id or line.entry or ""), location, *status, line.values)


def locate(name: str, root: str) -> str:
    """Return where a name in a list leads: a URL and an absolute path stay, others start at `root`."""
    if ":" not in name:
        return os.path.join(root, name)  # noqa: PTH118  strings: ten million paths
    return get_local_path(name) or (name if "://" in name else os.path.join(root, name))  # noqa: PTH118


def _make_openable(path: str) -> str:
    """Return a path that the system accepts; half of a surrogate pair is spelt out, and names no file."""
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        return as_utf8(path)
    return path


def _read_plain(file: TextIO, begin: str, *, is_texts: bool) -> Iterator[Line]:
    # Names between NULs may hold the ends of lines; a list of lines with a NUL in one is damaged there.
    if not is_texts and begin.count("\0") > begin.count("\n") + begin.count("\r"):
        yield from (Line("", None, name) for name in _split_at_nuls(file) if name)
        return
    before = ""
    for number, text, fault in read_text_lines(file):
        entry = text.removesuffix("\n").removesuffix("\r")
        # An empty line between CR and CRLF is none: programs that translate the ends of lines twice write \r\r\n.
        if entry or fault or (is_texts and not (text == "\r\n" and before.endswith("\r"))):
            yield Line(f":{number}" if fault else "", None, entry, (), fault)
        before = text


def _split_at_nuls(file: TextIO) -> Iterator[str]:
    parts: list[str] = []  # of the name that has not ended
    while block := file.read(65_536):
        first, *others = block.split("\0")
        parts.append(first)
        if others:
            yield "".join(parts)
            yield from others[:-1]
            parts = others[-1:]
    yield "".join(parts)


def _read_delimited(path: str, ending: str, file: TextIO, columns: Columns) -> Iterator[Line]:
    head, entry, rows = read_rows(path, ending, read_text_lines(file), columns)
    place, id_place = head.index(entry), head.index(columns.id) if columns.id else None
    copied = [head.index(name) for name, _ in columns.taken]
    for number, fields, fault in rows:
        if fault:
            yield Line(f":{number}", fault=fault)
        elif not fields[place] and columns.kind != "texts":
            yield _make_empty(f":{number}", entry, "path", "")
        elif id_place is not None and not fields[id_place]:
            yield _make_empty(f":{number}", columns.id, "id", "")
        else:
            own_id = None if id_place is None else fields[id_place]
            yield Line("", own_id, fields[place], tuple(fields[at] for at in copied))


def _make_empty(mark: str, column: str | None, what: str, value: Any) -> Line:
    """Return the line of a row that has no path, or no id."""
    where = f"line {mark[1:]}"
    found = f"{where} has {value!r} in column {column!r}"
    return Line(mark, fault=InputError(where, found, f"its {what}", "Repair the row, or leave it out."))


def _read_objects(path: str, file: TextIO, columns: Columns) -> Iterator[Line]:
    lines = (line for line in read_text_lines(file) if line[1].strip() or line[2])
    first = [_parse_object(line) for line in islice(lines, FIRST_LINES)]
    objects = [found for _, found in first if isinstance(found, dict)]
    if first and not objects:
        told = [found.found for _, found in first if isinstance(found, InputError)]
        raise InputError(path, told[0], "an object in each line", "Check that it is NDJSON.")
    entry = columns.entry
    if objects and not entry:
        with_one = next((one for one in objects if list_usual_columns(one, columns)), objects[0])
        entry = find_entry_column(path, list(with_one), columns)
    copied = [name for name, _ in columns.taken]
    missing = {name for name in (columns.entry, columns.id, *copied) if name}  # not every object has all
    for number, row in chain(first, map(_parse_object, lines)):
        if isinstance(row, InputError):
            yield Line(f":{number}", fault=row)
        else:
            missing -= row.keys()
            yield _make_line(f":{number}", row, entry or "", copied, columns)
    if missing:
        raise InputError(path, f"none of its rows has a column {sorted(missing)[0]!r}", "one", "Name another column.")


def _parse_object(line: TextLine) -> tuple[int, dict[str, Any] | InputError]:
    """Return a line's number, and its object or what is wrong with it."""
    number, text, fault = line
    if fault:
        return number, fault
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as exc:
        return number, make_line_error(number, f"is not JSON ({exc})", "an object")
    if not isinstance(row, dict):
        return number, make_line_error(number, f"is {type(row).__name__}", "an object")
    return number, row


def _make_line(mark: str, row: dict[str, Any], entry: str, copied: Iterable[str], columns: Columns) -> Line:
    value = row.get(entry)
    if columns.kind != "texts" and not (isinstance(value, str) and value):
        return _make_empty(mark, entry, "path", value)
    own_id = row.get(columns.id) if columns.id else None
    if columns.id and not is_id(own_id):
        return _make_empty(mark, columns.id, "id", own_id)
    values = tuple(to_text(row.get(name), is_text=name == columns.text) for name in copied)
    return Line(mark, str(own_id) if columns.id else None, value if isinstance(value, str) else None, values)
