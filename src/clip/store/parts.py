"""The two Parquet files of a shard, which together are its part: their columns, writing and reading them.

embeddings/part-00000.parquet    images: id, path, embedding, width, height, format, size_bytes, and sha256 if the job
                                 wants it; texts: id, path, embedding, text; pairs: all of these and text_embedding;
                                 then the columns that the job copies from its input
failures/part-00000.parquet      id, path, stage, error, message
"""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..atomic_files import atomic_write, translate_os_errors
from ..errors import StoreError
from ..records import Failure, Row, Shard, as_utf8, listed_id, utf8_path

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence
    from types import TracebackType

    from .manifest import Manifest

EMBEDDINGS, FAILURES = "embeddings", "failures"
PART = "part-{:05d}.parquet"
# Keys in the metadata of an embeddings part: the fingerprint of the shard's listing; files ignored, by reason; images
# read, where each frame counts; and those of them that are second or later frames of a file, where there are any.
FINGERPRINT_KEY, IGNORED, READ, FRAMES = b"clip.mark", b"clip.ignored", b"clip.read", b"clip.frames"
EMBEDDING, TEXT_EMBEDDING = "embedding", "text_embedding"  # columns of vectors
FAILURE_SCHEMA = pa.schema([(name, pa.string()) for name in ("id", "path", "stage", "error", "message")])


def embedding_schema(manifest: Manifest) -> pa.Schema:
    """Return the columns of an embeddings file, as the manifest describes its vectors and input."""
    vector = pa.list_({"float32": pa.float32(), "float16": pa.float16()}[manifest.dtype], manifest.dim)
    fields = [("id", pa.string()), ("path", pa.string()), (EMBEDDING, vector)]
    if manifest.kind == "pairs":
        fields += [(TEXT_EMBEDDING, vector)]
    if manifest.kind != "texts":
        fields += [("width", pa.int32()), ("height", pa.int32()), ("format", pa.string()), ("size_bytes", pa.int64())]
    if manifest.hashes:
        fields += [("sha256", pa.string())]
    if manifest.kind != "images":
        fields += [("text", pa.string())]
    return pa.schema(fields + [(name, pa.type_for_alias(kind)) for name, kind in manifest.columns.written])


def vector_columns(schema: pa.Schema) -> list[str]:
    """Return the names of the columns that hold vectors."""
    return [name for name in (EMBEDDING, TEXT_EMBEDDING) if name in schema.names]


class PartWriter:
    """Writes the two files of a shard. They appear when the `with` block ends, and not at all after an error."""

    def __init__(self, path: Path, schema: pa.Schema, shard: Shard) -> None:
        """Prepare to write a shard of the output `path`; `schema` has the columns of its embeddings."""
        self._path = path
        self._schema = schema
        self._shard = shard
        self._paths = {folder: path / folder / PART.format(shard.index) for folder in (FAILURES, EMBEDDINGS)}
        self._files = {folder: ExitStack() for folder in self._paths}
        self._writers: dict[str, pq.ParquetWriter] = {}
        self._carried_over = 0  # rows and failures taken from the earlier part

    def __enter__(self) -> PartWriter:
        return self  # files are opened by the first `add`: decoding a shard may take hours

    def _open_file(self, folder: str) -> pq.ParquetWriter:
        columns = self._schema if folder == EMBEDDINGS else FAILURE_SCHEMA
        schema = columns.with_metadata({FINGERPRINT_KEY: self._shard.fingerprint})
        file = self._files[folder].enter_context(atomic_write(self._paths[folder]))
        strings: Any = [field.name for field in schema if field.type == pa.string()]
        # With 100,000 vectors of 512 float32 the file is 16 % smaller and is read 2.5x faster than with the defaults.
        encoding = {f"{name}.list.element": "BYTE_STREAM_SPLIT" for name in vector_columns(schema)} or None
        return pq.ParquetWriter(file, schema, compression="zstd", use_dictionary=strings, column_encoding=encoding)

    def add(self, rows: Sequence[Row], vectors: Mapping[str, np.ndarray], failures: Sequence[Failure]) -> None:
        """Write rows with their `vectors`, and failures.

        A shard that carries rows over merges them with the new ones, so it must be written with one call.

        Shapes:  vectors float (N, D) for each of their columns.
        Raises:  StoreError where they cannot be written, or the earlier part changed.
        """
        for folder, path in self._paths.items() if not self._writers else ():
            with translate_os_errors(path):
                self._writers[folder] = self._open_file(folder)
        tables = _make_tables(self._schema, rows, vectors, failures)
        if self._shard.carried_over:
            tables = self._merge_carried_over(tables)
        for folder, table in tables.items():
            if table.num_rows:
                with translate_os_errors(self._paths[folder]):
                    self._writers[folder].write_table(table)

    def _merge_carried_over(self, tables: dict[str, pa.Table]) -> dict[str, pa.Table]:
        places = {entry.id: place for place, entry in enumerate(self._shard.entries)}
        merged: dict[str, pa.Table] = {}
        present: set[str] = set()
        for folder, new in tables.items():
            old = read_part_or_empty(self._paths[folder], new.schema)
            carried = [listed_id(own_id, places) in self._shard.carried_over for own_id in old.column("id").to_pylist()]
            both = pa.concat_tables([old.filter(pa.array(carried, pa.bool_())), new])
            self._carried_over += sum(carried)
            entries = [listed_id(own_id, places) for own_id in both.column("id").to_pylist()]
            order = np.argsort([places[own_id] for own_id in entries], kind="stable")
            present |= set(entries)
            merged[folder] = both.take(order)
        if present != places.keys():
            rows = f"shard {self._shard.index} has rows for {len(present)} of its {len(places)} entries"
            raise StoreError(self._path, f"{rows}, as a part changed during the run", remedy="Run it again.")
        return merged

    def note(self, read: int, ignored: Mapping[str, int], frames: int = 0) -> None:
        """Write into the part how many entries were read, how many frames beyond their first, and what was ignored."""
        carried_over = sum(entry.id in self._shard.carried_over for entry in self._shard.entries)
        frames += max(0, self._carried_over - carried_over)
        noted = {READ: str(read + carried_over + frames), **({IGNORED: json.dumps(ignored)} if ignored else {})}
        noted |= {FRAMES: str(frames)} if frames else {}
        with translate_os_errors(self._paths[EMBEDDINGS]):
            self._writers[EMBEDDINGS].add_key_value_metadata(noted)

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
                writer.close()
        for files in self._files.values():
            with suppress(OSError):  # the first error says more
                files.__exit__(kind, exc, trace)  # which removes incomplete files


