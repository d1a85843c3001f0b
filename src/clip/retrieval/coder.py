"""Coder: vectors -> the short codes of an IVF index, and the scan of such codes for a query.

faiss computes both. Its own index files are not read: matrices and ranges come out of sections with checksums, and the
codes that are scanned lie in a mapped file.

    sq8       a quarter of the numbers, the strongest after a turn into the eigenvectors of a sample, a byte for each
    rabitq4   all numbers after a turn at random, and less the middle of the list, half a byte for each
    fp16      all numbers, two bytes for each

Real vectors are lopsided, so that a quarter of the turned numbers ranks nearly as all do. How many rows have to be
compared again is measured for each index (recall.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..jobs.index import Codes

TURN_SEED = 4
RABITQ_BITS = 4  # of a number
STEPS = 127  # of sq8, on either side of the middle
LEAST_WIDTH = 64  # numbers; of shorter vectors all are coded
OFFSET_BITS = 32  # of what a scanner returns of a code: the number of its piece, and its place in that


def import_faiss() -> Any:
    """Return the module faiss. Raises: MissingExtraError where it is not installed."""
    try:
        import faiss  # here, because it comes with the extra `search`
    except ImportError as exc:
        found = "needs faiss, which is not installed"
        raise MissingExtraError("`type`", found, remedy="Run: pip install 'clip-turbo[search]'") from exc
    return faiss


def count_width(kind: Codes, dim: int) -> int:
    """Return how many numbers of a turned vector are coded."""
    return dim if kind != "sq8" else min(dim, max(LEAST_WIDTH, -(-dim // 64) * 16))


def choose_turn(kind: Codes, sample: np.ndarray) -> np.ndarray:
    """Return the matrix that vectors are multiplied by before they are coded. Shapes: float32 (N, D) -> (D, W)."""
    dim = sample.shape[1]
    if kind == "rabitq4":  # which has one scale for all numbers
        draw = np.random.default_rng(TURN_SEED).standard_normal((dim, dim))
        return np.ascontiguousarray(np.linalg.qr(draw)[0], np.float32)
    moments = (sample.T @ sample).astype(np.float64)
    basis = np.linalg.eigh(moments)[1][:, ::-1]
    return np.ascontiguousarray(basis[:, : count_width(kind, dim)], np.float32)


def choose_ranges(kind: Codes, turned: np.ndarray) -> np.ndarray:
    """Return the middle and the step of each number, for sq8. Shapes: float32 (N, W) -> (2, W), else (0, W)."""
    if kind != "sq8":
        return np.empty((0, turned.shape[1]), np.float32)
    low, high = turned.min(axis=0), turned.max(axis=0)
    return np.stack([(low + high) / 2, np.maximum(high - low, 1e-6) / (2 * STEPS)]).astype(np.float32)


class Coder:
    """Codes of one kind. It may be used from several threads."""

    def __init__(self, kind: Codes, turn: np.ndarray, ranges: np.ndarray, centroids: np.ndarray) -> None:
        """Take what `choose_turn` and `choose_ranges` returned, and the middles of the lists, float32 (L, W)."""
        self._faiss = faiss = import_faiss()
        self._turn, self._ranges = turn, ranges
        lists, width = centroids.shape
        self._quantizer = faiss.IndexFlatIP(width)  # which the index only points to
        metric, quantizer = faiss.METRIC_INNER_PRODUCT, faiss.ScalarQuantizer
        self.is_relative = kind == "rabitq4"
        """Whether codes depend on their list, so that each list is scanned by itself."""
        if self.is_relative:
            self._quantizer.add(np.ascontiguousarray(centroids))
            self._index = faiss.IndexIVFRaBitQ(self._quantizer, width, lists, metric, False, RABITQ_BITS)
        else:
            number = quantizer.QT_8bit_direct_signed if kind == "sq8" else quantizer.QT_fp16
            self._index = faiss.IndexIVFScalarQuantizer(self._quantizer, width, lists, number, metric, False, False)
        self._index.is_trained = True
        self._idle: list[Any] = []  # scanners, which are used again: faiss has no way to free one from Python
        self.code_bytes: int = self._index.code_size

    def turn(self, vectors: np.ndarray) -> np.ndarray:
        """Return the numbers of vectors that are coded. Shapes: float32 (N, D) -> (N, W)."""
        return vectors @ self._turn

    def encode(self, turned: np.ndarray, lists: np.ndarray) -> np.ndarray:
        """Return the codes of turned vectors in these lists. Shapes: float32 (N, W), int64 (N,) -> uint8 (N, B)."""
        if len(self._ranges):
            middle, step = self._ranges
            return (np.rint((turned - middle) / step).clip(-STEPS, STEPS) + 128).astype(np.uint8)
        turned, lists = np.ascontiguousarray(turned, np.float32), np.ascontiguousarray(lists, np.int64)
        codes = np.zeros((len(turned), self.code_bytes), np.uint8)
        if len(turned):
            pointer = self._faiss.swig_ptr
            self._index.encode_vectors(len(turned), pointer(turned), pointer(lists), pointer(codes), False)
        return codes

    def scan(
        self,
        turned: np.ndarray,
        pieces: Iterable[tuple[int, float, np.ndarray, np.ndarray | None]],
        keep: int,
        chosen: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the `keep` highest products of a turned query with codes, in any order.

        Those of sq8 are all times one number, and less another: in the same order.

        Each piece is a number, of a list where codes are relative, with the product of its centroid and the query; and
        its codes. Of each product it is returned which code it is of: the piece's number times 2 ** 32, and the place
        in it. With `chosen` each piece has rows, which are returned instead, and only those of them are looked at whose
        bit is set there, as `numpy.packbits` in little order sets them.

        Shapes:  float32 (W,); codes uint8 (n, B), rows int64 (n,); chosen uint8 -> float32 (M,), int64 (M,).
        """
        pointer = self._faiss.swig_ptr
        selector = None if chosen is None else self._faiss.IDSelectorBitmap(8 * len(chosen), pointer(chosen))
        idle = self._idle if selector is None else []
        scanner = idle.pop() if idle else self._index.get_InvertedListScanner(chosen is None, selector, None)
        query = np.ascontiguousarray(self._fold_steps(turned) if len(self._ranges) else turned, np.float32)
        scanner.set_query(pointer(query))
        values, found = np.full(keep, -np.inf, np.float32), np.full(keep, -1, np.int64)
        for number, product, codes, rows in pieces:
            ids = None if rows is None else pointer(rows)
            scanner.set_list(number, product)
            scanner.scan_codes(len(codes), pointer(codes), ids, pointer(values), pointer(found), keep)
        idle.append(scanner)
        there = found >= 0
        return values[there], found[there]

    def _fold_steps(self, turned: np.ndarray) -> np.ndarray:
        """Return a query for codes that are multiples of steps, in whole numbers of up to 127: faiss cuts others off.

        It multiplies bytes with bytes then, instead of floats.
        """
        folded = turned * self._ranges[1]
        return np.rint(folded * (STEPS / max(float(np.abs(folded).max()), 1e-30)))
