"""Read tables that hold images, name images, or hold texts, whatever their format.

A column of bytes holds images, a column of texts names them. In a struct with "bytes" and "path", as datasets of
Hugging Face have, each row does one or the other. A list holds the several images of a row: frames, with the ids
`id#0`, `id#1` and so on.

A table is read group by group, as its format cuts it. Where a group cannot be read to its end, each of its rows that is
lost becomes a failure row, and the next group is read.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, Protocol

import pyarrow as pa

from ..errors import InputError
from ..records import ContainerPart, Failure, Item, Member, join_root, utf8_path
from .arrow_types import (
    IMAGE_TYPES,
    Image,
    check_text_form,
    describe,
    fits_type,
    get_output_type,
    holds_images,
    is_list_of_images,
    is_text,
    to_images,
    to_texts,
)
from .columns import check_names, find_entry_column
from .files import open_file, stat_file, stat_here
from .lists import Line, locate, make_item
from .members import CHANGED, PartReader, Selection

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from contextlib import AbstractContextManager

    from ..jobs.options import Columns

ROWS_AT_A_TIME = 64  # of images in the file, at most
NAMES_AT_A_TIME = 4096  # likewise
BYTES_AT_A_TIME = 32_000_000  # which rows read together should not exceed; a single row may
MAX_LOST = 1_000_000  # rows of a group that become failure rows each; a damaged footer may promise any number
DAMAGE = (OSError, pa.ArrowException, EOFError, ValueError)
ONE, REMEDY = "one", "Leave it out."  # expected of a row, and the remedy


class TableFile(Protocol):
    """An open table, cut into groups of rows."""

    schema: pa.Schema
    rows: tuple[int, ...]  # of each group

    def count_images(self, column: str) -> tuple[int, ...]:
        """Return how many values a column of lists has in each group; an empty or missing list counts as one."""
        ...

    def read(self, group: int, columns: list[str], max_rows: int) -> Iterator[pa.RecordBatch]:
        """Read columns of a group, in order, some rows at a time, of BYTES_AT_A_TIME or one row.

        Raises:  one of DAMAGE where they cannot be read.
        """
        ...


@dataclass(frozen=True)
class Layout:
    """Where the images of a file are."""

    column: str
    holds: bool  # images, or names of them in structs; otherwise the file is a list of texts or paths
    struct: bool
    several: bool  # images in a row
    rows: tuple[int, ...]  # of each group
    images: tuple[int, ...]  # of each group
    types: tuple[str, ...]  # of the copied columns, in an output


class _Row(NamedTuple):
    id: str | None
    images: list[Image] | None
    values: tuple[str | None, ...]


class _Lost(NamedTuple):
    """The rows of a group from one on."""

    rows: int
    error: Exception
    ids: list[str | None]


class GroupedTable:
    """A table, cut into parts between its groups; a list if its column holds texts."""

    endings: tuple[str, ...] = ()

    def open(self, file: BinaryIO, path: str) -> AbstractContextManager[TableFile]:
        """Open a file of this format, which is at a path too. Raises: one of DAMAGE for any other file."""
        raise NotImplementedError

    @contextmanager
    def _open_path(self, path: str) -> Generator[TableFile]:
        with open_file(path) as file, self.open(file, path) as table:
            yield table

    def parts(
        self, path: str, own_id: str, shard_size: int, selection: Selection
    ) -> Iterator[ContainerPart | Item | Failure]:
        """List the parts, of whole groups, with their numbers of images; or the entries of a list.

        Raises:  InputError for a file that is damaged, or whose columns are of other names or types.
        """
        columns = selection.columns
        status = stat_file(path)  # before the layout, so that a later change shows
        layout = self.read_layout(path, columns)
        if not layout.holds:
            for number, line in enumerate(self._read_lines(path, layout, columns)):
                yield make_item(line, path, own_id, number, selection)
            return
        identity = json.dumps([layout.column, columns.id, columns.taken, layout.struct and selection.root])
        start = images = 0
        for index, group_images in enumerate(layout.images):
            if images and images + group_images > shard_size:
                yield ContainerPart(own_id, path, *status, start, index, images, columns=identity)
                start, images = index, 0
            images += group_images
        if images:
            yield ContainerPart(own_id, path, *status, start, len(layout.images), images, columns=identity)

    def members(self, file: BinaryIO, part: ContainerPart, reader: PartReader) -> Generator[Member | Failure | Item]:
        """Read the images of a part's groups, in order; an Item for a row that only names its image.

        Each row that is lost is a failure; one with the part's id stands for all where the file is another than was
        listed. Nothing is ignored.
        """
        columns = reader.selection.columns
        try:
            with self.open(file, part.path) as table:
                layout = read_layout(part.path, table, columns)
                groups = range(part.start, len(layout.rows) if part.stop is None else part.stop)
                expected = sum(layout.images[part.start : part.stop])
                if part.members not in (None, expected):
                    raise OSError(CHANGED)
                number = sum(layout.rows[: part.start])
                for group in groups:
                    left = layout.images[group]
                    for row in _read_rows(table, group, layout, columns, ROWS_AT_A_TIME):
                        if isinstance(row, _Lost):
                            yield from _fail_lost(row, number, left, part, reader)
                            number += row.rows
                            left = 0
                            continue
                        for outcome in _read_row(number, row, part, layout, reader):
                            yield outcome
                            left -= 1
                        number += 1
                    if left:
                        raise OSError(f"{left:,} images are missing")
        except DAMAGE as exc:
            yield reader.fail_rest(exc)

    def read_types(self, path: str, columns: Columns) -> tuple[str, ...]:
        """Return the types of the copied columns in an output: numbers and booleans keep theirs, others are text.

        Raises:  InputError for a file or a column that cannot be used.
        """
        return self.read_layout(path, columns).types

    def holds_images(self, path: str, columns: Columns) -> bool:
        """Whether a file holds its images, or in structs some of them. Raises: as `read_types`."""
        return self.read_layout(path, columns).holds

    def read_layout(self, path: str, columns: Columns) -> Layout:
        """Read a file's schema. Raises: InputError for a file that cannot be used."""
        try:
            with self._open_path(path) as table:
                return read_layout(path, table, columns)
        except InputError:
            raise
        except DAMAGE as exc:
            raise InputError(path, f"cannot be read ({exc})", f"a {self.endings[0]} file", "Check the file.") from exc

    def _read_lines(self, path: str, layout: Layout, columns: Columns) -> Iterator[Line]:
        """Read the rows of a file that names images, or holds texts. Raises: InputError for a file that is gone."""
        number = 0
        try:
            with self._open_path(path) as table:
                for group in range(len(layout.rows)):
                    for row in _read_rows(table, group, layout, columns, NAMES_AT_A_TIME):
                        if isinstance(row, _Lost):
                            if row.rows > MAX_LOST:
                                raise row.error
                            for place in range(number, number + row.rows):
                                yield Line(f"!{place}", fault=_make_lost_error(place, row.error))
                            number += row.rows
                            continue
                        yield from _make_lines(number, row, layout, columns)
                        number += 1
        except DAMAGE as exc:
            raise InputError(path, f"cannot be read ({exc})", f"a {self.endings[0]} file", "Check the file.") from exc


