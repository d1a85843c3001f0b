"""All pairs of rows whose cosine is at least a bound, exact, without comparing all numbers of all pairs.

The vectors are turned into a basis in which their first numbers hold most of each (the leading eigenvectors of a
sample). A vector is then its first d numbers p, and the length r of the rest, and by Cauchy and Schwarz

    cosine(x, y) <= p(x) . p(y) + r(x) r(y)

which is a product of d + 1 numbers instead of D. Pairs whose product reaches the bound are computed in full; no pair is
missed. The rows are compared block by block, so memory holds the d + 1 numbers of each row and one block of products.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..parallel import available_cores, map_ahead
from .scan import bound_scan_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BLOCK_ROWS, CHUNK_ROWS = 256, 2_048  # of a product: 2 MB, which caches hold
CONVERTED_ROWS = 16_384  # codes that are turned at once: 34 MB for 512 numbers
SAMPLE_ROWS = 4_096  # for the basis, and for how many pairs it leaves
WIDTHS = (32, 64, 96, 128, 192, 256, 384)  # numbers of a row that are compared first
# A pair that is left costs as much as so many numbers of a product: its vectors are gathered from all over the memory.
GATHER_COST = 20_000
GATHERED_PAIRS = 16_384  # computed at once: 64 MB
SLACK = 1e-5  # fp32 products of up to 1,024 numbers, and lengths of the rest, differ by less


@dataclass(frozen=True)
class Pairs:
    """Some pairs of rows: the first is always the lower one."""

    first: np.ndarray  # int64 (M,), in ascending order
    second: np.ndarray  # int64 (M,)
    cosine: np.ndarray  # float32 (M,), of the codes
    crowded: int = 0  # first rows of which only the nearest others are here


def sample_cosines(codes: np.ndarray, pairs: int, seed: int = 0) -> np.ndarray:
    """Return the cosines of pairs of different rows, drawn at random, in ascending order; all where there are few.

    Shapes:  codes float16 (N, D) -> float32 (M,), M <= pairs.
    """
    count = len(codes)
    if count * (count - 1) // 2 <= pairs:
        wide = codes.astype(np.float32)
        return np.sort((wide @ wide.T)[np.triu_indices(count, 1)])
    rng = np.random.default_rng(seed)
    first = np.sort(rng.integers(0, count, pairs))
    second = (first + rng.integers(1, count, pairs)) % count
    return np.sort(_compute_cosines(codes, first, second))


def find_near_pairs(
    codes: np.ndarray, bound: float, *, most: int, tell: Callable[[int], None] = lambda _: None
) -> Iterator[Pairs]:
    """Yield the pairs of rows whose cosine may be at least `bound`, by blocks of their first rows.

    None is missed, but of a row's later neighbours those beyond the `most` nearest. As codes are rounded, cosines of
    some are lower, by no more than twice `bound_scan_error`. `tell` is called with the number of rows that are done.

    Shapes:  codes float16 (N, D), of unit length.
    """
    least = bound - 2 * bound_scan_error(codes.shape[1])
    heads = _project(codes, *_choose_basis(codes, least))
    starts = range(0, len(codes), BLOCK_ROWS)
    workers = available_cores()
    blocks = map_ahead(
        lambda start: _compute_block(codes, heads, start, least, most), starts, workers=workers, ahead=2 * workers
    )
    for start, pairs in zip(starts, blocks, strict=True):
        yield pairs
        tell(min(start + BLOCK_ROWS, len(codes)))


def _compute_block(codes: np.ndarray, heads: np.ndarray, start: int, least: float, most: int) -> Pairs:
    """Return the pairs of a block of rows with all that come after them."""
    block = heads[start : start + BLOCK_ROWS]
    products = np.empty((len(block), CHUNK_ROWS), np.float32)
    reaches = np.empty((len(block), CHUNK_ROWS), np.bool_)
    found: list[Pairs] = []
    count = crowded = 0
    for chunk in range(start, len(codes), CHUNK_ROWS):
        width = min(CHUNK_ROWS, len(codes) - chunk)
        np.matmul(block, heads[chunk : chunk + width].T, out=products[:, :width])
        np.greater_equal(products[:, :width], np.float32(least - SLACK), out=reaches[:, :width])
        if chunk == start:  # where the block meets itself, each pair is there twice
            reaches[:, :width] &= ~np.tri(len(block), width, dtype=np.bool_)
        first, second = np.nonzero(reaches[:, :width])
        for at in range(0, len(first), GATHERED_PAIRS):
            one, other = first[at : at + GATHERED_PAIRS] + start, second[at : at + GATHERED_PAIRS] + chunk
            cosine = _compute_cosines(codes, one, other)
            near = cosine >= least
            found.append(Pairs(one[near], other[near], cosine[near]))
            count += len(found[-1].first)
        if count > 4 * most * BLOCK_ROWS:
            found = [_keep_nearest(found, most)]
            count, crowded = len(found[0].first), max(crowded, found[0].crowded)
    pairs = _keep_nearest(found, most)
    return Pairs(pairs.first, pairs.second, pairs.cosine, max(crowded, pairs.crowded))


def _keep_nearest(found: list[Pairs], most: int) -> Pairs:
    """Return the pairs of each first row with its nearest others, of equal cosines the first ones."""
    if not found:
        return Pairs(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
    first, second, cosine = (
        np.concatenate([getattr(part, name) for part in found]) for name in ("first", "second", "cosine")
    )
    order = np.lexsort((second, -cosine, first))
    first = first[order]
    starts = np.flatnonzero(np.diff(first, prepend=-1))
    counts = np.diff(starts, append=len(first))
    kept = np.arange(len(first)) - np.repeat(starts, counts) < most
    order = order[kept]
    return Pairs(first[kept], second[order], cosine[order], int(np.count_nonzero(counts > most)))


def _compute_cosines(codes: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    one, other = (codes[rows].astype(np.float32) for rows in (first, second))
    return np.einsum("nd,nd->n", one, other)


def _choose_basis(codes: np.ndarray, least: float) -> tuple[np.ndarray, int]:
    """Return a basis, the most important direction first, and how many of its numbers to compare first.

    Shapes:  -> float32 (D, D).
    """
    rows = np.unique(np.linspace(0, len(codes) - 1, min(len(codes), SAMPLE_ROWS)).astype(np.int64))
    sample = codes[rows].astype(np.float64)
    basis = np.linalg.eigh(sample.T @ sample)[1][:, ::-1]
    turned = (sample @ basis).astype(np.float32)
    dim = codes.shape[1]
    best, cheapest = dim, float(dim)
    if len(rows) < SAMPLE_ROWS:
        return basis.astype(np.float32), dim
    half = len(rows) // 2
    for width in (width for width in WIDTHS if width < dim):
        heads = _add_rest(turned, width)
        left = np.count_nonzero(heads[:half] @ heads[half:].T >= least - SLACK) / (half * (len(rows) - half))
        cost = width + 1 + left * GATHER_COST
        if cost < cheapest:
            best, cheapest = width, cost
    return basis.astype(np.float32), best


def _project(codes: np.ndarray, basis: np.ndarray, width: int) -> np.ndarray:
    """Return the first numbers of each row in a basis, and the rest's length. Shapes: -> float32 (N, width + 1)."""

    def turn(start: int) -> np.ndarray:
        return _add_rest(codes[start : start + CONVERTED_ROWS].astype(np.float32) @ basis, width)

    heads = np.empty((len(codes), width + 1), np.float32)
    starts = range(0, len(codes), CONVERTED_ROWS)
    workers = available_cores()
    for start, block in zip(starts, map_ahead(turn, starts, workers=workers, ahead=2 * workers), strict=True):
        heads[start : start + CONVERTED_ROWS] = block
    return heads


def _add_rest(turned: np.ndarray, width: int) -> np.ndarray:
    rest = np.linalg.norm(turned[:, width:], axis=1, keepdims=True)
    return np.concatenate([turned[:, :width], rest], axis=1)
