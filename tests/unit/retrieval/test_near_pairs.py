"""The pass over all pairs: none is missed, whichever of their numbers are compared first."""

import numpy as np
import pytest

from clip.retrieval import near_pairs
from clip.retrieval.near_pairs import find_near_pairs, sample_cosines


def draw_codes(rows: int, dim: int, seed: int = 0) -> np.ndarray:
    """Lopsided vectors, as those of photos are: a large mean, a few strong factors; and near copies."""
    rng = np.random.default_rng(seed)
    factors = rng.standard_normal((8, dim)) * 0.25
    vectors = 3 * rng.standard_normal(dim) + rng.standard_normal((rows, 8)) @ factors
    vectors += 0.9 * rng.standard_normal((rows, dim))
    copies = rng.integers(0, rows, rows // 10)
    vectors[rng.permutation(rows)[: len(copies)]] = vectors[copies] + 0.3 * rng.standard_normal((len(copies), dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


def brute_force(codes: np.ndarray, bound: float) -> set[tuple[int, int]]:
    wide = codes.astype(np.float64)
    return set(zip(*map(np.ndarray.tolist, np.nonzero(np.triu(wide @ wide.T, 1) >= bound)), strict=True))


def found(codes: np.ndarray, bound: float, most: int = 10**6) -> dict[tuple[int, int], float]:
    pairs: dict[tuple[int, int], float] = {}
    for block in find_near_pairs(codes, bound, most=most):
        for first, second, cosine in zip(block.first, block.second, block.cosine, strict=True):
            assert (first, second) not in pairs
            pairs[int(first), int(second)] = float(cosine)
    return pairs


@pytest.mark.parametrize(("rows", "bound"), [(0, 0.9), (1, 0.9), (2, 0.1), (700, 0.97), (5_000, 0.97), (5_000, 0.94)])
def test_all_pairs_of_at_least_the_bound_are_found(rows: int, bound: float) -> None:
    codes = draw_codes(rows, 64) if rows else np.empty((0, 64), np.float16)
    pairs = found(codes, bound)
    assert set(pairs) >= brute_force(codes, bound)
    assert set(pairs) <= brute_force(codes, bound - 0.003)
    assert len(pairs) > 100 or rows < 5_000


def test_many_rows_are_compared_by_fewer_numbers_first() -> None:
    codes = draw_codes(5_000, 64)
    assert near_pairs._choose_basis(codes, 0.97)[1] < 64
    assert near_pairs._choose_basis(codes, 0.1)[1] == 64  # where nearly all pairs are near it would save nothing


def test_of_a_crowd_the_nearest_are_kept_and_it_is_said() -> None:
    codes = np.repeat(draw_codes(3, 64), 300, axis=0)
    pairs = found(codes, 0.99, most=5)
    firsts = [first for first, _ in pairs]
    assert max(map(firsts.count, set(firsts))) == 5
    assert sum(block.crowded for block in find_near_pairs(codes, 0.99, most=5)) == 3 * (300 - 6)
    assert {(0, 1), (0, 5), (400, 401)} <= set(pairs)
    assert (0, 6) not in pairs


def test_cosines_are_sampled() -> None:
    codes = draw_codes(50, 64)
    wide = codes.astype(np.float64)
    every = np.sort((wide @ wide.T)[np.triu_indices(50, 1)])
    assert sample_cosines(codes, 2_000) == pytest.approx(every, abs=1e-5)
    some = sample_cosines(draw_codes(900, 64), 2_000)
    assert len(some) == 2_000
    assert (np.diff(some) >= 0).all()
    assert some.max() < 1.0001
