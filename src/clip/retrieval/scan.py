"""The vectors nearest to a query: a scan of rounded ones that provably misses none, and exact cosines.

The scan reads unit vectors in fp16, by faiss where it is installed, else by numpy. What is within twice the error of
such a scan of the k-th best is a candidate; which of them are the best is for `cosines` to say. Knows nothing about
files.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..parallel import available_cores, map_ahead

if TYPE_CHECKING:
    from collections.abc import Callable

    Scan = Callable[[np.ndarray, np.ndarray, int], tuple[np.ndarray, np.ndarray]]

ScanEngine = Literal["faiss", "numpy"]
CHUNK_ROWS = 16_384  # scanned at a time by a thread; of 512 numbers 17 MB
PIECE_ROWS = 256  # turned into fp32 at a time by numpy: 0.5 MB, which caches hold
EXTRA = 32  # rows beyond k that a chunk's scan gives at once; more near ties than that are looked for one by one


def unit_codes(vectors: np.ndarray) -> np.ndarray:
    """Vectors of unit length, rounded once. Shapes: float (N, D) -> float16 (N, D)."""
    wide = vectors.astype(np.float64)
    return (wide / np.linalg.norm(wide, axis=1, keepdims=True)).astype(np.float16)


def scan_error(dim: int) -> float:
    """The most by which a score of the scan may differ from the cosine, rounded to fp32.

    With u the unit vector, c its code, q the query, |u| = |q| = 1 and sum(|u q|) <= 1:
    - |c - u| <= 2**-11 |u| for each number, or 2**-25 where it is subnormal, so sum(|c - u| |q|) <= 2**-11 + 2**-25
      sqrt(D);
    - the query's rounding to fp32, and that of the exact cosine, 2**-24 each;
    - a sum of D products in fp32, in any order, D 2**-24 / (1 - D 2**-24) of sum(|c q|) <= 1.001.
    Source:  Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition, section 3.1.
    """
    ulp = 2.0**-24
    summed = 1.001 * dim * ulp / (1 - dim * ulp)
    return 2.0**-11 + 2.0**-25 * dim**0.5 + 2 * ulp + summed


def candidates(
    codes: np.ndarray, query: np.ndarray, k: int, *, rows: np.ndarray | None = None, engine: ScanEngine
) -> np.ndarray:
    """Places of all vectors that may be among the k nearest, ties with the k-th included, in ascending order.

    `rows` are the places to look at, all without.

    Shapes:  codes float16 (N, D), query float64 (D,) of unit length -> int64 (M,), M >= min(k, N).
    """
    total = len(codes) if rows is None else len(rows)
    if total <= k:
        return np.arange(total) if rows is None else rows
    query = query.astype(np.float32)
    keep = k + EXTRA
    scan = _numpy_best
    if engine == "faiss":
        _faiss()  # before the threads, which would all import it at once
        scan = _faiss_best

    def block(start: int) -> np.ndarray:
        stop = min(start + CHUNK_ROWS, total)
        return codes[start:stop] if rows is None else codes[rows[start:stop]]

    starts = range(0, total, CHUNK_ROWS)
    workers = available_cores()
    found = map_ahead(lambda start: scan(block(start), query, keep), starts, workers=workers, ahead=2 * workers)
    best = list(found)
    scores = np.concatenate([score for score, _ in best])
    bound = np.partition(scores, len(scores) - k)[len(scores) - k] - 2 * scan_error(codes.shape[1])
    near: list[np.ndarray] = []
    for start, (score, place) in zip(starts, best, strict=True):
        if len(score) == keep and score.min() >= bound:  # there may be more of them
            place = np.flatnonzero(_scores(block(start), query) >= bound)
        else:
            place = place[score >= bound]
        near.append(start + place)
    places = np.sort(np.concatenate(near))
    return places if rows is None else rows[places]


def cosines(vectors: np.ndarray, query: np.ndarray) -> np.ndarray:
    """The cosines of vectors to a query of unit length, computed in float64 and rounded to fp32.

    A row's cosine is the same in any place of an array of this shape. NumPy may sum arrays of other shapes in another
    order, so call it with one shape.

    Shapes:  float (N, D), float64 (D,) -> float32 (N,).
    """
    wide = vectors.astype(np.float64)
    norms = np.sqrt((wide * wide).sum(axis=1))
    return ((wide * query).sum(axis=1) / np.where(norms > 0, norms, 1)).astype(np.float32)


def _scores(codes: np.ndarray, query: np.ndarray) -> np.ndarray:
    """All scores. Shapes: float16 (N, D), float32 (D,) -> float32 (N,)."""
    pieces = range(0, len(codes), PIECE_ROWS)
    return np.concatenate([codes[start : start + PIECE_ROWS].astype(np.float32) @ query for start in pieces])


def _numpy_best(codes: np.ndarray, query: np.ndarray, keep: int) -> tuple[np.ndarray, np.ndarray]:
    """The best scores and their places, in any order, all where there are no more than asked for."""
    scores = _scores(codes, query)
    if len(scores) <= keep:
        return scores, np.arange(len(scores))
    places = np.argpartition(scores, len(scores) - keep)[len(scores) - keep :]
    return scores[places], places


def _faiss_best(codes: np.ndarray, query: np.ndarray, keep: int) -> tuple[np.ndarray, np.ndarray]:
    """The same by faiss's scan of fp16, which reads the codes where they are. It lets other threads run meanwhile."""
    faiss = _faiss()
    keep = min(keep, len(codes))
    quantizer = faiss.ScalarQuantizer(codes.shape[1], faiss.ScalarQuantizer.QT_fp16)
    scanner = quantizer.select_InvertedListScanner(faiss.METRIC_INNER_PRODUCT, None, True, None, False)
    scores, places = np.full(keep, -np.inf, np.float32), np.full(keep, -1, np.int64)
    numbers = np.ascontiguousarray(codes).view(np.uint8).reshape(-1)
    scanner.set_query(faiss.swig_ptr(query))
    scanner.set_list(0, 0.0)
    scanner.scan_codes(len(codes), faiss.swig_ptr(numbers), None, faiss.swig_ptr(scores), faiss.swig_ptr(places), keep)
    return scores, places


@cache
def _faiss() -> Any:
    import faiss  # here, because it comes with the extra `search`

    return faiss


@cache
def scan_engine() -> ScanEngine:
    """What scans here: faiss where it is installed."""
    try:
        _faiss()
    except ImportError:
        return "numpy"
    return "faiss"