def read_layout(path: str, table: TableFile, columns: Columns) -> Layout:
    """Return where the images of an open table are. Raises: InputError for a table that cannot be used."""
    schema = table.schema
    check_names(path, schema.names, columns)
    texts = columns.kind == "texts"
    holding = [field.name for field in schema if holds_images(field.type) and not texts]
    column = holding[0] if len(holding) == 1 and not columns.entry else find_entry_column(path, schema.names, columns)
    field = schema.field(column)
    several = is_list_of_images(field.type) and not texts
    holds = holds_images(field.type) and not texts
    if not (is_text(field.type) or holds or several):
        remedy = "Write a row for each." if is_list_of_images(field.type) else "Name another with `columns.entry`."
        found = f"column {column!r} is of {describe(field)}"
        raise InputError(path, found, "texts" if texts else IMAGE_TYPES, remedy)
    if columns.text and not is_text((text := schema.field(columns.text)).type):
        remedy = "Write a row for each." if is_list_of_images(text.type) else "Name another with `columns.text`."
        raise InputError(path, f"column {columns.text!r} is of {describe(text)}", "texts", remedy)
    if columns.id:
        expected = "texts, numbers or times as ids"
        check_text_form(path, schema.field(columns.id), expected, "Name another with `columns.id`.")
    types = tuple(get_output_type(path, schema.field(name)) for name in columns.keep)
    for name, own, wanted in zip(columns.keep, types, columns.types or types, strict=True):
        if not fits_type(own, wanted):
            remedy = "Name this one first, or leave the column out."
            raise InputError(path, f"column {name!r} is of {own}", f"{wanted} as in the first table", remedy)
    struct = pa.types.is_struct(field.type) or (several and pa.types.is_struct(field.type.value_type))
    images = table.count_images(column) if several else table.rows
    return Layout(column, holds, struct, several, table.rows, images, types)


