"""Parquet files that hold pictures, or name them: columns, row groups, rows. Knows nothing about models.

A column of bytes holds pictures, one of texts names them, and a struct with "bytes" and "path", as datasets of Hugging
Face have, does either, row by row.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from clip.errors import InputError
from clip.items import Failure, Item, Member
from clip.lists import usual_column
from clip.remote import opened

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from clip.archives import Members
    from clip.items import Pack

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


def read_layout(path: str, column: str | None, id_column: str | None, already: BinaryIO | None = None) -> Layout:
    """Look at a file's schema; it may be open already. Raises: InputError for what cannot be used."""
    try:
        with nullcontext(already) if already else opened(path) as source, pq.ParquetFile(source) as file:
            schema = file.schema_arrow
            groups = tuple(file.metadata.row_group(index).num_rows for index in range(file.metadata.num_row_groups))
    except DAMAGE as exc:
        raise InputError(f"{path}: cannot be read ({exc}), expected Parquet. Check the file.") from exc
    for name in filter(None, (column, id_column)):
        if name not in schema.names:
            raise InputError(f"{path}: has no column {name!r} among {', '.join(schema.names)}. Name one of these.")
    holding = [field.name for field in schema if _holds(field.type)]
    found = column or (holding[0] if len(holding) == 1 else usual_column(path, schema.names))
    kind = schema.field(found).type
    if not (_holds(kind) or _names(kind)):
        raise InputError(
            f"{path}: column {found!r} is of {kind}, expected bytes, texts, or a struct of bytes and path. "
            "Name another with --column."
        )
    return Layout(found, _holds(kind), pa.types.is_struct(kind), groups)


def _holds(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return "bytes" in {kind.field(index).name for index in range(kind.num_fields)}
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _names(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def names_in_table(path: str, column: str, id_column: str | None) -> Iterator[tuple[str, str]]:
    """The id and the path or URI in each row. Raises: InputError for a row without, and for a damaged file."""
    try:
        number = 0
        with opened(path) as source, pq.ParquetFile(source) as file:
            for batch in file.iter_batches(NAMES_AT_A_TIME, columns=list({column, id_column or column})):
                for name, own_id in zip(batch.column(column), batch.column(id_column or column), strict=True):
                    if not name.is_valid or not own_id.is_valid:
                        raise InputError(f"{path}: row {number} has no path or id, expected both. Leave it out.")
                    yield str(own_id.as_py()), name.as_py()
                    number += 1
    except (OSError, pa.ArrowException) as exc:
        raise InputError(f"{path}: cannot be read ({exc}), expected Parquet. Check the file.") from exc


def table_members(
    file: BinaryIO, pack: Pack, layout: Layout, id_column: str | None, members: Members
) -> Generator[Member | Failure | Item]:
    """The pictures in a part of a file's row groups; an Item for a row that only names its picture."""
    try:
        with pq.ParquetFile(file, buffer_size=COLUMN_BUFFER_BYTES, pre_buffer=False) as table:
            groups = range(pack.start, len(layout.groups) if pack.stop is None else pack.stop)
            number = sum(layout.groups[: pack.start])
            columns = [layout.column, *([id_column] if id_column else [])]
            for batch in table.iter_batches(ROWS_AT_A_TIME, row_groups=list(groups), columns=columns):
                for row in batch.to_pylist():
                    own_id = members.unique(str(row[id_column]) if id_column else f"{pack.name}!{number}")
                    yield _outcome(row[layout.column], own_id, pack, layout, members)
                    number += 1
    except DAMAGE as exc:
        yield members.rest(exc)


def _outcome(value: Any, own_id: str, pack: Pack, layout: Layout, members: Members) -> Member | Failure | Item:
    data, name = ((value or {}).get("bytes"), (value or {}).get("path")) if layout.struct else (value, None)
    if data is None and name:
        return Item(own_id, name, 0)
    if data is None:
        message = f"its row has no picture in column {layout.column!r}, expected one. Leave it out."
        return Failure(own_id, pack.path, "read", "InputError", message)
    if len(data) > members.max_bytes:
        return members.too_large(own_id, len(data))
    return Member(Item(own_id, pack.path, len(data), pack.modified_ns), data)
