"""Store: reads the output of a run, its rows, vectors and failures."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import shlex
import zlib
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from ..atomic_files import atomic_write, make_folder, open_regular
from ..errors import InputError, StoreError
from ..object_paths import ObjectPath, open_place
from ..parallel import available_cores, map_ahead
from ..records import as_utf8, join_root
from .checksums import CHANGED, dump_json, load_json
from .manifest import INDEX, MANIFEST, read_manifest
from .parts import EMBEDDING, EMBEDDINGS, FAILURE_SCHEMA, FAILURES, Parts, embedding_schema

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

VECTORS, STAMP = "vectors.npy", "vectors.json"
HASH_DIGITS = 16  # of an address
BLOCK_BYTES = 2**24  # of vectors.npy, with a checksum each, which threads compare

_log = logging.getLogger("clip")


class Store:
    """The output of `clip embed`."""

    def __init__(self, path: str | Path, root: str | Path | None = None) -> None:
        """Open a folder and read its manifest. `root` is where the images are now, if they have moved since.

        Raises:  StoreError where it has none of ours, or a damaged one; InputError for a root that is no folder.
        """
        self.path = open_place(path)
        manifest = read_manifest(self.path / MANIFEST)
        if manifest is None:
            raise _make_missing_error(self.path)
        self.manifest = manifest
        self.dim = manifest.dim
        if root is not None and not Path(root).is_dir():
            raise InputError("`root`", f"{root} is no folder here", "the one with the images", "Check the path.")
        self.base = os.path.abspath(root) if root is not None else manifest.find_base(self.path)  # noqa: PTH100
        """Where the paths of rows start; empty in outputs of version 0.1.0, where they are as they were given."""
        self.schema = embedding_schema(manifest)
        self.files = Parts(self.path, self.schema, manifest.run)
        self.files.warn_of_copies()
        self._checked: object = None  # the file of vectors whose bytes were compared

    @cached_property
    def index_folder(self) -> Path:
        """Where files are that are derived from the parts: in the output; of one on an object store in a cache here."""
        if not isinstance(self.path, ObjectPath):
            return self.path / INDEX
        home = os.environ.get("XDG_CACHE_HOME", "")
        home = home if os.path.isabs(home) else os.path.join("~", ".cache")  # noqa: PTH117, PTH118
        name = hashlib.sha256(str(self.path).encode()).hexdigest()[:HASH_DIGITS]
        return Path(home).expanduser() / "clip-turbo" / "outputs" / f"{self.path.name}-{name}"

    def make_index_folder(self) -> Path:
        """Make the folder of derived files unless it is there. Raises: OSError, for a link too."""
        if isinstance(self.path, ObjectPath):
            self.index_folder.parent.mkdir(parents=True, exist_ok=True)
        make_folder(self.index_folder)
        return self.index_folder

    def locate(self, path: str) -> str:
        """Return where the path of a row leads."""
        return join_root(as_utf8(self.base), path)

    def locate_all(self, table: pa.Table) -> pa.Table:
        """Return a table whose paths are whole."""
        place = table.schema.get_field_index("path")
        if place < 0 or not self.base:
            return table
        paths = [self.locate(path) for path in table.column(place).to_pylist()]
        return table.set_column(place, table.schema.field(place), pa.array(paths, pa.string()))

    def parts(self, folder: str = EMBEDDINGS) -> list[Path]:
        """List the Parquet files of the embeddings, or of the failures, in the order of their shards."""
        return self.files.find(folder)

    def read_parts(self, columns: Sequence[str]) -> Iterator[tuple[Path, pa.Table]]:
        """Yield each part's path and these columns of it; a thread reads one part ahead. Raises: as `table`."""
        return map_ahead(lambda path: (path, self.files.read(path, columns)), self.parts(), workers=1, ahead=2)

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Read the rows in input order, with all columns or some of them; parts.py lists which there are.

        Paths are whole, not relative to `base` as in the parts.

        Raises:  StoreError for a part that is not as it was written, or is missing.
        """
        names = self.schema.names if columns is None else list(columns)
        schema = pa.schema([self.schema.field(name) for name in names])
        table = pa.concat_tables([schema.empty_table(), *(part for _, part in self.read_parts(names))])
        self.check_rows(table.num_rows)
        return self.locate_all(table)

    def failures(self) -> pa.Table:
        """Read the failures in input order: id, path, stage, error, message.

        Raises:  StoreError for a part that is not as it was written.
        """
        table = pa.concat_tables([FAILURE_SCHEMA.empty_table(), *self.read_failures()])
        self.check_rows(table.num_rows, FAILURES)
        return table

    def read_failures(self) -> Iterator[pa.Table]:
        """Yield the failures of each part, as `failures` has them. Raises: StoreError, as that."""
        return (self.locate_all(self.files.read(path)) for path in self.parts(FAILURES))

    def check_rows(self, rows: int, folder: str = EMBEDDINGS) -> None:
        """Raise StoreError where the run is over, and the parts have another number of rows than it counted."""
        counts = self.manifest.counts
        expected = counts and counts["written" if folder == EMBEDDINGS else "failed"]
        if counts is None or rows == expected or read_manifest(self.path / MANIFEST) != self.manifest:
            return  # also where a job began on the output since it was opened
        found = f"parts hold {rows:,} rows"
        remedy = f"Run clip verify {self.path} to find the damage."
        raise StoreError(self.path, found, f"{expected:,} as the manifest says", remedy)

    def check_complete(self) -> None:
        """Raise StoreError where the run is over, and parts lack rows or failures, by their footers."""
        for folder in (EMBEDDINGS, FAILURES):
            self.check_rows(sum(self.files.summarise(path).rows for path in self.parts(folder)), folder)

    def vectors(self) -> np.ndarray:
        """Return the vectors in the order of `table`, mapped from the file _index/vectors.npy.

        The first call writes that file, and so does a call after the parts have changed. Where it cannot be written,
        the vectors are read into memory. The first call of a Store compares the file with its checksums.

        Shapes:  float32 or float16 (N, D), read-only.
        Raises:  StoreError for a part, or a file of vectors, that is not as it was written.
        """
        path, stamp = self.index_folder / VECTORS, self.stamp()
        self.check_rows(stamp["rows"])
        checks = _read_checks(path.with_name(STAMP), stamp, self._count_bytes(stamp["rows"]))
        if checks is None or not path.is_file():
            try:
                checks = self._write_vectors(path, stamp)
                self._checked = _identify(path, checks)
            except OSError as exc:
                _log.warning("%s: cannot be written (%s); the vectors are read into memory", path, exc)
                return np.concatenate([np.empty((0, self.dim), self._dtype), *self._read_blocks()])
        return self._map_vectors(path, stamp["rows"], checks)

    def check_vectors(self) -> None:
        """Compare the file of vectors with its checksums, if there is one of the present parts. Raises: StoreError."""
        path = self.index_folder / VECTORS
        try:
            content, carried = load_json(path.with_name(STAMP))
            if "checks" in content and not carried:
                raise ValueError("it carries no checksum")
        except FileNotFoundError:
            return
        except (OSError, ValueError) as exc:
            remedy = f"Remove {path.with_name(STAMP)}: it is made again when it is needed."
            raise StoreError(path, f"has no valid {STAMP} ({exc})", "it as it was written", remedy) from exc
        stamp = self.stamp()
        checks = _read_checks(path.with_name(STAMP), stamp, self._count_bytes(stamp["rows"]))
        if checks is not None and path.exists():
            self._map_vectors(path, stamp["rows"], checks)

    def _map_vectors(self, path: Path, rows: int, checks: list[int]) -> np.ndarray:
        header = _make_header(self._dtype, rows, self.dim)
        size_bytes = self._count_bytes(rows)
        remedy = f"Remove {path}: it is made again when it is needed."
        try:
            with open_regular(path) as file:
                begin = file.read(len(header))
                if begin != header or file.seek(0, 2) != len(header) + size_bytes:
                    raise StoreError(path, CHANGED, f"{rows:,} vectors of {self.dim}", remedy)
                if not rows:
                    return np.empty((0, self.dim), self._dtype)  # no file of 0 bytes can be mapped
                vectors = np.memmap(file, self._dtype, "r", len(header), (rows, self.dim))
                identity = _identify(path, checks)
        except OSError as exc:
            raise StoreError(path, f"cannot be read ({exc})", "the vectors of the run", remedy) from exc
        if self._checked != identity:
            for number, check in enumerate(_sum_blocks(vectors)):
                if check != checks[number]:
                    raise StoreError(path, CHANGED, "the vectors of the parts", remedy)
            self._checked = identity
        return vectors

    def _write_vectors(self, path: Path, stamp: dict[str, Any]) -> list[int]:
        self.make_index_folder()
        path.with_name(STAMP).unlink(missing_ok=True)  # first, so that the stamp never belongs to another file
        checks, check, room = [], 0, BLOCK_BYTES
        with atomic_write(path) as file:
            file.write(_make_header(self._dtype, stamp["rows"], self.dim))
            for block in self._read_blocks():
                data = memoryview(block.tobytes())
                file.write(data)
                while len(data):
                    check, data, room = zlib.crc32(data[:room], check), data[room:], room - len(data[:room])
                    if not room:
                        checks, check, room = [*checks, check], 0, BLOCK_BYTES
        checks += [check] if room < BLOCK_BYTES else []
        with atomic_write(path.with_name(STAMP)) as file:
            file.write(dump_json(stamp | {"checks": checks}))
        return checks

    def _read_blocks(self) -> Iterator[np.ndarray]:
        """Yield the vectors part by part. Shapes: (N, D) each."""
        for _, rows in self.read_parts([EMBEDDING]):
            yield stack_vectors(rows, self.schema)

    def _count_bytes(self, rows: int) -> int:
        return rows * self.dim * self._dtype.itemsize

    @property
    def _dtype(self) -> np.dtype[Any]:
        return np.dtype(self.manifest.dtype)

    def stamp(self) -> dict[str, Any]:
        """Return a hash of the parts' names, sizes and times, and the number of rows: what a derived file was made of.

        Raises:  StoreError for a part that cannot be read; OSError for one that is removed meanwhile.
        """
        identities = hashlib.sha256()
        rows = 0
        # A footer on an object store is a request, and a finished run has counted its rows.
        counts = self.manifest.counts if isinstance(self.path, ObjectPath) else None
        for path in self.parts():
            if path.is_symlink() and not path.exists():
                raise StoreError(path, "is a broken link", "a part as clip embed wrote it", "Remove it.")
            status = path.stat()
            identities.update(f"{path.name} {status.st_size} {status.st_mtime_ns}\n".encode())
            rows += self.files.summarise(path).rows if counts is None else 0
        rows = rows if counts is None else counts["written"]
        return {"parts": identities.hexdigest(), "rows": rows}


def stack_vectors(rows: pa.Table, schema: pa.Schema, column: str = EMBEDDING) -> np.ndarray:
    """Return the vectors in a column as one array; `Parts.read` has checked that none is null.

    Shapes:  float32 or float16 (N, D).
    """
    kind = schema.field(column).type
    chunks = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in rows.column(column).chunks]
    flat = np.concatenate([np.empty(0, kind.value_type.to_pandas_dtype()), *chunks])
    return flat.reshape(rows.num_rows, kind.list_size)


def _make_header(dtype: np.dtype[Any], rows: int, dim: int) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype.str, "fortran_order": False, "shape": (rows, dim)})
    return file.getvalue()


def _identify(path: Path, checks: list[int]) -> object:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns, *checks


def _sum_blocks(vectors: np.ndarray) -> Iterator[int]:
    """Yield the crc32 of each block of mapped vectors; threads compute them."""
    data = memoryview(vectors.reshape(-1).view(np.uint8).data)
    workers = available_cores()
    starts = range(0, len(data), BLOCK_BYTES)
    return map_ahead(lambda at: zlib.crc32(data[at : at + BLOCK_BYTES]), starts, workers=workers, ahead=2 * workers)


def _read_checks(path: Path, stamp: dict[str, Any], size_bytes: int) -> list[int] | None:
    """Return the checksums of the blocks of vectors that were made of these parts; None where there are none."""
    try:
        content, _ = load_json(path)
    except (OSError, ValueError):
        return None  # missing or incomplete: the file is written again
    checks = content.pop("checks", None)
    usable = isinstance(checks, list) and len(checks) == -(-size_bytes // BLOCK_BYTES)
    return checks if content == stamp and usable else None


def _make_missing_error(path: Path) -> StoreError:
    """Return the error for a path without vectors."""
    expected = "the output of clip embed"
    if not path.exists():
        return StoreError(path, "is not there", expected, "Check the path.")
    if not path.is_dir():
        return StoreError(path, "is a file", expected, "Check the path.")
    remedy = f"If it holds your images, run `clip embed {shlex.quote(str(path))} -o OUT` first, and pass OUT."
    return StoreError(path, "holds no vectors", expected, remedy)
