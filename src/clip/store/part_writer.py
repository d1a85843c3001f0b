"""PartWriter: writes the two Parquet files of a shard, the failures first; they appear when both are whole."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from ..atomic_files import atomic_write, translate_os_errors
from ..errors import StoreError
from ..records import Failure, Row, Shard, as_utf8, listed_id, utf8_path
from .checksums import TableWriter
from .parts import EMBEDDINGS, FAILURE_SCHEMA, FAILURES, FINGERPRINT_KEY, FRAMES, IGNORED, READ, Parts, vector_columns

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType


class PartWriter:
    """Writes the two files of a shard. They appear when the `with` block ends, and not at all after an error."""

    def __init__(self, parts: Parts, shard: Shard) -> None:
        """Prepare to write a shard of an output."""
        self._parts = parts
        self.schema = parts.schema  # of the embeddings
        self._shard = shard
        self._paths = {folder: parts.path(folder, shard.index) for folder in (FAILURES, EMBEDDINGS)}
        self._files = {folder: ExitStack() for folder in self._paths}
        self._writers: dict[str, TableWriter] = {}
        self._carried_over = 0  # rows and failures taken from the earlier part

    def __enter__(self) -> PartWriter:
        return self  # files are opened by the first `add`: decoding a shard may take hours

    def _open_file(self, folder: str) -> TableWriter:
        columns = self.schema if folder == EMBEDDINGS else FAILURE_SCHEMA
        schema = columns.with_metadata({FINGERPRINT_KEY: self._shard.fingerprint})
        path = self._paths[folder]
        file = self._files[folder].enter_context(atomic_write(path))
        strings = [field.name for field in schema if field.type == pa.string()]
        # With 100,000 vectors of 512 float32 the file is 16 % smaller and is read 2.5x faster than with the defaults.
        # float16 is written plainly, for 2 % more bytes: DuckDB 2.0 reads it in no other encoding.
        split = [name for name in vector_columns(schema) if schema.field(name).type.value_type == pa.float32()]
        encoding = {f"{name}.list.element": "BYTE_STREAM_SPLIT" for name in split} or None
        return TableWriter(file, schema, self._parts.seed(path), dictionary=strings, encoding=encoding)

    def add(self, rows: Sequence[Row], vectors: Mapping[str, np.ndarray], failures: Sequence[Failure]) -> None:
        """Write rows with their `vectors`, and failures. Shapes and errors: as `make_tables` and `add_tables`."""
        self.add_tables(self.make_tables(rows, vectors, failures))

    def make_tables(
        self, rows: Sequence[Row], vectors: Mapping[str, np.ndarray], failures: Sequence[Failure]
    ) -> dict[str, pa.Table]:
        """Return the rows of the embeddings, and of the failures, as they are written, by the names of the folders.

        Shapes:  vectors float (N, D) for each of their columns.
        """
        return _make_tables(self.schema, rows, vectors, failures)

    def add_tables(self, tables: Mapping[str, pa.Table]) -> None:
        """Write rows of the embeddings, and of the failures.

        A shard that carries rows over merges them with the new ones, so it must be written with one call.

        Raises:  StoreError where they cannot be written, or the earlier part changed.
        """
        if self._shard.carried_over:
            tables = self._merge_carried_over(tables)
        for folder, path in self._paths.items() if not self._writers else ():
            with translate_os_errors(path):
                self._writers[folder] = self._open_file(folder)
        for folder, table in tables.items():
            if table.num_rows:
                with translate_os_errors(self._paths[folder]):
                    self._writers[folder].write(table)

    def _merge_carried_over(self, tables: Mapping[str, pa.Table]) -> dict[str, pa.Table]:
        places = {entry.id: place for place, entry in enumerate(self._shard.entries)}
        # The entries that are carried over, by the ids that they have in the earlier part.
        renamed, paths = self._shard.renamed, [utf8_path(entry.path) for entry in self._shard.entries]
        carried_over = {renamed.get(own_id, own_id): own_id for own_id in self._shard.carried_over}
        merged: dict[str, pa.Table] = {}
        present: set[str] = set()
        for folder, new in tables.items():
            old = self._parts.read_or_empty(self._paths[folder], new.schema.names)
            earlier = [(own_id, listed_id(own_id, carried_over)) for own_id in old.column("id").to_pylist()]
            carried = [file in carried_over for _, file in earlier]
            rows = old.filter(pa.array(carried, pa.bool_()))
            kept = [(own_id, file) for own_id, file in earlier if file in carried_over]
            ids = [carried_over[file] + own_id[len(file) :] for own_id, file in kept]
            rows = _replace_texts(rows, "id", ids)
            rows = _replace_texts(rows, "path", [paths[places[carried_over[file]]] for _, file in kept])
            both = pa.concat_tables([rows, new])
            self._carried_over += sum(carried)
            entries = [listed_id(own_id, places) for own_id in both.column("id").to_pylist()]
            order = np.argsort([places[own_id] for own_id in entries], kind="stable")
            present |= set(entries)
            merged[folder] = both.take(order)
        if present != places.keys():
            rows = f"shard {self._shard.index} has rows for {len(present)} of its {len(places)} entries"
            raise StoreError(self._parts.output, f"{rows}, as a part changed during the run", remedy="Run it again.")
        return merged

    def note(self, read: int, ignored: Mapping[str, int], frames: int = 0) -> None:
        """Write into the part how many entries were read, how many frames beyond their first, and what was ignored."""
        carried_over = sum(entry.id in self._shard.carried_over for entry in self._shard.entries)
        frames += max(0, self._carried_over - carried_over)
        noted = {READ: str(read + carried_over + frames), **({IGNORED: json.dumps(ignored)} if ignored else {})}
        noted |= {FRAMES: str(frames)} if frames else {}
        with translate_os_errors(self._paths[EMBEDDINGS]):
            self._writers[EMBEDDINGS].note(noted)

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if exc is None:
            try:
                for folder, path in self._paths.items():
                    with translate_os_errors(path):
                        self._writers[folder].close()
                        self._files[folder].close()
            except BaseException:
                self.__exit__(*sys.exc_info())
                raise
            return
        for writer in self._writers.values():
            with suppress(OSError, pa.ArrowException):  # the disk may be full; the files are removed anyway
                writer.abandon()
        for files in self._files.values():
            with suppress(OSError):  # the first error says more
                files.__exit__(kind, exc, trace)  # which removes incomplete files


def _replace_texts(table: pa.Table, name: str, values: list[str]) -> pa.Table:
    place = table.schema.get_field_index(name)
    return table.set_column(place, table.schema.field(place), pa.array(values, pa.string()))


def _make_tables(
    schema: pa.Schema, rows: Sequence[Row], vectors: Mapping[str, np.ndarray], failures: Sequence[Failure]
) -> dict[str, pa.Table]:
    failed = [(f.id, utf8_path(f.path), f.stage, f.error, f.message) for f in failures]
    columns: dict[str, Any] = {name: _make_vector_column(vectors[name], schema.field(name).type) for name in vectors}
    of_rows = dict(zip(Row._fields, zip(*rows, strict=True), strict=True)) if rows else dict.fromkeys(Row._fields, ())
    values = list(zip(*of_rows["values"], strict=True))
    first = len(schema.names) - len(values)  # the columns of values are the last ones
    columns |= {name: list(of_rows[name]) for name in Row._fields if name in schema.names[:first]}
    columns["path"] = [utf8_path(path) for path in of_rows["path"]]
    others = [name for name in schema.names if name not in columns]
    values = values or [()] * len(others)
    for name, column in zip(others, values, strict=True):
        texts = [None if text is None else as_utf8(text) for text in column]
        columns[name] = pa.array(texts, pa.string()).cast(schema.field(name).type)
    embeddings = pa.table([columns[name] for name in schema.names], schema=schema)
    return {EMBEDDINGS: embeddings, FAILURES: _make_failure_table(failed)}


def _make_failure_table(rows: list[tuple[str, ...]]) -> pa.Table:
    columns = list(zip(*rows, strict=True)) or [()] * len(FAILURE_SCHEMA)
    return pa.table([list(column) for column in columns], schema=FAILURE_SCHEMA)


def _make_vector_column(vectors: np.ndarray, kind: pa.FixedSizeListType) -> pa.Array:
    flat = vectors.astype(kind.value_type.to_pandas_dtype(), copy=False).reshape(-1)  # (N, D) -> (N * D,)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat, kind.value_type), kind.list_size)
