"""Unit vectors, and the norms that make none."""

import numpy as np
import pytest

from clip.vectors import unit_vectors, usable_norms


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(4, 7), (7,), (2, 4, 7)])
def test_vectors_keep_their_direction_and_their_dtype(shape: tuple[int, ...], dtype: type) -> None:
    vectors = np.random.default_rng(0).normal(size=shape).astype(dtype)
    unit = unit_vectors(vectors)
    assert unit.dtype == dtype
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=-1, keepdims=True)
    assert np.abs(unit * lengths - vectors).max() < 4 * np.finfo(dtype).eps * lengths.max()


def test_only_a_finite_norm_above_0_can_be_divided_by() -> None:
    norms = np.array([1e-30, 1.0, 0.0, np.inf, np.nan], np.float32)
    assert usable_norms(norms).tolist() == [True, True, False, False, False]
