"""Exact search: what the scan of fp16 passes on is enough, and what is made of it is what a slow oracle says."""

import math
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.exact import exact_scores, near_zero

from clip.retrieval import scan as scan_module
from clip.retrieval.scan import ScanEngine, bound_scan_error, compute_scores, find_candidates, make_codes

ENGINES: list[ScanEngine] = ["faiss", "numpy"]


@pytest.fixture(autouse=True, scope="module")
def small_chunks() -> Iterator[None]:
    """So that a few rows are several chunks, and a few ties more than a chunk's scan gives at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scan_module, "CHUNK_ROWS", 16)
        patch.setattr(scan_module, "PIECE_ROWS", 5)
        patch.setattr(scan_module, "EXTRA_ROWS", 2)
        yield


def unit(vector: np.ndarray) -> np.ndarray:
    wide = vector.astype(np.float64)
    return wide / np.linalg.norm(wide)


def oracle(vectors: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Exact scores. Shapes: (N, D), (D,) -> (N,)."""
    return np.array(exact_scores(vectors, query))


@st.composite
def collections(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of which many are equal, multiples of each other, or nearer to each other than fp16 can tell; a query."""
    dim = draw(st.sampled_from([1, 2, 3, 8, 33]))
    count = draw(st.integers(1, 90))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    pool = rng.standard_normal((draw(st.integers(1, 6)), dim))
    pool[np.abs(pool).max(axis=1) == 0] = 1
    vectors = pool[rng.integers(0, len(pool), count)]
    vectors = vectors + draw(st.sampled_from([0, 1e-7, 1e-5, 3e-4, 1])) * rng.standard_normal(vectors.shape)
    vectors = vectors * draw(st.sampled_from([1, 2.0**-20, 1e10])) * rng.choice([1, 2, 4], (count, 1))
    vectors = vectors.astype(np.float32)
    vectors[~vectors.any(axis=1)] = 1
    query = pool[0] + draw(st.sampled_from([0, 1e-4, 1])) * rng.standard_normal(dim)
    kind = draw(st.sampled_from([None, "orthogonal", "nearly orthogonal", "opposite", "mixed"]))
    if kind is not None and dim > 1:
        query = rng.integers(1, 9, dim).astype(float)
        vectors = near_zero(kind, rng, query, count)
    return vectors, unit(query if np.linalg.norm(query) > 1e-9 else np.ones(dim))


@pytest.mark.parametrize("engine", ENGINES)
@given(made=collections(), k=st.integers(1, 40))
def test_candidates_hold_the_k_nearest_and_all_ties(
    engine: ScanEngine, made: tuple[np.ndarray, np.ndarray], k: int
) -> None:
    vectors, query = made
    exact = oracle(vectors, query)
    found = find_candidates(make_codes(vectors), query, k, engine=engine)
    kth = np.sort(exact)[-min(k, len(exact))]
    assert set(np.flatnonzero(exact >= kth)) <= set(found.tolist())
    assert found.tolist() == sorted(set(found.tolist()))


@pytest.mark.parametrize("engine", ENGINES)
@given(made=collections(), k=st.integers(1, 10), seed=st.integers(0, 99))
def test_some_rows_are_searched_as_if_there_were_no_others(
    engine: ScanEngine, made: tuple[np.ndarray, np.ndarray], k: int, seed: int
) -> None:
    vectors, query = made
    rows = np.flatnonzero(np.random.default_rng(seed).random(len(vectors)) < 0.5)
    found = find_candidates(make_codes(vectors), query, k, rows=rows, engine=engine)
    exact = oracle(vectors, query)
    kth = np.sort(exact[rows])[-min(k, len(rows))] if len(rows) else 0
    assert {row for row in rows.tolist() if exact[row] >= kth} <= set(found.tolist()) <= set(rows.tolist())


def test_few_candidates_are_enough_where_vectors_differ() -> None:
    vectors = np.random.default_rng(0).standard_normal((2_000, 64)).astype(np.float32)
    for engine in ENGINES:
        assert len(find_candidates(make_codes(vectors), unit(vectors[7]), 10, engine=engine)) < 20


@pytest.mark.parametrize("dim", [1, 32, 512, 1024])
def test_no_score_of_a_scan_is_further_from_the_cosine_than_its_bound(dim: int) -> None:
    """Also where all numbers lie half way between two of fp16, and the query picks the errors up."""
    rng = np.random.default_rng(dim)
    vectors = rng.standard_normal((64, dim))
    halfway = np.full((1, dim), np.sqrt(1 / dim))
    halfway = np.ldexp(np.floor(np.ldexp(halfway, 11 - np.frexp(halfway)[1])) + 0.499, np.frexp(halfway)[1] - 11)
    vectors = np.concatenate([vectors, halfway, vectors**9]).astype(np.float32)
    worst = 0.0
    for query in (unit(vectors[0]), unit(halfway[0]), unit(vectors[0] ** 9)):
        scores = [place_score for engine in ENGINES for place_score in _all_scores(engine, vectors, query)]
        worst = max(worst, float(np.abs(np.array(scores) - np.tile(oracle(vectors, query), 2).astype(float)).max()))
    assert worst <= bound_scan_error(dim) < 7e-4
    assert worst > 1e-5 or dim == 1  # a unit vector of one number is 1 or -1


def _all_scores(engine: ScanEngine, vectors: np.ndarray, query: np.ndarray) -> list[float]:
    scan = {"faiss": scan_module._scan_with_faiss, "numpy": scan_module._scan_with_numpy}[engine]
    scores, places = scan(make_codes(vectors), query.astype(np.float32), len(vectors))
    return scores[np.argsort(places)].astype(float).tolist()


def test_unit_codes_are_rounded_once() -> None:
    """Through fp32 a number just above the middle of two of fp16 would be rounded to the middle, and then down."""
    middle = Fraction(1) + Fraction(1, 2**11)  # between 1 and its next in fp16
    above = float(middle + Fraction(1, 2**30))
    vectors = np.array([[above * 2.0**-20, 1.0]])  # of length 1 in float64
    assert make_codes(vectors)[0, 0] == np.float16(above * 2.0**-20 / math.hypot(above * 2.0**-20, 1))
    assert np.float64(above).astype(np.float32).astype(np.float16) == 1.0 != np.float64(above).astype(np.float16)


@given(made=collections())
def test_scores_are_exact_cosines_in_steps(made: tuple[np.ndarray, np.ndarray]) -> None:
    vectors, query = made
    scores = compute_scores(vectors, query)
    assert scores.tolist() == oracle(vectors, query).tolist()
    assert compute_scores(-vectors, query).tolist() == (-scores).tolist()
    assert "-0.0" not in map(str, scores.tolist())


@pytest.mark.parametrize("dim", [2, 3, 5, 64, 512, 513])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_equal_vectors_at_the_border_of_a_step_have_equal_scores_in_any_place(dim: int, dtype: type) -> None:
    """The query is turned until the score changes: there an error of 1e-17 in one of the cosines would show."""
    rng = np.random.default_rng(dim)
    row = rng.standard_normal(dim).astype(dtype)
    other = unit(rng.standard_normal(dim))

    def turned(share: float) -> np.ndarray:
        return unit(other + share * unit(row))

    def score(share: float) -> float:
        return float(compute_scores(row[None], turned(share))[0])

    low, high = 0.0, 1e-6
    assert score(low) < score(high)
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if score(middle) == score(0.0) else (low, middle)
    others = rng.standard_normal((100, dim)).astype(dtype)
    for share in (low, high):
        for count in (1, 2, 3, 64, 100):
            for place in range(count):
                block = others[:count].copy()
                block[[place, place // 2]] = row
                scores = compute_scores(np.asfortranarray(block) if place % 2 else block, turned(share))
                assert scores[place] == scores[place // 2] == score(share)


def test_without_faiss_numpy_scans(monkeypatch: pytest.MonkeyPatch) -> None:
    assert scan_module.choose_engine() == "faiss"

    def missing() -> None:
        raise ImportError("no faiss")

    monkeypatch.setattr(scan_module, "_import_faiss", missing)
    scan_module.choose_engine.cache_clear()
    try:
        assert scan_module.choose_engine() == "numpy"
    finally:
        scan_module.choose_engine.cache_clear()
