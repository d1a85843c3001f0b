"""OUT/_index/exact.index: an output's rows and vectors, ready to be searched. Knows nothing about texts or models.

Sections of one file (sections.py), derived from the parts and deletable:

    codes     the vectors, of unit length, float16 (N, D), for a scan
    vectors   the vectors as they are stored (N, D), for exact cosines
    rows      the other columns, an Arrow stream

The header tells a kind ("exact"), a version, rows, dim, dtype, and the stamp of the parts it was made of. Other kinds
of index may come to stand beside it in files of their own. All in one file, because a rename then changes all of it
at once: who has it open goes on with what it had, whatever a job does to the parts.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import pyarrow as pa
from filelock import FileLock

from ..atomic_files import atomic_write, remove_temporaries, translate_os_errors
from ..errors import StoreBusyError, StoreError
from ..store.manifest import INDEX
from ..store.parts import read_part, read_schema
from ..store.reader import Store, stack_vectors
from .checksummed_file import Sections, SectionWriter
from .scan import candidates, cosines, scan_engine, unit_codes

if TYPE_CHECKING:
    from collections.abc import Callable

    from .scan import ScanEngine

FILE, GUARD = "exact.index", ".exact.guard"
KIND, VERSION = "exact", 1
CODES_BLOCK, ROWS_BLOCK = 2**22, 2**20  # all of these are checked when the file is opened [Unit: byte]
VECTOR_BLOCK_ROWS = 64  # these are checked when they are used, some for each candidate
CONVERTED_ROWS = 8_192  # vectors that are made unit codes at a time, in float64
TRIES = 3  # to read parts that a job changes meanwhile

_log = logging.getLogger("clip")


class Indexed:
    """An index, mapped."""

    def __init__(self, sections: Sections) -> None:
        """Check the codes and rows. Raises: StoreError where they are damaged."""
        self._sections = sections
        told = sections.header
        self.stamp: dict[str, Any] = told["stamp"]
        self._shape = (told["rows"], told["dim"])
        self._dtype = np.dtype(told["dtype"])
        sections.check("codes")
        sections.check("rows")
        self._codes = np.frombuffer(sections.view("codes"), np.float16).reshape(self._shape)
        self.rows: pa.Table = pa.ipc.open_stream(pa.py_buffer(sections.view("rows"))).read_all()

    def check(self) -> None:
        """Check the vectors too. Raises: StoreError where they are damaged."""
        self._sections.check("vectors")

    def nearest(
        self, query: np.ndarray, k: int, *, rows: np.ndarray | None = None, engine: ScanEngine | None = None
    ) -> list[tuple[int, np.float32]]:
        """The k best rows and their cosines, the best first; of equal ones the lower id first. Exact.

        Shapes:  query float64 (D,), of unit length; `rows`, int64, are the places to look at, all without.
        Raises:  StoreError where vectors are damaged.
        """
        near = candidates(self._codes, query, k, rows=rows, engine=engine or scan_engine())
        scores = self._cosines(near, query)
        if len(scores) > k:
            kept = scores >= np.partition(scores, len(scores) - k)[len(scores) - k]  # ties with the k-th too
            near, scores = near[kept], scores[kept]
        ids = self.rows.column("id")
        found = [(-score, ids[place].as_py(), place) for place, score in zip(near.tolist(), scores, strict=True)]
        return [(place, -negated) for negated, _, place in sorted(found)[:k]]

    def _cosines(self, places: np.ndarray, query: np.ndarray) -> np.ndarray:
        """Shapes: int64 (M,), ascending -> float32 (M,)."""
        scores = np.empty(len(places), np.float32)
        of_block = places // VECTOR_BLOCK_ROWS
        blocks, starts = np.unique(of_block, return_index=True)
        rows = np.zeros((VECTOR_BLOCK_ROWS, self._shape[1]), self._dtype)  # one shape, for `cosines`
        stops = np.append(starts, len(places))[1:]
        for block, start, stop in zip(blocks.tolist(), starts, stops, strict=True):
            stored = np.frombuffer(self._sections.checked("vectors", block), self._dtype).reshape(-1, self._shape[1])
            rows[: len(stored)] = stored
            scores[start:stop] = cosines(rows, query)[places[start:stop] - block * VECTOR_BLOCK_ROWS]
        self._sections.forget("vectors", blocks.tolist())
        return scores


def opened(store: Store, tell: Callable[[str], None] = lambda _: None) -> Indexed:
    """The index of an output; it is made, or made again, where there is none of the parts as they are now.

    `tell` is told before that. Where OUT cannot be written, it is made in a temporary file.

    Raises:  StoreError where it, or a part, is damaged; StoreBusyError where a job changes the parts all the time.
    """
    found = _standing(store)
    if found is not None:
        return found
    tell(f"{store.path / INDEX / FILE}: being made, as there is none of the parts as they are")
    try:
        return _remade(store)
    except OSError as exc:
        _log.warning("%s: cannot be written (%s); the index is made in a temporary file", store.path / INDEX, exc)
    with translate_os_errors(Path(tempfile.gettempdir())), tempfile.TemporaryFile() as file:
        _write(file, store)
        file.flush()
        return Indexed(Sections(file, str(store.path / INDEX / FILE)))


def indexed(store: Store) -> tuple[Indexed, bool]:
    """The index of an output, all of it checked; and whether it had to be made, as a damaged one has.

    Raises:  as `opened`; StoreError where it cannot be written.
    """
    try:
        found = _standing(store)
        if found is not None:
            found.check()
            return found, False
    except StoreError as exc:
        _log.warning("%s", exc)
        (store.path / INDEX / FILE).unlink(missing_ok=True)
    with translate_os_errors(store.path / INDEX):
        return _remade(store), True


def _standing(store: Store) -> Indexed | None:
    """The index that stands; None where there is none, or one of other parts or of another version.

    Raises:  StoreError where it is damaged.
    """
    path = store.path / INDEX / FILE
    try:
        with path.open("rb") as file:
            sections = Sections(file, str(path))
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise StoreError(
            path,
            f"cannot be read ({exc})",
            "an index",
            "Check its permissions.",
        ) from exc
    told = sections.header
    if (told["kind"], told["version"]) != (KIND, VERSION) or told["stamp"] != _stamp(store):
        return None
    return Indexed(sections)


def _remade(store: Store) -> Indexed:
    """Raises OSError where it cannot be written."""
    folder = store.path / INDEX
    folder.mkdir(exist_ok=True)
    with FileLock(folder / GUARD):
        found = _standing(store)  # which another process may have made while this one waited
        if found is not None:
            return found
        remove_temporaries(folder, FILE)
        with atomic_write(folder / FILE) as file:
            _write(file, store)
    with (folder / FILE).open("rb") as file:
        return Indexed(Sections(file, str(folder / FILE)))


def _stamp(store: Store) -> dict[str, Any] | None:
    """None where a part goes while it is looked at."""
    try:
        return store.stamp()
    except FileNotFoundError:
        return None


def _write(file: BinaryIO, store: Store) -> None:
    """Write all sections, of parts that did not change meanwhile."""
    for _ in range(TRIES):
        file.seek(0)
        file.truncate()
        stamp = _stamp(store)
        try:
            if stamp is not None and _sections_written(file, store, stamp) and _stamp(store) == stamp:
                return
        except StoreError:
            if _stamp(store) == stamp:
                raise  # else it was of a part that is gone
    raise StoreBusyError(
        store.path,
        "its parts change while they are read",
        "them to stand still for a while",
        "Wait for the job that is at work there, and try again.",
    )


def _sections_written(file: BinaryIO, store: Store, stamp: dict[str, Any]) -> bool:
    """Whether there were as many rows as the stamp says."""
    dtype, total = np.dtype(store.manifest.dtype), stamp["rows"]
    row_bytes = store.dim * dtype.itemsize
    writer = SectionWriter(file)
    codes = writer.section("codes", CODES_BLOCK, total * store.dim * 2)
    vectors = writer.section("vectors", VECTOR_BLOCK_ROWS * row_bytes, total * row_bytes)
    parts = store.parts()
    for path in parts:
        table = read_part(path, ["id", "embedding"])
        block = stack_vectors(table, store.schema)
        for start in range(0, len(block), CONVERTED_ROWS):
            some = block[start : start + CONVERTED_ROWS]
            _check_usable(path, table.column("id").slice(start), some)
            codes.write(unit_codes(some))
            vectors.write(np.ascontiguousarray(some))
    if vectors.size_bytes != total * row_bytes:
        return False
    rows = writer.section("rows", ROWS_BLOCK)
    schema = pa.schema([field for field in (read_schema(parts[0]) if parts else store.schema) if not _is_vector(field)])
    with pa.ipc.new_stream(rows, schema) as stream:
        for path in parts:
            table = read_part(path, schema.names)
            if not table.schema.equals(schema):
                raise StoreError(
                    path,
                    f"its columns are {table.schema.names}",
                    f"{schema.names}, of the same types in all parts",
                    "Run the job again with `overwrite=True`.",
                )
            stream.write_table(table)
    head = {"kind": KIND, "version": VERSION, "rows": total, "dim": store.dim, "dtype": dtype.name}
    writer.finish({**head, "stamp": stamp})
    return True


def _is_vector(field: pa.Field) -> bool:
    return pa.types.is_fixed_size_list(field.type)


def _check_usable(path: Path, ids: pa.ChunkedArray, vectors: np.ndarray) -> None:
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1)
    for place in np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))[:1]:
        raise StoreError(
            path,
            f"{ids[place].as_py()!r} has a vector of norm {norms[place]}",
            "one above 0",
            "Remove the part, and run the job again.",
        )
