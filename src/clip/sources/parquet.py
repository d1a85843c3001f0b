"""Parquet files that hold images, name them, or hold texts: columns, row groups, rows. Knows nothing about models.

A column of bytes holds images, one of texts names them, and a struct with "bytes" and "path", as datasets of Hugging
Face have, does either, row by row.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import InputError
from ..records import TEXT, Failure, Item, Member, utf8_path
from .lists import USUAL_COLUMNS, USUAL_TEXTS, Line, usual_column
from .remote.client import opened

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from ..jobs.options import Columns
    from ..records import ContainerPart
    from .members import Members

PARQUET_ENDINGS = (".parquet", ".pq")
ROWS_AT_A_TIME = 64  # of images that a file holds
NAMES_AT_A_TIME = 4096
COLUMN_BUFFER_BYTES = 1_000_000  # read of a column at a time, or the whole row group is held
DAMAGE = (OSError, pa.ArrowException, EOFError, ValueError)


@dataclass(frozen=True)
class Layout:
    """Where the images of a file stand."""

    column: str
    holds: bool  # the images' bytes, rather than their paths
    struct: bool
    groups: tuple[int, ...]  # rows of each row group
    types: tuple[str, ...]  # that the kept columns have in an output


def read_layout(path: str, columns: Columns, already: BinaryIO | None = None) -> Layout:
    """Look at a file's schema; it may be open already. Raises: InputError for what cannot be used."""
    try:
        with nullcontext(already) if already else opened(path) as source, pq.ParquetFile(source) as file:
            schema = file.schema_arrow
            groups = tuple(file.metadata.row_group(index).num_rows for index in range(file.metadata.num_row_groups))
    except DAMAGE as exc:
        raise InputError(
            path,
            f"cannot be read ({exc})",
            "Parquet",
            "Check the file.",
        ) from exc
    for name in columns.named:
        if schema.names.count(name) != 1:
            found = f"has {schema.names.count(name)} columns" if name in schema.names else "has no column"
            raise InputError(f"{path}: {found} {name!r} among {', '.join(schema.names)}, expected one. Name another.")
    texts = columns.kind == "texts"
    holding = [field.name for field in schema if _holds(field.type) and not texts]
    usual = USUAL_TEXTS if texts else USUAL_COLUMNS
    column = columns.entry or (holding[0] if len(holding) == 1 else usual_column(path, schema.names, usual))
    kind = schema.field(column).type
    wanted = "texts" if texts else "bytes, texts, or a struct of bytes and path"
    _check_type(path, schema.field(column), wanted, _is_text(kind) or (_holds(kind) and not texts), "--column")
    if columns.text:
        text = schema.field(columns.text)
        _check_type(path, text, "texts", _is_text(text.type), "--text-column")
    types = tuple(_type_in_output(path, schema.field(name)) for name in columns.keep)
    for name, found, wanted in zip(columns.keep, types, columns.types or types, strict=True):
        if not _fits(found, wanted):
            raise InputError(
                path,
                f"column {name!r} is of {found}",
                f"{wanted} as in the first table",
                "Name this one first, or leave the column out.",
            )
    return Layout(column, _holds(kind), pa.types.is_struct(kind), groups, types)


def _check_type(path: str, field: pa.Field, wanted: str, is_so: bool, flag: str) -> None:
    if not is_so:
        raise InputError(
            path,
            f"column {field.name!r} is of {field.type}",
            f"{wanted}",
            f"Name another with {flag}.",
        )


def _type_in_output(path: str, field: pa.Field) -> str:
    """The type of a kept column: its own where that is a number, or true and false; else text.

    Raises:  InputError for one that has no text.
    """
    kind = field.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        return str(kind)
    has_text = pa.types.is_temporal(kind) or pa.types.is_decimal(kind) or pa.types.is_null(kind)
    if not (_is_text(kind) or (has_text and not pa.types.is_duration(kind) and not pa.types.is_interval(kind))):
        raise InputError(
            path,
            f"column {field.name!r} is of {kind}",
            "texts, numbers or times to keep",
            "Leave it out.",
        )
    return TEXT


def _fits(found: str, wanted: str) -> bool:
    """Whether each value of a type is one of another."""
    if found == wanted or wanted == TEXT:
        return True
    numbers = [pa.type_for_alias(word).to_pandas_dtype() for word in (found, wanted) if word != TEXT]
    return len(numbers) == 2 and np.can_cast(*numbers)


