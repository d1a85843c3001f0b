"""Read Parquet files that hold images, name images, or hold texts.

A column of bytes holds images, a column of texts names them. In a struct with "bytes" and "path", as datasets of
Hugging Face have, each row does one or the other.
"""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import InputError
from ..records import TEXT, ContainerPart, Failure, Item, Member, utf8_path
from .files import open_file, stat_file, stat_here
from .lists import USUAL_COLUMNS, USUAL_TEXTS, Line, check_names, find_usual_column, locate, make_item
from .members import CHANGED, PartReader, Selection

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from ..jobs.options import Columns

ROWS_AT_A_TIME = 64  # of images in the file
NAMES_AT_A_TIME = 4096
COLUMN_BUFFER_BYTES = 1_000_000  # read of a column at a time; without it the whole row group is in memory
DAMAGE = (OSError, pa.ArrowException, EOFError, ValueError)
MISSING = ("one", "Leave it out.")  # expected of a row, and the remedy


@dataclass(frozen=True)
class Layout:
    """Where the images of a file are."""

    column: str
    holds: bool  # the images' bytes, rather than their paths
    struct: bool
    groups: tuple[int, ...]  # rows of each row group
    types: tuple[str, ...]  # of the copied columns, in an output


class ParquetTable:
    """A Parquet file, cut into parts between its row groups; a list if its column holds texts."""

    endings: tuple[str, ...] = (".parquet", ".pq")

    def parts(self, path: str, own_id: str, shard_size: int, selection: Selection) -> Iterator[ContainerPart | Item]:
        """List the parts, of whole row groups, with their numbers of rows; or the entries of a list.

        Raises:  InputError for a file that is damaged, or whose columns are of other names or types.
        """
        columns = selection.columns
        status = stat_file(path)  # before the layout, so that a later change shows
        layout = read_layout(path, columns)
        if not layout.holds:
            for number, line in enumerate(_read_lines(path, layout, columns)):
                yield make_item(line, path, own_id, number, columns, selection.root)
            return
        identity = json.dumps([layout.column, columns.id, columns.taken, layout.struct and selection.root])
        start = rows = 0
        for index, group_rows in enumerate(layout.groups):
            if rows and rows + group_rows > shard_size:
                yield ContainerPart(own_id, path, *status, start, index, rows, columns=identity)
                start, rows = index, 0
            rows += group_rows
        if rows:
            yield ContainerPart(own_id, path, *status, start, len(layout.groups), rows, columns=identity)

    def members(self, file: BinaryIO, part: ContainerPart, reader: PartReader) -> Generator[Member | Failure | Item]:
        """Read the images of a part's row groups, in order; an Item for a row that only names its image.

        The failure of the rest stands for the rows from the first one that cannot be decoded: for all of them where the
        file is another than was listed. Nothing is ignored.
        """
        columns = reader.selection.columns
        try:
            layout = read_layout(part.path, columns, file)
            groups = range(part.start, len(layout.groups) if part.stop is None else part.stop)
            expected = part.members if part.members is not None else sum(layout.groups[part.start : part.stop])
            if sum(layout.groups[part.start : part.stop]) != expected:
                raise OSError(CHANGED)
            number = sum(layout.groups[: part.start])
            end = number + expected
            with pq.ParquetFile(file, buffer_size=COLUMN_BUFFER_BYTES, pre_buffer=False) as table:
                names = _list_columns(layout, columns)
                for batch in table.iter_batches(ROWS_AT_A_TIME, row_groups=list(groups), columns=names):
                    values = batch.column(layout.column).to_pylist()
                    rows = zip(_read_ids(batch, columns), values, _read_copied(batch, columns), strict=True)
                    for row in rows:
                        yield _read_row(number, *row, part, layout, reader)
                        number += 1
            if number < end:
                raise OSError(f"{end - number:,} rows are missing")
        except DAMAGE as exc:
            yield reader.fail_rest(exc)

    def read_types(self, path: str, columns: Columns) -> tuple[str, ...]:
        """Return the types of the copied columns in an output: numbers and booleans keep theirs, others are text.

        Raises:  InputError for a file or a column that cannot be used.
        """
        return read_layout(path, columns).types


def read_layout(path: str, columns: Columns, file: BinaryIO | None = None) -> Layout:
    """Read a file's schema; the `file` may be open already. Raises: InputError for a file that cannot be used."""
    try:
        with nullcontext(file) if file else open_file(path) as source, pq.ParquetFile(source) as table:
            schema = table.schema_arrow
            groups = tuple(table.metadata.row_group(index).num_rows for index in range(table.metadata.num_row_groups))
    except DAMAGE as exc:
        raise InputError(path, f"cannot be read ({exc})", "Parquet", "Check the file.") from exc
    check_names(path, schema.names, columns)
    texts = columns.kind == "texts"
    holding = [field.name for field in schema if _holds_images(field.type) and not texts]
    usual = USUAL_TEXTS if texts else USUAL_COLUMNS
    column = columns.entry or (holding[0] if len(holding) == 1 else find_usual_column(path, schema.names, usual))
    kind = schema.field(column).type
    if not (_is_text(kind) or (_holds_images(kind) and not texts)):
        wanted = "texts" if texts else "bytes, texts, or a struct of bytes and path"
        raise InputError(path, f"column {column!r} is of {kind}", wanted, "Name another with `columns.entry`.")
    if columns.text and not _is_text(text := schema.field(columns.text).type):
        raise InputError(path, f"column {columns.text!r} is of {text}", "texts", "Name another with `columns.text`.")
    types = tuple(_get_output_type(path, schema.field(name)) for name in columns.keep)
    for name, own, wanted in zip(columns.keep, types, columns.types or types, strict=True):
        if not _fits(own, wanted):
            remedy = "Name this one first, or leave the column out."
            raise InputError(path, f"column {name!r} is of {own}", f"{wanted} as in the first table", remedy)
    return Layout(column, _holds_images(kind), pa.types.is_struct(kind), groups, types)