def _read_rows(table: TableFile, group: int, layout: Layout, columns: Columns, max_rows: int) -> Iterator[_Row | _Lost]:
    """Read the rows of a group; where it cannot be read to its end, the last outcome stands for those lost."""
    named = [layout.column, columns.id, *(name for name, _ in columns.taken)]
    names = list(dict.fromkeys(name for name in named if name))
    expected, taken = layout.rows[group], 0
    try:
        for batch in table.read(group, names, max_rows):
            rows = _convert(batch, layout, columns)
            yield from rows
            taken += len(rows)
        if taken < expected:
            raise OSError(f"{expected - taken:,} rows are missing")
    except DAMAGE as exc:
        if isinstance(exc, OSError) and (type(exc) is not OSError or exc.errno):
            raise  # of the system or a server: the next group would fail alike, perhaps after as long a wait
        yield _Lost(expected - taken, exc, _read_lost_ids(table, group, taken, columns))


def _convert(batch: pa.RecordBatch, layout: Layout, columns: Columns) -> list[_Row]:
    ids = to_texts(batch.column(columns.id)) if columns.id else [None] * batch.num_rows
    copied = [to_texts(batch.column(name), kind) for name, kind in columns.taken]
    values = list(zip(*copied, strict=True)) if copied else [()] * batch.num_rows
    images = to_images(batch.column(layout.column))
    return [_Row(*row) for row in zip(ids, images, values, strict=True)]


def _read_lost_ids(table: TableFile, group: int, taken: int, columns: Columns) -> list[str | None]:
    """Return the ids of a group's rows from one on, where the damage is not in their column."""
    try:
        batches = table.read(group, [columns.id], NAMES_AT_A_TIME) if columns.id else ()
        return [own_id for batch in batches for own_id in to_texts(batch.column(0))][taken:]
    except DAMAGE:
        return []


def _make_lost_error(number: int, exc: Exception) -> InputError:
    reason = " ".join(str(exc).split())  # Arrow writes several lines
    found = f"row {number} is lost, as its group of rows cannot be read ({reason})"
    return InputError(f"row {number}", found, "a whole file", "Restore it.")


def _fail_lost(lost: _Lost, number: int, images: int, part: ContainerPart, reader: PartReader) -> Iterator[Failure]:
    """Yield a failure for each image of the rows that are lost. Raises: the error where they are too many."""
    if max(images, lost.rows) > MAX_LOST:
        raise lost.error
    for offset in range(images):
        place = number + min(offset, lost.rows - 1)  # where rows hold lists, nobody knows of which one an image is
        given_id = lost.ids[offset] if offset < len(lost.ids) else None
        own_id = reader.make_unique(f"{part.name}!{place}" if given_id is None else utf8_path(given_id))
        yield reader.fail(own_id, _make_lost_error(place, lost.error))


def _read_row(
    number: int, row: _Row, part: ContainerPart, layout: Layout, reader: PartReader
) -> Iterator[Member | Failure | Item]:
    """Yield the images of a row; a failure for a row without any."""
    columns = reader.selection.columns
    own_id = reader.make_unique(f"{part.name}!{number}" if row.id is None else utf8_path(row.id))
    images = row.images or [(None, None)]
    for place, (data, name) in enumerate(images):
        image_id = reader.make_unique(f"{own_id}#{place}") if row.images and layout.several else own_id
        if columns.id and row.id is None:
            yield reader.fail(
                image_id, InputError(image_id, f"its row has no id in column {columns.id!r}", ONE, REMEDY)
            )
        elif data is None and name:
            location = locate(name, reader.selection.root)
            yield Item(image_id, location, *stat_here(join_root(reader.selection.base, location)), row.values)
        elif data is not None:
            yield reader.take(image_id, data.size, data.to_pybytes, row.values)
        else:
            found = f"its row has no image in column {layout.column!r}"
            yield reader.fail(image_id, InputError(image_id, found, ONE, REMEDY))


def _make_lines(number: int, row: _Row, layout: Layout, columns: Columns) -> Iterator[Line]:
    """Yield the entries of a row that names images, or is a text."""
    names = [name for _, name in row.images or []] or [None]
    for place, name in enumerate(names):
        mark = f"!{number}#{place}" if row.images and layout.several else f"!{number}"
        own_id = row.id if row.id is None or not layout.several else f"{row.id}#{place}"
        if columns.id and row.id is None:
            found = f"row {number} has no id in column {columns.id!r}"
            yield Line(mark, fault=InputError(mark, found, ONE, REMEDY))
        elif not name and columns.kind != "texts":
            found = f"row {number} has no path in column {layout.column!r}"
            yield Line(mark, fault=InputError(mark, found, ONE, REMEDY))
        else:
            yield Line(mark, own_id, name, row.values)