def _holds(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return "bytes" in {kind.field(index).name for index in range(kind.num_fields)}
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _texts(column: pa.Array) -> list[str | None]:
    """The values as texts; bytes that are not UTF-8 as surrogates, as lists have them."""
    if not _is_text(column.type):
        return column.cast(pa.string()).to_pylist()
    plain = column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
    encoded: list[bytes | None] = plain.cast(pa.binary()).to_pylist()
    return [None if one is None else one.decode("utf-8", "surrogateescape") for one in encoded]


def lines_in_table(path: str, layout: Layout, columns: Columns) -> Iterator[Line]:
    """The rows of a file that names images, or is texts.

    Raises:  InputError for an image without a path, a row without an id, and for a damaged file.
    """
    number = 0
    wanted = _wanted(layout, columns)
    try:
        with opened(path) as source, pq.ParquetFile(source) as file:
            for batch in file.iter_batches(NAMES_AT_A_TIME, columns=wanted):
                entries = _texts(batch.column(layout.column))
                for own_id, entry, values in zip(_ids(batch, columns), entries, _taken(batch, columns), strict=True):
                    if (columns.id and own_id is None) or (entry is None and columns.kind != "texts"):
                        raise InputError(
                            path,
                            f"row {number} has no path or id",
                            "both",
                            "Leave it out.",
                        )
                    yield Line(own_id, entry, values)
                    number += 1
    except (OSError, pa.ArrowException) as exc:
        raise InputError(
            path,
            f"cannot be read ({exc})",
            "Parquet",
            "Check the file.",
        ) from exc


def table_members(
    file: BinaryIO, pack: ContainerPart, layout: Layout, columns: Columns, members: Members
) -> Generator[Member | Failure | Item]:
    """The images in a part of a file's row groups; an Item for a row that only names its image."""
    try:
        with pq.ParquetFile(file, buffer_size=COLUMN_BUFFER_BYTES, pre_buffer=False) as table:
            groups = range(pack.start, len(layout.groups) if pack.stop is None else pack.stop)
            number = sum(layout.groups[: pack.start])
            wanted = _wanted(layout, columns)
            for batch in table.iter_batches(ROWS_AT_A_TIME, row_groups=list(groups), columns=wanted):
                held: list[Any] = batch.column(layout.column).to_pylist()
                for own_id, value, values in zip(_ids(batch, columns), held, _taken(batch, columns), strict=True):
                    by_place = f"{pack.name}!{number}"
                    number += 1
                    if columns.id and own_id is None:
                        message = f"its row has no id in column {columns.id!r}, expected one. Leave it out."
                        yield Failure(members.unique(by_place), pack.path, "read", "InputError", message)
                        continue
                    unique = members.unique(by_place if own_id is None else utf8_path(own_id))
                    yield _outcome(value, unique, values, pack, layout, members)
    except DAMAGE as exc:
        yield members.rest(exc)


def _wanted(layout: Layout, columns: Columns) -> list[str]:
    return list(dict.fromkeys([layout.column, *([columns.id] if columns.id else []), *dict(columns.taken)]))


def _ids(batch: pa.RecordBatch, columns: Columns) -> list[str | None]:
    return _texts(batch.column(columns.id)) if columns.id else [None] * batch.num_rows


def _taken(batch: pa.RecordBatch, columns: Columns) -> list[tuple[str | None, ...]]:
    """The values that go along, row by row, as texts of the types that the output has."""
    found: list[list[str | None]] = []
    for name, kind in columns.taken:
        column = batch.column(name)
        # Not checked for what the type cannot hold: `read_layout` did, but for integers beyond 2 ** 53 as floats.
        found.append(_texts(column if kind == TEXT else column.cast(pa.type_for_alias(kind), safe=False)))
    return list(zip(*found, strict=True)) if found else [()] * batch.num_rows


def _outcome(
    value: Any, own_id: str, values: tuple[str | None, ...], pack: ContainerPart, layout: Layout, members: Members
) -> Member | Failure | Item:
    data, name = ((value or {}).get("bytes"), (value or {}).get("path")) if layout.struct else (value, None)
    if data is None and name:
        return Item(own_id, name, 0, values=values)
    if data is None:
        message = f"its row has no image in column {layout.column!r}, expected one. Leave it out."
        return Failure(own_id, pack.path, "read", "InputError", message)
    if len(data) > members.max_bytes:
        return members.too_large(own_id, len(data))
    return Member(Item(own_id, pack.path, len(data), pack.modified_ns, values), data)
