"""Exact search: what the scan of fp16 passes on is enough, and what is made of it is what a slow oracle says."""

import math
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip.retrieval import scan as scan_module
from clip.retrieval.scan import ScanEngine, candidates, cosines, scan_error, unit_codes

ENGINES: list[ScanEngine] = ["faiss", "numpy"]


@pytest.fixture(autouse=True, scope="module")
def small_chunks() -> Iterator[None]:
    """So that a few rows are several chunks, and a few ties more than a chunk's scan gives at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scan_module, "CHUNK_ROWS", 16)
        patch.setattr(scan_module, "PIECE_ROWS", 5)
        patch.setattr(scan_module, "EXTRA", 2)
        yield


def unit(vector: np.ndarray) -> np.ndarray:
    wide = vector.astype(np.float64)
    return wide / np.linalg.norm(wide)


def oracle(vectors: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Cosines in fp32, each number of a row alone. Shapes: (N, D), (D,) -> (N,)."""
    rows = [[float(x) for x in row] for row in vectors]
    norms = [math.sqrt(math.fsum(x * x for x in row)) for row in rows]
    dots = [math.fsum(x * y for x, y in zip(row, query.tolist(), strict=True)) for row in rows]
    return np.array([dot / norm for dot, norm in zip(dots, norms, strict=True)], np.float32)


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
    return vectors, unit(query if np.linalg.norm(query) > 1e-9 else np.ones(dim))


@pytest.mark.parametrize("engine", ENGINES)
@given(made=collections(), k=st.integers(1, 40))
def test_candidates_hold_the_k_nearest_and_all_ties(
    engine: ScanEngine, made: tuple[np.ndarray, np.ndarray], k: int
) -> None:
    vectors, query = made
    exact = oracle(vectors, query)
    found = candidates(unit_codes(vectors), query, k, engine=engine)
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
    found = candidates(unit_codes(vectors), query, k, rows=rows, engine=engine)
    exact = oracle(vectors, query)
    kth = np.sort(exact[rows])[-min(k, len(rows))] if len(rows) else 0
    assert {row for row in rows.tolist() if exact[row] >= kth} <= set(found.tolist()) <= set(rows.tolist())


def test_few_candidates_are_enough_where_vectors_differ() -> None:
    vectors = np.random.default_rng(0).standard_normal((2_000, 64)).astype(np.float32)
    for engine in ENGINES:
        assert len(candidates(unit_codes(vectors), unit(vectors[7]), 10, engine=engine)) < 20


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
    assert worst <= scan_error(dim) < 7e-4
    assert worst > 1e-5 or dim == 1  # a unit vector of one number is 1 or -1


def _all_scores(engine: ScanEngine, vectors: np.ndarray, query: np.ndarray) -> list[float]:
    scan = {"faiss": scan_module._faiss_best, "numpy": scan_module._numpy_best}[engine]
    scores, places = scan(unit_codes(vectors), query.astype(np.float32), len(vectors))
    return scores[np.argsort(places)].astype(float).tolist()


def test_unit_codes_are_rounded_once() -> None:
    """Through fp32 a number just above the middle of two of fp16 would be rounded to the middle, and then down."""
    middle = Fraction(1) + Fraction(1, 2**11)  # between 1 and its next in fp16
    above = float(middle + Fraction(1, 2**30))
    vectors = np.array([[above * 2.0**-20, 1.0]])  # of length 1 in float64
    assert unit_codes(vectors)[0, 0] == np.float16(above * 2.0**-20 / math.hypot(above * 2.0**-20, 1))
    assert np.float64(above).astype(np.float32).astype(np.float16) == 1.0 != np.float64(above).astype(np.float16)


def test_the_cosine_of_a_row_is_the_same_wherever_it_stands() -> None:
    rng = np.random.default_rng(1)
    for dim in (1, 2, 3, 5, 512, 513):
        row, query = rng.standard_normal(dim).astype(np.float32), unit(rng.standard_normal(dim))
        others = rng.standard_normal((64, dim)).astype(np.float32)
        found = set[float]()
        for place in range(64):
            block = others.copy()
            block[place] = row
            found.add(float(cosines(block, query)[place]))
        assert len(found) == 1


def test_without_faiss_numpy_scans(monkeypatch: pytest.MonkeyPatch) -> None:
    assert scan_module.scan_engine() == "faiss"

    def missing() -> None:
        raise ImportError("no faiss")

    monkeypatch.setattr(scan_module, "_faiss", missing)
    scan_module.scan_engine.cache_clear()
    try:
        assert scan_module.scan_engine() == "numpy"
    finally:
        scan_module.scan_engine.cache_clear()
