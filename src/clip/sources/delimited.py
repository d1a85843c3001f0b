"""Read CSV and TSV strictly: each row of the file becomes a row with a field for each column, or a fault.

Rows are found twice. A scanner of quotes and line ends cuts the file into the texts of rows, and knows where each is.
Python's csv, with strict quoting, splits the text of a row, and must use up exactly this text. So no row can be lost in
another one without a word.

A quote may swallow the lines behind it, where captions begin with one and were written as they are. The list is refused
where a quoted text of several lines does not end, ends in the middle of a field, or holds lines that look like rows.
"""

from __future__ import annotations

import csv
import re
from typing import TYPE_CHECKING, Literal

from ..errors import InputError
from .columns import check_names, find_entry_column, list_usual_columns
from .text_file import ENDS, MAX_LINE, TextLine, make_line_error

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ..jobs.options import Columns

DELIMITERS = {".csv": ",", ".tsv": "\t"}
RECOGNISED = (",", "\t", ";")  # by the head; programs write ; where the comma is the decimal mark
NAMES_OF = {"\t": "a tab"}
REMEDY = 'Repair it, or pass `columns.quoting="none"` if quotes are plain characters there.'
MAX_FORM = 1000  # characters of a name or an address
STANDARD = ' Pass `columns.quoting="standard"` if it is as it should be.'
# What tells a row from a line of a text: these values have a form that the same column of another row has too.
FORMS = (
    re.compile(r"\w+://\S+"),
    re.compile(r".*\S\.\w{1,5}"),  # a file's name
    re.compile(r"[-+\d.,:/ ]*\d[-+\d.,:/ ]*"),
    re.compile(r"(?=\S*\d)\S+"),
)


# Plain tuples, as there are millions: the number of a row's first line, its fields or lines, and what is wrong with it.
Row = tuple[int, list[str], InputError | None]


def read_rows(
    path: str, ending: str, lines: Iterator[TextLine], columns: Columns
) -> tuple[list[str], str, Iterator[Row]]:
    """Read the head of a list; return the names of its columns, the name of the entries' column, and the other rows.

    Raises:  InputError for a list whose columns or whose form are in doubt.
    """
    number, first, fault = next((line for line in lines if line[1].strip(ENDS) or line[2]), (0, "", None))
    if fault:
        raise fault.about(path)
    if not first:
        raise InputError(path, "holds nothing", "a line that names the columns", "Check the file.")
    delimiter = columns.delimiter_character or _recognise_delimiter(path, first, DELIMITERS[ending], columns)
    head = _split(first, delimiter, columns)
    if head is None:
        found = f"line {number}, which names the columns, has a quote that does not close"
        raise InputError(path, found, "one that does", REMEDY)
    check_names(path, head, columns)
    entry = find_entry_column(path, head, columns)
    return head, entry, _parse_rows(path, lines, delimiter, head, entry, columns)


def _split(text: str, delimiter: str, columns: Columns) -> list[str] | None:
    """Return the fields of one line; None where a quote does not close."""
    try:
        return next(csv.reader([text], delimiter=delimiter, strict=True, quoting=_get_quoting(columns)))
    except csv.Error:
        return None


def _get_quoting(columns: Columns) -> Literal[0, 3]:
    return csv.QUOTE_NONE if columns.quoting == "none" else csv.QUOTE_MINIMAL


def _recognise_delimiter(path: str, head: str, usual: str, columns: Columns) -> str:
    """Return the character that splits a head into columns that are asked for; the usual one where none does."""
    heads = {character: _split(head, character, columns) or [] for character in RECOGNISED}

    def fits(names: list[str]) -> bool:
        named = set(columns.named) <= set(names)
        return len(names) > 1 and named and bool(columns.entry or list_usual_columns(names, columns))

    fitting = [character for character, names in heads.items() if fits(names)]
    if len(fitting) > 1 and usual not in fitting:
        found = f"line 1 may be split at {' or at '.join(NAMES_OF.get(one, repr(one)) for one in fitting)}"
        raise InputError(path, found, "one of them", "Pass it as `columns.delimiter`.")
    if usual in fitting or (not fitting and len(heads[usual]) != 1):
        return usual
    # None has the columns that are asked for: the one that splits most is named in what the user is told.
    return fitting[0] if fitting else max((usual, *RECOGNISED), key=lambda character: len(heads[character]))


def _parse_rows(
    path: str, lines: Iterator[TextLine], delimiter: str, head: list[str], entry: str, columns: Columns
) -> Iterator[Row]:
    csv.field_size_limit(MAX_LINE)
    box: list[str] = []  # the text of one row: a parser that takes another one at the same time finds nothing
    parser = csv.reader(iter(box.pop, None), delimiter=delimiter, strict=True, quoting=_get_quoting(columns))
    quoted = columns.quoting != "none"
    for number, texts, fault in _scan_rows(path, lines, delimiter) if quoted else _take_lines(lines):
        if fault:
            yield number, [], fault
            continue
        box[:] = ["".join(texts)]
        try:
            row = _check_fields(number, next(parser), head, delimiter)
        except (csv.Error, IndexError) as exc:
            reason = "" if isinstance(exc, IndexError) else f" ({exc})"
            row = number, [], make_line_error(number, f"is not split as its quotes say{reason}", "a row", REMEDY)
        if len(texts) > 1:
            if row[2]:
                raise _make_swallow_error(
                    path, number, f"and goes on to line {number + len(texts) - 1}, no row of the list"
                )
            if columns.quoting == "auto":
                if columns.kind != "texts" and set(row[1][head.index(entry)]) & set(ENDS):
                    raise _make_swallow_error(path, number, f"in column {entry!r} over several lines", STANDARD)
                _check_swallowed(path, number, texts, row[1], delimiter)
        yield row


