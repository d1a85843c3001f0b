"""Cosines in exact arithmetic, rounded once: what a score must be, whatever the order of its sums."""

from math import isqrt

import numpy as np
from hypothesis import assume, currently_in_test_context

STEPS = 10**9  # per unit of cosine
SCALE = 2**1100  # makes every float64 a whole number
PARTS = 10**6  # of a step
NEAR_HALVES = 20  # half parts: 1e-14


def near_zero(kind: str, rng: np.random.Generator, query: np.ndarray, count: int) -> np.ndarray:
    """Return vectors of a few directions, most of them many times and at several lengths, nearly orthogonal to a query.

    Shapes:  float (D,), of whole numbers, D > 1 -> float32 (N, D).
    """
    pool = np.zeros((4, len(query)))
    for row in pool:
        first, second = rng.choice(len(query), 2, replace=False)
        row[first], row[second] = query[second], -query[first]
        if kind == "nearly orthogonal" or (kind == "mixed" and rng.random() < 0.5):
            row *= 2.0 ** rng.integers(10, 18)
            row[first] += rng.choice([-1, 1])
    vectors = pool[rng.integers(0, len(pool), count)] * rng.choice([1, 2, 3, 7], (count, 1))
    if kind in ("opposite", "mixed"):
        vectors *= rng.choice([-1, 1], (count, 1))
    return vectors.astype(np.float32)


def exact_scores(vectors: np.ndarray, query: np.ndarray) -> list[float]:
    """Return the cosines to a query in steps of 1e-9; an example that float64 may round otherwise is passed over.

    Such an example has a cosine within 1e-14 of the border between two steps: float64 sums of 40 products err by less.

    Shapes:  float (N, D), float (D,) -> N.
    """
    query_numbers = _as_integers(query)
    query_square = sum(y * y for y in query_numbers)
    scores: list[float] = []
    for row in vectors:
        numbers = _as_integers(row)
        dot = sum(x * y for x, y in zip(numbers, query_numbers, strict=True))
        squares = sum(x * x for x in numbers) * query_square
        halves = isqrt(4 * dot * dot * (STEPS * PARTS) ** 2 // squares)  # of a part of a step
        if abs(halves % (2 * PARTS) - PARTS) <= NEAR_HALVES:
            assert currently_in_test_context(), "choose other numbers"
            assume(False)
        steps = (halves + PARTS) // (2 * PARTS)
        scores.append((steps if dot >= 0 else -steps) / STEPS)
    return scores


def _as_integers(numbers: np.ndarray) -> list[int]:
    return [n * (SCALE // d) for n, d in map(float.as_integer_ratio, numbers.astype(float).tolist())]
