"""Vectors drawn like those of OpenAI's trained ViT-B/32, which are lopsided: a few numbers hold most of each.

Random vectors are not: an index or a quantiser that is right for them may be poor for real ones.
"""

from functools import cache
from typing import Literal

import numpy as np

from kit import GOLDEN

FACTORS = 96
DIM = 512


@cache
def _read() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "vectors.npz") as file:
        return {name: file[name].astype(np.float32) for name in file.files}


def draw(kind: Literal["photo", "text"], count: int, rng: np.random.Generator) -> np.ndarray:
    """Vectors of photos, or of prompts "a NAME", of unit length. Shapes: -> float32 (count, 512)."""
    of = _read()
    vectors = rng.standard_normal((count, FACTORS), np.float32) @ of[f"{kind}_factors"] + of[f"{kind}_mean"]
    vectors += rng.standard_normal((count, DIM), np.float32) * of[f"{kind}_rest"]
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