def _check_fields(number: int, fields: list[str], head: list[str], delimiter: str) -> Row:
    """Return a row, with a fault where it does not fit the names of the columns."""
    if fields == head and len(head) > 1:
        remedy = "Leave it out: it was another file's, perhaps."
        return number, [], make_line_error(number, "names the columns again", "a row", remedy)
    if len(fields) == len(head):
        return number, fields, None
    named = NAMES_OF.get(delimiter, repr(delimiter))
    remedy = f"Put quotes round texts with {named} or a quote in them, or pass `columns.delimiter`."
    found = f"has {len(fields)} field{'s' if len(fields) != 1 else ''}"
    return number, [], make_line_error(number, found, f"{len(head)}, as in the first line", remedy)


def _take_lines(lines: Iterable[TextLine]) -> Iterator[Row]:
    for number, text, fault in lines:
        if fault or text.strip(ENDS):
            yield number, [text], fault


def _scan_rows(path: str, lines: Iterable[TextLine], delimiter: str) -> Iterator[Row]:
    """Cut lines into rows: a row goes on over the end of a line inside quotes. Lines without anything are no rows.

    Raises:  InputError for quotes that swallow lines.
    """
    opened: list[str] = []
    start = length = 0
    for number, text, fault in lines:
        if not opened:
            if fault or (text.strip(ENDS) and '"' not in text):
                yield number, [text], fault
                continue
            start, length = number, 0
        elif fault:
            raise _make_swallow_error(path, start, f"and {fault.found}")
        state = _find_state(text, delimiter, is_open=bool(opened)) if '"' in text or opened else "closed"
        opened.append(text)
        length += len(text)
        if state == "damaged" and len(opened) > 1:
            raise _make_swallow_error(
                path, start, f"and is followed by other characters where it closes, line {number}"
            )
        if length > MAX_LINE and state == "open":
            raise _make_swallow_error(path, start, f"and does not close in {MAX_LINE:,} characters")
        if state != "open":
            if text.strip(ENDS) or len(opened) > 1:
                yield start, opened, None
            opened = []
    if opened:
        raise _make_swallow_error(path, start, "and does not close before the end")


def _find_state(text: str, delimiter: str, *, is_open: bool) -> str:
    """Return whether a quote is open at the end of a line, all are closed, or other characters follow a closing one."""
    place, end = 0, len(text.rstrip(ENDS))
    while True:
        if not is_open:
            at_start = place == 0 and text.startswith('"')
            opening = 0 if at_start else text.find(delimiter + '"', place) + len(delimiter)
            if not at_start and opening < len(delimiter):
                return "closed"
            place, is_open = opening + 1, True
        closing = text.find('"', place)
        if closing < 0:
            return "open"
        if text.startswith('""', closing):
            place = closing + 2
            continue
        place, is_open = closing + 1, False
        if place >= end:
            return "closed"
        if not text.startswith(delimiter, place):
            return "damaged"


def _check_swallowed(path: str, number: int, lines: list[str], fields: list[str], delimiter: str) -> None:
    """Raise InputError where a line inside a quoted text looks like a row itself.

    It does if it has no fewer fields than the row, and its values have the forms that those of the row have: names of
    files, addresses, numbers. Where the row has none of these, a line with as many tabs is taken for a row.
    """
    width = len(fields)
    forms = {place: form for place, value in enumerate(fields) if (form := _find_form(value)) is not None}
    if not forms and (delimiter != "\t" or width == 1):
        return
    for offset, line in enumerate(lines[1:], 1):
        others = line.rstrip(ENDS).split(delimiter)
        # Counted from both ends, as a text between them may have delimiters in it.
        if len(others) >= width and all(
            form in (_find_form(others[place]), _find_form(others[place - width])) for place, form in forms.items()
        ):
            found = f"over lines that look like rows, as line {number + offset}"
            raise _make_swallow_error(path, number, found, STANDARD)


def _find_form(value: str) -> tuple[int, bool] | None:
    """Return which of the forms a value has, and whether it has spaces; None for a text."""
    value = value.strip('"')
    if len(value) > MAX_FORM or "\n" in value or "\r" in value:
        return None
    return next(((number, " " in value) for number, form in enumerate(FORMS) if form.fullmatch(value)), None)


def _make_swallow_error(path: str, start: int, found: str, more: str = "") -> InputError:
    return InputError(path, f"a quote opens in line {start} {found}", "a quote that closes its field", REMEDY + more)
