"""Exact nearest vectors: a scan of rounded vectors that provably misses none, then scores of the candidates.

The scan reads unit vectors in fp16, by faiss where it is installed, else by numpy. Every vector within twice the scan's
error of the k-th best is a candidate; `compute_scores` ranks the candidates.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..parallel import available_cores, map_ahead
from ..vectors import unit_vectors

if TYPE_CHECKING:
    from collections.abc import Callable

    Scan = Callable[[np.ndarray, np.ndarray, int], tuple[np.ndarray, np.ndarray]]

ScanEngine = Literal["faiss", "numpy"]
# Scores are whole numbers of these steps, 1e-9 each (about 2**-30). Two vectors of one direction may have float64
# cosines that differ by 1e-17: near 0 they would not be a tie in any relative precision, fp32 included.
STEPS_PER_UNIT = 1e9
CHUNK_ROWS = 16_384  # rows per task of a thread; 17 MB for 512 numbers
PIECE_ROWS = 256  # rows that numpy converts to fp32 at once: 0.5 MB, which caches hold
EXTRA_ROWS = 32  # rows beyond k that the scan of a chunk returns; with more near ties the chunk is scanned in full


def make_codes(vectors: np.ndarray) -> np.ndarray:
    """Return the vectors at unit length, rounded once. Shapes: float (N, D) -> float16 (N, D)."""
    wide = vectors.astype(np.float64)
    return unit_vectors(wide).astype(np.float16)


def bound_scan_error(dim: int) -> float:
    """Return the most by which the scan's value of a row may differ from its score.

    With u the unit vector, c its code, q the query, |u| = |q| = 1 and sum(|u q|) <= 1:
    - |c - u| <= 2**-11 |u| for each number, or 2**-25 where it is subnormal, so sum(|c - u| |q|) <= 2**-11 + 2**-25
      sqrt(D);
    - the query's rounding to fp32, 2**-24;
    - a sum of D products in fp32, in any order, D 2**-24 / (1 - D 2**-24) of sum(|c q|) <= 1.001;
    - the score's rounding, half a step, and that of its float64 sums, below (D + 4) 2**-51; together at most 2**-24 for
      D <= 2**26.
    Source:  Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition, section 3.1.
    """
    ulp = 2.0**-24
    summed = 1.001 * dim * ulp / (1 - dim * ulp)
    return 2.0**-11 + 2.0**-25 * dim**0.5 + 2 * ulp + summed


def find_candidates(
    codes: np.ndarray, query: np.ndarray, k: int, *, rows: np.ndarray | None = None, engine: ScanEngine
) -> np.ndarray:
    """Return the places of all vectors that may be among the k best, ties with the k-th included, in ascending order.

    Only the places in `rows` are scanned; default: all.

    Shapes:  codes float16 (N, D), query float64 (D,) of unit length -> int64 (M,), M >= min(k, N).
    """
    total = len(codes) if rows is None else len(rows)
    if total <= k:
        return np.arange(total) if rows is None else rows
    query = query.astype(np.float32)
    keep = k + EXTRA_ROWS
    scan = _scan_with_numpy
    if engine == "faiss":
        _import_faiss()  # before the threads, which would all import it at once
        scan = _scan_with_faiss

    def read_chunk(start: int) -> np.ndarray:
        stop = min(start + CHUNK_ROWS, total)
        return codes[start:stop] if rows is None else codes[rows[start:stop]]

    starts = range(0, total, CHUNK_ROWS)
    workers = available_cores()
    best = list(
        map_ahead(lambda start: scan(read_chunk(start), query, keep), starts, workers=workers, ahead=2 * workers)
    )
    values = np.concatenate([value for value, _ in best])
    kth = float(np.partition(values, len(values) - k)[len(values) - k])
    # Rounded down, as fp32 values are compared with it.
    bound = np.nextafter(np.float32(kth - 2 * bound_scan_error(codes.shape[1])), np.float32(-np.inf))
    near: list[np.ndarray] = []
    for start, (value, place) in zip(starts, best, strict=True):
        if len(value) == keep and value.min() >= bound:  # the chunk may hold more of them
            place = np.flatnonzero(_scan_all(read_chunk(start), query) >= bound)
        else:
            place = place[value >= bound]
        near.append(start + place)
    places = np.sort(np.concatenate(near))
    return places if rows is None else rows[places]


def compute_scores(vectors: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Return the scores of vectors: their cosines to a query of unit length, in float64, rounded to steps of 1e-9.

    Equal vectors have equal scores, and opposite vectors opposite ones, wherever they are and whatever else is in the
    array: `sum` adds the numbers of each contiguous row in an order that depends on D alone, which a BLAS product does
    not. A score is the float64 nearest to a decimal of nine digits, so what is shown is what is compared.

    Shapes:  float (N, D), float64 (D,) -> float64 (N,).
    """
    wide = vectors.astype(np.float64, order="C")
    norms = np.sqrt((wide * wide).sum(axis=1))
    cosines = (wide * query).sum(axis=1) / np.where(norms > 0, norms, 1)
    return np.rint(cosines * STEPS_PER_UNIT) / STEPS_PER_UNIT + 0.0  # + 0.0 makes 0.0 of -0.0


def _scan_all(codes: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Return the scan's values of all rows. Shapes: float16 (N, D), float32 (D,) -> float32 (N,)."""
    pieces = range(0, len(codes), PIECE_ROWS)
    return np.concatenate([codes[start : start + PIECE_ROWS].astype(np.float32) @ query for start in pieces])


def _scan_with_numpy(codes: np.ndarray, query: np.ndarray, keep: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the `keep` best values and their places, in any order; all where there are no more."""
    values = _scan_all(codes, query)
    if len(values) <= keep:
        return values, np.arange(len(values))
    places = np.argpartition(values, len(values) - keep)[len(values) - keep :]
    return values[places], places


def _scan_with_faiss(codes: np.ndarray, query: np.ndarray, keep: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the same by faiss's scan of fp16, which reads the codes in place and lets other threads run meanwhile.

    faiss's indexes would copy the vectors, and read mapped files of their own format unchecked. With a thread for each
    chunk a million vectors of 512 take 41 ms, not 76 (LOG.md).
    """
    faiss = _import_faiss()
    keep = min(keep, len(codes))
    quantizer = faiss.ScalarQuantizer(codes.shape[1], faiss.ScalarQuantizer.QT_fp16)
    scanner = quantizer.select_InvertedListScanner(faiss.METRIC_INNER_PRODUCT, None, True, None, False)
    values, places = np.full(keep, -np.inf, np.float32), np.full(keep, -1, np.int64)
    numbers = np.ascontiguousarray(codes).view(np.uint8).reshape(-1)
    scanner.set_query(faiss.swig_ptr(query))
    scanner.set_list(0, 0.0)
    scanner.scan_codes(len(codes), faiss.swig_ptr(numbers), None, faiss.swig_ptr(values), faiss.swig_ptr(places), keep)
    return values, places


@cache
def _import_faiss() -> Any:
    import faiss  # here, because it comes with the extra `search`

    return faiss


@cache
def choose_engine() -> ScanEngine:
    """Return "faiss" where it is installed, else "numpy"."""
    try:
        _import_faiss()
    except ImportError:
        return "numpy"
    return "faiss"
