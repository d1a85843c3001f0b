"""OUT/_index/exact.index: the vectors of an output at unit length in fp16, ready to be scanned.

One checksummed file, derived from rows.index beside it (store/rows_file.py) and deletable, with the section

    codes     the vectors at unit length, float16 (N, D)

The header has a kind ("exact"), a version, rows, dim, and the stamp of the parts, which is that of the rows. A rename
replaces all of it at once: a process that has it open keeps what it opened, whatever a job does to the parts.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from filelock import FileLock

from ..atomic_files import atomic_write, open_regular, remove_temporaries, translate_os_errors
from ..errors import StoreError
from ..store.checksummed_file import ChecksummedFile, SectionWriter
from ..store.lock import check_guard
from ..store.reader import Store
from ..store.rows_file import ROWS_FILE, VECTOR_BLOCK_ROWS, RowsFile, open_derived, open_temporary
from .scan import ScanEngine, choose_engine, compute_scores, find_candidates, make_codes

if TYPE_CHECKING:
    from collections.abc import Callable


FILE, LOCK = "exact.index", ".exact.guard"
KIND, VERSION = "exact", 2
CODES_BLOCK = 2**22  # all of these are checked when the file is opened [Unit: byte]
CONVERTED_ROWS = 8_192  # vectors that are converted to codes at once, in float64

_log = logging.getLogger("clip")


class ExactIndex:
    """The index of an output, mapped."""

    def __init__(self, file: ChecksummedFile, rows: RowsFile) -> None:
        """Check the codes. Raises: StoreError if they are damaged, or do not fit the rows."""
        self._file, self.rows = file, rows
        file.check("codes")
        if len(file.view("codes")) != len(rows) * rows.dim * 2:
            raise file.report_damage("its sections do not fit each other")
        self._codes = np.frombuffer(file.view("codes"), np.float16).reshape(-1, rows.dim)

    def check(self) -> None:
        """Check the rest too. Raises: StoreError if it is damaged."""
        self._file.check_all()
        self.rows.check()

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
        return rank(self.rows, places, scores, k)

    @property
    def codes(self) -> np.ndarray:
        """The vectors at unit length, rounded, mapped. Shapes: float16 (N, D)."""
        return self._codes

    def _compute_scores(self, places: np.ndarray, query: np.ndarray) -> np.ndarray:
        """Score the rows at these places, in ascending order. Shapes: int64 (M,) -> float64 (M,)."""
        scores = np.empty(len(places))
        blocks, starts = np.unique(places // VECTOR_BLOCK_ROWS, return_index=True)
        stops = np.append(starts, len(places))[1:]
        for block, start, stop in zip(blocks.tolist(), starts, stops, strict=True):
            stored = self.rows.read_block(block)
            scores[start:stop] = compute_scores(stored[places[start:stop] - block * VECTOR_BLOCK_ROWS], query)
        self.rows.release(places)
        return scores


def rank(rows: RowsFile, places: np.ndarray, scores: np.ndarray, k: int) -> list[tuple[int, float]]:
    """Return the k places of the highest scores, and these, the best first; of equal scores the lower id first.

    Shapes:  int64 (M,), float64 (M,).
    Raises:  StoreError if the rows are damaged.
    """
    if len(scores) > k:
        best = scores >= np.partition(scores, len(scores) - k)[len(scores) - k]  # ties with the k-th too
        places, scores = places[best], scores[best]
    ids = rows.take(places.tolist(), ["id"]).column("id").to_pylist()
    ranked = sorted(zip((-scores).tolist(), ids, places.tolist(), strict=True))
    return [(place, -negated) for negated, _, place in ranked[:k]]


def open_index(store: Store, tell: Callable[[str], None] = lambda _: None) -> ExactIndex:
    """Return the index of an output; make it first where there is none of the parts as they are now.

    `tell` is called with a message before it is made. Where OUT cannot be written, a temporary file is made.

    Raises:  StoreError if it, or a part, is damaged; StoreBusyError if a job keeps changing the parts.
    """
    index = _open_current(store.find_rows(), store)
    if index is None:
        tell(f"{store.index_folder / FILE}: being made, as none fits the present parts")
        index = _make_anywhere(store)
    store.check_rows(len(index.rows))
    return index


def _make_anywhere(store: Store) -> ExactIndex:
    rows = store.make_rows()
    try:
        return _make(store, rows)
    except OSError as exc:
        _log.warning("%s: cannot be written (%s); the index is made in a temporary file", store.index_folder, exc)
    with open_temporary() as file:
        _write(file, rows)
        file.flush()
        return ExactIndex(ChecksummedFile(file, str(store.index_folder / FILE)), rows)


def check_index(store: Store) -> tuple[ExactIndex, bool]:
    """Return the index of an output, all of it checked, and whether it was made now, as a damaged one is.

    Raises:  as `open_index`; StoreError if it cannot be written.
    """
    try:
        index = _open_current(store.find_rows(), store)
        if index is not None:
            index.check()
            return index, False
    except StoreError as exc:
        _log.warning("%s", exc)
    rows = check_rows(store)
    with translate_os_errors(store.index_folder):
        (store.index_folder / FILE).unlink(missing_ok=True)
        return _make(store, rows), True


def check_rows(store: Store, progress: Callable[[int, int], None] = lambda _done, _total: None) -> RowsFile:
    """Return the rows of an output, all of them checked; a damaged file is made again. Raises: as `check_index`."""
    try:
        rows = store.find_rows()
        if rows is not None:
            rows.check()
            return rows
    except StoreError as exc:
        _log.warning("%s", exc)
    with translate_os_errors(store.index_folder):
        store.make_index_folder()  # which no link may lead out of the output
        (store.index_folder / ROWS_FILE).unlink(missing_ok=True)
    return store.make_rows(progress)


def _open_current(rows: RowsFile | None, store: Store) -> ExactIndex | None:
    """Return the index in OUT; None where there is none of these rows. Raises: StoreError if it is damaged."""
    file = None if rows is None else open_derived(store.index_folder / FILE)
    if rows is None or file is None:
        return None
    of_now = {"kind": KIND, "version": VERSION, "stamp": rows.stamp}
    if any(file.header.get(key) != value for key, value in of_now.items()):
        return None
    return ExactIndex(file, rows)


def _make(store: Store, rows: RowsFile) -> ExactIndex:
    """Make the index, unless another process does so meanwhile. Raises: OSError if it cannot be written."""
    folder = store.make_index_folder()
    with FileLock(check_guard(folder / LOCK)):
        index = _open_current(rows, store)  # another process may have made it while this one waited
        if index is not None:
            return index
        remove_temporaries(folder, FILE)
        with atomic_write(folder / FILE) as file:
            _write(file, rows)
    with open_regular(folder / FILE) as file:
        return ExactIndex(ChecksummedFile(file, str(folder / FILE)), rows)


def _write(file: BinaryIO, rows: RowsFile) -> None:
    """Write the codes and the header."""
    writer = SectionWriter(file)
    codes = writer.add_section("codes", CODES_BLOCK)
    for start in range(0, len(rows), CONVERTED_ROWS):
        codes.write(make_codes(rows.read_span(start, min(start + CONVERTED_ROWS, len(rows)))))
    writer.finish({"kind": KIND, "version": VERSION, "rows": len(rows), "dim": rows.dim, "stamp": rows.stamp})
