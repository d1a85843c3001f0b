"""Store: reads the output of a run, its rows, vectors and failures."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from ..atomic_files import atomic_write
from ..errors import StoreError
from .manifest import INDEX, MANIFEST, read_manifest
from .parts import (
    EMBEDDING,
    EMBEDDINGS,
    FAILURE_SCHEMA,
    FAILURES,
    count_rows,
    embedding_schema,
    read_part,
    shard_number,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

VECTORS, STAMP = "vectors.npy", "vectors.json"

_log = logging.getLogger("clip")


class Store:
    """The output of `clip embed`."""

    def __init__(self, path: str | Path) -> None:
        """Open a folder and read its manifest. Raises: StoreError where it has no manifest of ours."""
        self.path = Path(path)
        manifest = read_manifest(self.path / MANIFEST)
        if manifest is None:
            raise StoreError(self.path, f"holds no {MANIFEST} of ours", "the output of clip embed", "Check the path.")
        self.manifest = manifest
        self.dim = manifest.dim
        self.schema = embedding_schema(manifest)

    def parts(self, folder: str = EMBEDDINGS) -> list[Path]:
        """List the Parquet files of the embeddings, or of the failures, in the order of their shards."""
        return sorted((self.path / folder).glob("part-*.parquet"), key=shard_number)

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Read the rows in input order, with all columns or some of them; parts.py lists which there are.

        Raises:  StoreError for a part that cannot be read.
        """
        schema = self.schema if columns is None else pa.schema([self.schema.field(name) for name in columns])
        return pa.concat_tables([schema.empty_table(), *(read_part(path, columns) for path in self.parts())])

    def failures(self) -> pa.Table:
        """Read the failures in input order: id, path, stage, error, message.

        Raises:  StoreError for a part that cannot be read.
        """
        return pa.concat_tables([FAILURE_SCHEMA.empty_table(), *(read_part(path) for path in self.parts(FAILURES))])

    def vectors(self) -> np.ndarray:
        """Return the vectors in the order of `table`, mapped from the file _index/vectors.npy.

        The first call writes that file, and so does a call after the parts have changed. Where it cannot be written,
        the vectors are read into memory.

        Shapes:  float32 or float16 (N, D), read-only.
        Raises:  StoreError for a part that cannot be read.
        """
        path, stamp = self.path / INDEX / VECTORS, self.stamp()
        if not (_read_stamp(path.with_name(STAMP)) == stamp and path.is_file()):
            try:
                self._write_vectors(path, stamp)
            except OSError as exc:
                _log.warning("%s: cannot be written (%s); the vectors are read into memory", path, exc)
                return np.concatenate([np.empty((0, self.dim), self._dtype), *self._read_blocks()])
        if not stamp["rows"]:
            return np.empty((0, self.dim), self._dtype)  # no file of 0 bytes can be mapped
        return np.load(path, mmap_mode="r")

    def _write_vectors(self, path: Path, stamp: dict[str, Any]) -> None:
        path.parent.mkdir(exist_ok=True)
        path.with_name(STAMP).unlink(missing_ok=True)  # first, so that the stamp never belongs to another file
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": (stamp["rows"], self.dim)}
        with atomic_write(path) as file:
            np.lib.format.write_array_header_1_0(file, header)
            for block in self._read_blocks():
                file.write(block.tobytes())
        with atomic_write(path.with_name(STAMP)) as file:
            file.write(json.dumps(stamp).encode())

    def _read_blocks(self) -> Iterator[np.ndarray]:
        """Yield the vectors part by part. Shapes: (N, D) each."""
        for path in self.parts():
            yield stack_vectors(read_part(path, [EMBEDDING]), self.schema)

    @property
    def _dtype(self) -> np.dtype[Any]:
        return np.dtype(self.manifest.dtype)

    def stamp(self) -> dict[str, Any]:
        """Return a hash of the parts' names, sizes and times, and the number of rows: what a derived file was made of.

        Raises:  StoreError for a part that cannot be read; OSError for one that is removed meanwhile.
        """
        identities = hashlib.sha256()
        rows = 0
        for path in self.parts():
            status = path.stat()
            identities.update(f"{path.name} {status.st_size} {status.st_mtime_ns}\n".encode())
            rows += count_rows(path)
        return {"parts": identities.hexdigest(), "rows": rows}


def stack_vectors(rows: pa.Table, schema: pa.Schema, column: str = EMBEDDING) -> np.ndarray:
    """Return the vectors in a column as one array. Shapes: float32 or float16 (N, D)."""
    kind = schema.field(column).type
    chunks = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in rows.column(column).chunks]
    return np.concatenate([np.empty(0, kind.value_type.to_pandas_dtype()), *chunks]).reshape(-1, kind.list_size)


def _read_stamp(path: Path) -> object:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None  # missing or incomplete: the file is written again
