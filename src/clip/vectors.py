"""Scale vectors to unit length, and tell which of them can be scaled."""

from __future__ import annotations

import numpy as np


def unit_vectors(vectors: np.ndarray) -> np.ndarray:
    """Divide vectors by their L2 norm. Shapes: float (..., D) -> the same, in the same dtype."""
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def usable_norms(norms: np.ndarray) -> np.ndarray:
    """Return which norms a vector can be divided by: those that are finite and above 0. Shapes: (N,) -> bool (N,)."""
    return np.isfinite(norms) & (norms > 0)