def _get_output_type(path: str, field: pa.Field) -> str:
    """Return the type of a copied column: its own for numbers and booleans, else text.

    Raises:  InputError for a type that cannot be written as text.
    """
    kind = field.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        return str(kind)
    has_text = pa.types.is_temporal(kind) or pa.types.is_decimal(kind) or pa.types.is_null(kind)
    if not (_is_text(kind) or (has_text and not pa.types.is_duration(kind) and not pa.types.is_interval(kind))):
        expected = "texts, numbers or times to keep"
        raise InputError(path, f"column {field.name!r} is of {kind}", expected, "Leave it out.")
    return TEXT


def _fits(own: str, wanted: str) -> bool:
    """Whether each value of one type is also a value of the other."""
    if own == wanted or wanted == TEXT:
        return True
    numbers = [pa.type_for_alias(word).to_pandas_dtype() for word in (own, wanted) if word != TEXT]
    return len(numbers) == 2 and np.can_cast(*numbers)


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return "bytes" in {kind.field(index).name for index in range(kind.num_fields)}
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _to_texts(column: pa.Array) -> list[str | None]:
    """Return the values as texts; bytes that are not UTF-8 become surrogates, as in lists."""
    if not _is_text(column.type):
        return column.cast(pa.string()).to_pylist()
    plain = column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
    encoded: list[bytes | None] = plain.cast(pa.binary()).to_pylist()
    return [None if value is None else value.decode("utf-8", "surrogateescape") for value in encoded]


def _read_lines(path: str, layout: Layout, columns: Columns) -> Iterator[Line]:
    """Read the rows of a file that names images, or holds texts.

    Raises:  InputError for an image without a path, a row without an id, and for a damaged file.
    """
    number = 0
    names = _list_columns(layout, columns)
    try:
        with open_file(path) as source, pq.ParquetFile(source) as file:
            for batch in file.iter_batches(NAMES_AT_A_TIME, columns=names):
                entries = _to_texts(batch.column(layout.column))
                for own_id, entry, values in zip(
                    _read_ids(batch, columns), entries, _read_copied(batch, columns), strict=True
                ):
                    if (columns.id and own_id is None) or (entry is None and columns.kind != "texts"):
                        raise InputError(path, f"row {number} has no path or id", "both", "Leave the row out.")
                    yield Line(own_id, entry, values)
                    number += 1
    except (OSError, pa.ArrowException) as exc:
        raise InputError(path, f"cannot be read ({exc})", "Parquet", "Check the file.") from exc


def _list_columns(layout: Layout, columns: Columns) -> list[str]:
    return list(dict.fromkeys([layout.column, *([columns.id] if columns.id else []), *dict(columns.taken)]))


def _read_ids(batch: pa.RecordBatch, columns: Columns) -> list[str | None]:
    return _to_texts(batch.column(columns.id)) if columns.id else [None] * batch.num_rows


def _read_copied(batch: pa.RecordBatch, columns: Columns) -> list[tuple[str | None, ...]]:
    """Return the values of the copied columns, row by row, as texts of the types that the output has."""
    copied: list[list[str | None]] = []
    for name, kind in columns.taken:
        column = batch.column(name)
        # Unchecked for overflow: `read_layout` compared the types; only integers beyond 2 ** 53 as floats are rounded.
        copied.append(_to_texts(column if kind == TEXT else column.cast(pa.type_for_alias(kind), safe=False)))
    return list(zip(*copied, strict=True)) if copied else [()] * batch.num_rows


def _read_row(
    number: int,
    given_id: str | None,
    value: Any,
    values: tuple[str | None, ...],
    part: ContainerPart,
    layout: Layout,
    reader: PartReader,
) -> Member | Failure | Item:
    columns = reader.selection.columns
    own_id = reader.make_unique(f"{part.name}!{number}" if given_id is None else utf8_path(given_id))
    if columns.id and given_id is None:
        return reader.fail(own_id, InputError(own_id, f"its row has no id in column {columns.id!r}", *MISSING))
    data, name = ((value or {}).get("bytes"), (value or {}).get("path")) if layout.struct else (value, None)
    if data is None and isinstance(name, str) and name:
        location = locate(name, reader.selection.root)
        return Item(own_id, location, *stat_here(location), values)
    if isinstance(data, bytes):
        return reader.make_member(own_id, data, values)
    return reader.fail(own_id, InputError(own_id, f"its row has no image in column {layout.column!r}", *MISSING))
