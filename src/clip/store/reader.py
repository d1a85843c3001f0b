"""A folder that a run wrote, read back: table, vectors, failures. Knows nothing about how they were made."""

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
    """What `clip embed` wrote into a folder."""

    def __init__(self, path: str | Path) -> None:
        """Open a folder; only its manifest is read.

        Raises:  StoreError where there is no manifest of ours.
        """
        self.path = Path(path)
        manifest = read_manifest(self.path / MANIFEST)
        if manifest is None:
            raise StoreError(
                self.path,
                f"holds no {MANIFEST} of ours",
                "the output of clip embed",
                "Check the path.",
            )
        self.manifest = manifest
        self.dim = manifest.dim
        self.schema = embedding_schema(manifest)

    def parts(self, folder: str = EMBEDDINGS) -> list[Path]:
        """The Parquet files of the embeddings, or of the failures, in the order of their shards."""
        return sorted((self.path / folder).glob("part-*.parquet"), key=shard_number)

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows in input order: id, path, embedding, width, height, format, size_bytes, and what else parts.py
        tells; or some of these columns.

        Raises:  StoreError for a part that cannot be read.
        """
        schema = self.schema if columns is None else pa.schema([self.schema.field(name) for name in columns])
        return pa.concat_tables([schema.empty_table(), *(read_part(path, columns) for path in self.parts())])

    def failures(self) -> pa.Table:
        """What could not be embedded, in input order: id, path, stage, error, message.

        Raises:  StoreError for a part that cannot be read.
        """
        return pa.concat_tables([FAILURE_SCHEMA.empty_table(), *(read_part(path) for path in self.parts(FAILURES))])

    def vectors(self) -> np.ndarray:
        """The vectors in the order of `table`, mapped from a file that is made when it is first asked for.

        The file, _index/vectors.npy, is made again when the parts have changed since. Where it cannot be written, the
        vectors are read into memory.

        Shapes:  float32 or float16 (N, D), read-only.
        Raises:  StoreError for a part that cannot be read.
        """
        path, stamp = self.path / INDEX / VECTORS, self.stamp()
        if not (_read_stamp(path.with_name(STAMP)) == stamp and path.is_file()):
            try:
                self._index(path, stamp)
            except OSError as exc:
                _log.warning("%s: cannot be written (%s); the vectors are read into memory", path, exc)
                return np.concatenate([np.empty((0, self.dim), self._numpy_dtype()), *self._blocks()])
        if not stamp["rows"]:
            return np.empty((0, self.dim), self._numpy_dtype())  # nothing can be mapped
        return np.load(path, mmap_mode="r")

    def _index(self, path: Path, stamp: dict[str, Any]) -> None:
        path.parent.mkdir(exist_ok=True)
        path.with_name(STAMP).unlink(missing_ok=True)  # first, so that no stamp vouches for another file
        header = {
            "descr": np.dtype(self._numpy_dtype()).str,
            "fortran_order": False,
            "shape": (stamp["rows"], self.dim),
        }
        with atomic_write(path) as file:
            np.lib.format.write_array_header_1_0(file, header)
            for block in self._blocks():
                file.write(block.tobytes())
        with atomic_write(path.with_name(STAMP)) as file:
            file.write(json.dumps(stamp).encode())

    def _blocks(self) -> Iterator[np.ndarray]:
        """The vectors part by part. Shapes: (N, D) each."""
        for path in self.parts():
            yield matrix(read_part(path, ["embedding"]), self.schema)

    def _numpy_dtype(self) -> Any:
        return np.dtype(self.manifest.dtype)

    def stamp(self) -> dict[str, Any]:
        """What tells whether the parts are those that a file was made of.

        Raises:  StoreError for a part that cannot be read; OSError for one that goes meanwhile.
        """
        identities = hashlib.sha256()
        rows = 0
        for path in self.parts():
            status = path.stat()
            identities.update(f"{path.name} {status.st_size} {status.st_mtime_ns}\n".encode())
            rows += count_rows(path)
        return {"parts": identities.hexdigest(), "rows": rows}


def matrix(rows: pa.Table, schema: pa.Schema, column: str = EMBEDDING) -> np.ndarray:
    """The vectors in a column of a table with a store's columns. Shapes: float32 or float16 (N, D)."""
    kind = schema.field(column).type
    chunks = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in rows.column(column).chunks]
    return np.concatenate([np.empty(0, kind.value_type.to_pandas_dtype()), *chunks]).reshape(-1, kind.list_size)


def _read_stamp(path: Path) -> object:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None  # not there, or half: the file is made again
