"""Parquet files that hold pictures, name them, or hold texts: columns, row groups, rows. Knows nothing about models.

A column of bytes holds pictures, one of texts names them, and a struct with "bytes" and "path", as datasets of Hugging
Face have, does either, row by row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from clip.errors import InputError
from clip.items import TEXT, Failure, Item, Member
from clip.lists import USUAL_COLUMNS, USUAL_TEXTS, Line, usual_column

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from clip.archives import Members
    from clip.items import Columns, Pack

PARQUET_ENDINGS = (".parquet", ".pq")
ROWS_AT_A_TIME = 64  # of pictures that a file holds
NAMES_AT_A_TIME = 4096
COLUMN_BUFFER_BYTES = 1_000_000  # read of a column at a time, or the whole row group is held
DAMAGE = (OSError, pa.ArrowException, EOFError, ValueError)


@dataclass(frozen=True)
class Layout:
    """Where the pictures of a file stand."""

    column: str
    holds: bool  # the pictures' bytes, rather than their paths
    struct: bool
    groups: tuple[int, ...]  # rows of each row group
    types: tuple[str, ...]  # that the kept columns have in an output


def read_layout(path: str, columns: Columns) -> Layout:
    """Look at a file's schema. Raises: InputError for a file or a column that cannot be used."""
    try:
        file = pq.ParquetFile(path)
        with file:
            schema = file.schema_arrow
            groups = tuple(file.metadata.row_group(index).num_rows for index in range(file.metadata.num_row_groups))
    except DAMAGE as exc:
        raise InputError(f"{path}: cannot be read ({exc}), expected Parquet. Check the file.") from exc
    for name in filter(None, (columns.entry, columns.id, columns.text, *columns.keep)):
        if name not in schema.names:
            raise InputError(f"{path}: has no column {name!r} among {', '.join(schema.names)}. Name one of these.")
    texts = columns.kind == "texts"
    holding = [field.name for field in schema if _holds(field.type) and not texts]
    usual = USUAL_TEXTS if texts else USUAL_COLUMNS
    found = columns.entry or (holding[0] if len(holding) == 1 else usual_column(path, schema.names, usual))
    for name, wanted in ((found, "texts" if texts else "bytes, texts, or a struct of bytes and path"),) + (
        ((columns.text, "texts"),) if columns.text else ()
    ):
        kind = schema.field(name).type
        if not (_names(kind) or (_holds(kind) and wanted != "texts")):
            raise InputError(
                f"{path}: column {name!r} is of {kind}, expected {wanted}. Name another with "
                f"{'--column' if name == found else '--text-column'}."
            )
    types = tuple(_type_in_output(path, schema.field(name)) for name in columns.keep)
    kind = schema.field(found).type
    return Layout(found, _holds(kind), pa.types.is_struct(kind), groups, types)


def _type_in_output(path: str, field: pa.Field) -> str:
    """The type of a kept column: its own where that is a number, true or false, a date or a time, else text.

    Raises:  InputError for one that has no text.
    """
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    try:
        pa.array([], kind).cast(pa.string())
        if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            raise pa.ArrowNotImplementedError
    except pa.ArrowException as exc:
        raise InputError(
            f"{path}: column {field.name!r} is of {field.type}, expected texts, numbers or times to keep. Leave it out."
        ) from exc
    try:
        return str(pa.type_for_alias(str(kind)))
    except ValueError:
        return TEXT


def _holds(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return "bytes" in {kind.field(index).name for index in range(kind.num_fields)}
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _names(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def lines_in_table(path: str, layout: Layout, columns: Columns) -> Iterator[Line]:
    """The rows of a file that names pictures, or is texts.

    Raises:  InputError for a picture without a path, a row without an id, and for a damaged file.
    """
    number = 0
    wanted = _wanted(layout, columns)
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(NAMES_AT_A_TIME, columns=wanted):
                entries = batch.column(layout.column).to_pylist()
                ids = batch.column(columns.id).to_pylist() if columns.id else [None] * len(entries)
                for own_id, entry, values in zip(ids, entries, _taken(batch, columns), strict=True):
                    if (columns.id and own_id is None) or (entry is None and columns.kind != "texts"):
                        raise InputError(f"{path}: row {number} has no path or id, expected both. Leave it out.")
                    yield Line(None if own_id is None else str(own_id), entry, values)
                    number += 1
    except (OSError, pa.ArrowException) as exc:
        raise InputError(f"{path}: cannot be read ({exc}), expected Parquet. Check the file.") from exc


def table_members(
    file: BinaryIO, pack: Pack, layout: Layout, columns: Columns, members: Members
) -> Generator[Member | Failure | Item]:
    """The pictures in a part of a file's row groups; an Item for a row that only names its picture."""
    try:
        with pq.ParquetFile(file, buffer_size=COLUMN_BUFFER_BYTES, pre_buffer=False) as table:
            groups = range(pack.start, len(layout.groups) if pack.stop is None else pack.stop)
            number = sum(layout.groups[: pack.start])
            wanted = _wanted(layout, columns)
            for batch in table.iter_batches(ROWS_AT_A_TIME, row_groups=list(groups), columns=wanted):
                for row, values in zip(batch.to_pylist(), _taken(batch, columns), strict=True):
                    own_id = members.unique(str(row[columns.id]) if columns.id else f"{pack.name}!{number}")
                    yield _outcome(row[layout.column], own_id, values, pack, layout, members)
                    number += 1
    except DAMAGE as exc:
        yield members.rest(exc)


def _wanted(layout: Layout, columns: Columns) -> list[str]:
    return list(dict.fromkeys([layout.column, *([columns.id] if columns.id else []), *dict(columns.taken)]))


def _taken(batch: pa.RecordBatch, columns: Columns) -> list[tuple[str | None, ...]]:
    """The values that go along, row by row, as texts of the types that the output has."""
    texts = [
        batch.column(name).cast(pa.type_for_alias(kind)).cast(pa.string()).to_pylist() for name, kind in columns.taken
    ]
    return list(zip(*texts, strict=True)) if texts else [()] * batch.num_rows


def _outcome(
    value: Any, own_id: str, values: tuple[str | None, ...], pack: Pack, layout: Layout, members: Members
) -> Member | Failure | Item:
    data, name = ((value or {}).get("bytes"), (value or {}).get("path")) if layout.struct else (value, None)
    if data is None and name:
        return Item(own_id, name, 0, values=values)
    if data is None:
        message = f"its row has no picture in column {layout.column!r}, expected one. Leave it out."
        return Failure(own_id, pack.path, "read", "InputError", message)
    if len(data) > members.max_bytes:
        return members.too_large(own_id, len(data))
    return Member(Item(own_id, pack.path, len(data), pack.modified_ns, values), data)