def _make_tables(
    schema: pa.Schema, rows: Sequence[Row], vectors: Mapping[str, np.ndarray], failures: Sequence[Failure]
) -> dict[str, pa.Table]:
    failed = [(f.id, utf8_path(f.path), f.stage, f.error, f.message) for f in failures]
    columns: dict[str, Any] = {name: _make_vector_column(vectors[name], schema.field(name).type) for name in vectors}
    own = [field.name for field in dataclass_fields(Row) if field.name in schema.names and field.name != "values"]
    columns |= {name: [getattr(row, name) for row in rows] for name in own}
    columns["path"] = [utf8_path(row.path) for row in rows]
    others = [name for name in schema.names if name not in columns]
    values = list(zip(*(row.values for row in rows), strict=True)) or [()] * len(others)
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


def shard_number(path: Path) -> int:
    """Return the number in a part's name."""
    return int(path.stem.rpartition("-")[2])


def read_part(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read all rows of a part's file, or some of its columns. Raises: StoreError where it is damaged."""
    with open_parquet(path) as file:
        return pq.read_table(file, columns=None if columns is None else list(columns))


def read_schema(path: Path) -> pa.Schema:
    """Read the columns of a part's file, without metadata. Raises: StoreError where it is damaged."""
    with open_parquet(path) as file:
        return pq.read_schema(file).remove_metadata()


def read_fingerprint(path: Path) -> str:
    """Read the fingerprint of a part, empty where it has none. Raises: StoreError where it is damaged."""
    return read_metadata(path).get(FINGERPRINT_KEY, b"").decode()


def read_metadata(path: Path) -> dict[bytes, bytes]:
    """Read the metadata of a part's file. Raises: StoreError where it is damaged."""
    with open_parquet(path) as file:
        return pq.read_metadata(file).metadata or {}


def count_rows(path: Path) -> int:
    """Read the number of rows from a file's footer. Raises: StoreError where it is damaged."""
    with open_parquet(path) as file:
        return pq.read_metadata(file).num_rows


@contextmanager
def open_parquet(
    path: Path, expected: str = "a part as clip embed wrote it", remedy: str = "Remove it, and run the job again."
) -> Generator[BinaryIO]:
    """Open a Parquet file; pyarrow itself takes no path that is not UTF-8. Raises: StoreError where it is damaged."""
    try:
        with path.open("rb") as file:
            yield file
    except (OSError, pa.ArrowException) as exc:
        found = f"cannot be read ({next(iter(str(exc).splitlines()), type(exc).__name__)})"
        raise StoreError(path, found, expected, remedy) from exc


def read_part_or_empty(path: Path, schema: pa.Schema, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a part's file as `read_part` does; where there is none, return an empty table with these columns."""
    if path.exists():
        return read_part(path, columns)
    return schema.empty_table() if columns is None else schema.empty_table().select(list(columns))
