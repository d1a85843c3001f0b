"""OUT/_index/exact.index: an output's rows and vectors, ready to be searched.

One checksummed file, derived from the parts and deletable, with the sections

    codes     the vectors at unit length, float16 (N, D), for the scan
    vectors   the vectors as they are stored (N, D), for the scores
    rows      the other columns, an Arrow stream

The header has a kind ("exact"), a version, rows, dim, dtype, and the stamp of the parts. Other kinds of index may get
files beside it. It is a single file because a rename then replaces all of it at once: a process that has it open keeps
what it opened, whatever a job does to the parts. That is why it repeats the stored vectors and the other columns.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import pyarrow as pa
from filelock import FileLock

from ..atomic_files import atomic_write, open_regular, remove_temporaries, translate_os_errors
from ..errors import StoreBusyError, StoreError
from ..store.checksummed_file import ChecksummedFile, SectionWriter
from ..store.lock import check_guard
from ..store.reader import Store, stack_vectors
from ..vectors import usable_norms
from .scan import ScanEngine, choose_engine, compute_scores, find_candidates, make_codes

if TYPE_CHECKING:
    from collections.abc import Callable


FILE, LOCK = "exact.index", ".exact.guard"
KIND, VERSION = "exact", 1
CODES_BLOCK, ROWS_BLOCK = 2**22, 2**20  # all of these are checked when the file is opened [Unit: byte]
VECTOR_BLOCK_ROWS = 64  # these are checked when they are used: one block per candidate, at most
CONVERTED_ROWS = 8_192  # vectors that are converted to codes at once, in float64
TRIES = 3  # to read parts that a job changes meanwhile

_log = logging.getLogger("clip")


class ExactIndex:
    """The index of an output, mapped."""

    def __init__(self, file: ChecksummedFile, store: Store) -> None:
        """Check the codes and rows. Raises: StoreError if they are damaged, or do not fit the output."""
        self._file = file
        self._dim, self._dtype = store.dim, np.dtype(store.manifest.dtype)
        file.check("codes")
        file.check("rows")
        try:
            self._codes = np.frombuffer(file.view("codes"), np.float16).reshape(-1, self._dim)
            self.rows: pa.Table = pa.ipc.open_stream(pa.py_buffer(file.view("rows"))).read_all()
            self.rows.validate(full=True)
        except (ValueError, pa.ArrowException, OSError, MemoryError) as exc:
            raise file.report_damage(f"it holds no rows ({exc})") from exc
        count = self.rows.num_rows
        texts = [self.rows.schema.field(name).type for name in ("id", "path") if name in self.rows.column_names]
        if (
            texts != [pa.string()] * 2
            or any(self.rows.column(name).null_count for name in ("id", "path"))
            or (len(self._codes), len(file.view("vectors"))) != (count, count * self._dim * self._dtype.itemsize)
            or file.block_bytes("vectors") != VECTOR_BLOCK_ROWS * self._dim * self._dtype.itemsize
        ):
            raise file.report_damage("its sections do not fit each other")

    def check(self) -> None:
        """Check the rest too. Raises: StoreError if it is damaged."""
        self._file.check_all()

    def find_nearest(
        self, query: np.ndarray, k: int, *, rows: np.ndarray | None = None, engine: ScanEngine | None = None
    ) -> list[tuple[int, float]]:
        """Return the k best rows and their scores, the best first; of equal scores the lower id first. Exact.

        Only the places in `rows`, int64, are searched; default: all.

        Shapes:  query float64 (D,), of unit length.
        Raises:  StoreError if vectors are damaged.
        """
        places = find_candidates(self._codes, query, k, rows=rows, engine=engine or choose_engine())
        scores = self._compute_scores(places, query)
        if len(scores) > k:
            best = scores >= np.partition(scores, len(scores) - k)[len(scores) - k]  # ties with the k-th too
            places, scores = places[best], scores[best]
        ids = self.rows.column("id")
        ranked = sorted(
            (-score, ids[place].as_py(), place) for place, score in zip(places.tolist(), scores.tolist(), strict=True)
        )
        return [(place, -negated) for negated, _, place in ranked[:k]]

    @property
    def codes(self) -> np.ndarray:
        """The vectors at unit length, rounded, mapped. Shapes: float16 (N, D)."""
        return self._codes

    def read_vector(self, place: int) -> np.ndarray:
        """Return the vector of a row as it is stored. Shapes: (D,). Raises: StoreError if it is damaged."""
        block, row = divmod(place, VECTOR_BLOCK_ROWS)
        stored = np.frombuffer(self._file.read_block("vectors", block), self._dtype).reshape(-1, self._dim)
        vector = stored[row].copy()
        self._file.release("vectors", [block])
        return vector

    def _compute_scores(self, places: np.ndarray, query: np.ndarray) -> np.ndarray:
        """Score the rows at these places, in ascending order. Shapes: int64 (M,) -> float64 (M,)."""
        scores = np.empty(len(places))
        blocks, starts = np.unique(places // VECTOR_BLOCK_ROWS, return_index=True)
        stops = np.append(starts, len(places))[1:]
        for block, start, stop in zip(blocks.tolist(), starts, stops, strict=True):
            stored = np.frombuffer(self._file.read_block("vectors", block), self._dtype).reshape(-1, self._dim)
            scores[start:stop] = compute_scores(stored[places[start:stop] - block * VECTOR_BLOCK_ROWS], query)
        self._file.release("vectors", blocks.tolist())
        return scores


def open_index(store: Store, tell: Callable[[str], None] = lambda _: None) -> ExactIndex:
    """Return the index of an output; make it first where there is none of the parts as they are now.

    `tell` is called with a message before it is made. Where OUT cannot be written, a temporary file is made.

    Raises:  StoreError if it, or a part, is damaged; StoreBusyError if a job keeps changing the parts.
    """
    index = _open_current(store)
    if index is None:
        index = _make_anywhere(store, tell)
    store.check_rows(index.rows.num_rows)
    return index


def _make_anywhere(store: Store, tell: Callable[[str], None]) -> ExactIndex:
    tell(f"{store.index_folder / FILE}: being made, as none fits the present parts")
    try:
        return _make(store)
    except OSError as exc:
        _log.warning("%s: cannot be written (%s); the index is made in a temporary file", store.index_folder, exc)
    with translate_os_errors(Path(tempfile.gettempdir())), tempfile.TemporaryFile() as file:
        _write(file, store)
        file.flush()
        return ExactIndex(ChecksummedFile(file, str(store.index_folder / FILE)), store)


def check_index(store: Store) -> tuple[ExactIndex, bool]:
    """Return the index of an output, all of it checked, and whether it was made now, as a damaged one is.

    Raises:  as `open_index`; StoreError if it cannot be written.
    """
    try:
        index = _open_current(store)
        if index is not None:
            index.check()
            return index, False
    except StoreError as exc:
        _log.warning("%s", exc)
    with translate_os_errors(store.index_folder):
        folder = store.make_index_folder()  # which no link may lead out of the output
        (folder / FILE).unlink(missing_ok=True)
        return _make(store), True


def _open_current(store: Store) -> ExactIndex | None:
    """Return the index in OUT; None where there is none, or one of other parts or of another version.

    Raises:  StoreError if it is damaged.
    """
    path = store.index_folder / FILE
    try:
        with open_regular(path) as opened:
            file = ChecksummedFile(opened, str(path))
    except FileNotFoundError:
        if path.is_symlink():
            raise StoreError(path, "is a broken link", "it as it was written", "Remove it.") from None
        return None
    except OSError as exc:
        raise StoreError(path, f"cannot be read ({exc})", remedy="Check it, or run clip index to remake it.") from exc
    of_now = {"kind": KIND, "version": VERSION, "stamp": _read_stamp(store)}
    if any(file.header.get(key) != value for key, value in of_now.items()):
        return None
    return ExactIndex(file, store)


def _make(store: Store) -> ExactIndex:
    """Make the index, unless another process does so meanwhile. Raises: OSError if it cannot be written."""
    folder = store.make_index_folder()
    with FileLock(check_guard(folder / LOCK)):
        index = _open_current(store)  # another process may have made it while this one waited
        if index is not None:
            return index
        remove_temporaries(folder, FILE)
        with atomic_write(folder / FILE) as file:
            _write(file, store)
    with open_regular(folder / FILE) as file:
        return ExactIndex(ChecksummedFile(file, str(folder / FILE)), store)


def _read_stamp(store: Store) -> dict[str, Any] | None:
    """Return the stamp of the parts; None if one is removed meanwhile."""
    try:
        return store.stamp()
    except FileNotFoundError:
        return None


def _write(file: BinaryIO, store: Store) -> None:
    """Write all sections, from parts that did not change meanwhile."""
    for _ in range(TRIES):
        file.seek(0)
        file.truncate()
        stamp = _read_stamp(store)
        try:
            if stamp is not None and _write_sections(file, store, stamp) and _read_stamp(store) == stamp:
                return
        except StoreError:
            if _read_stamp(store) == stamp:
                raise  # else it is about a part that is gone
    found = "its parts change while they are read"
    raise StoreBusyError(store.path, found, remedy="Wait for the job that writes there, and try again.")


def _write_sections(file: BinaryIO, store: Store, stamp: dict[str, Any]) -> bool:
    """Write the sections and the header; return False if there are not as many rows as the stamp says."""
    dtype, total = np.dtype(store.manifest.dtype), stamp["rows"]
    row_bytes = store.dim * dtype.itemsize
    writer = SectionWriter(file)
    codes = writer.add_section("codes", CODES_BLOCK, total * store.dim * 2)
    vectors = writer.add_section("vectors", VECTOR_BLOCK_ROWS * row_bytes, total * row_bytes)
    parts = store.parts()
    for path, table in store.read_parts(["id", "embedding"]):
        stored = stack_vectors(table, store.schema)
        for start in range(0, len(stored), CONVERTED_ROWS):
            block = stored[start : start + CONVERTED_ROWS]
            _check_norms(path, table.column("id").slice(start), block)
            codes.write(make_codes(block))
            vectors.write(np.ascontiguousarray(block))
    if vectors.size_bytes != total * row_bytes:
        return False
    rows = writer.add_section("rows", ROWS_BLOCK)
    columns = store.files.read_schema(parts[0]) if parts else store.schema
    schema = pa.schema([field for field in columns if not pa.types.is_fixed_size_list(field.type)])  # no vectors
    with pa.ipc.new_stream(rows, schema) as stream:
        for path in parts:
            table = store.files.read(path, schema.names)
            if not table.schema.equals(schema):
                found = f"has the columns {table.schema.names}"
                remedy = "Run the job again with `overwrite=True`."
                raise StoreError(path, found, f"{schema.names}, of the same types in all parts", remedy)
            stream.write_table(table)
    header = {"kind": KIND, "version": VERSION, "rows": total, "dim": store.dim, "dtype": dtype.name}
    writer.finish({**header, "stamp": stamp})
    return True


def _check_norms(path: Path, ids: pa.ChunkedArray, vectors: np.ndarray) -> None:
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1)
    for place in np.flatnonzero(~usable_norms(norms))[:1]:
        found = f"{ids[place].as_py()!r} has a vector of norm {norms[place]}"
        raise StoreError(path, found, "one above 0", "Remove the part, and run the job again.")
