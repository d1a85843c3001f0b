"""Measure `model.encode_image` beside `Encoder.encode_image` and eager, in one process, and print a table.

Usage: python bench/fast_path.py [--models ViT-B/32,...]. Weights are drawn at random: speed does not depend on them.
All get the same tensors under no_grad. The first two take turns call by call, and their ratio is the median of those of
the pairs; by turns of half a second the same machine gave ratios from 0.82 to 1.02 for graphs that are the same.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import TYPE_CHECKING

import paths  # noqa: F401  before the others, so that they find what they import
import torch
from models import BATCHES

import clip
from clip.clip import load_model
from clip.weights.checkpoints import draw_checkpoint
from clip.weights.releases import RELEASES

if TYPE_CHECKING:
    from collections.abc import Callable

PAIRS_S = 40.0  # pairs of calls take so long together, at most
EAGER_S = 10.0  # likewise calls of the eager model
LEAST, MOST = 5, 150  # pairs


def seconds(call: Callable[[], object]) -> float:
    """Return the time of a call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def time_pairs(one: Callable[[], object], other: Callable[[], object]) -> list[tuple[float, float]]:
    """Time two calls in turns, each first every other time: what else the machine does falls on both."""
    pairs: list[tuple[float, float]] = []
    while len(pairs) < LEAST or (len(pairs) < MOST and sum(map(sum, pairs)) < PAIRS_S):
        if len(pairs) % 2:
            second = seconds(other)
            pairs.append((seconds(one), second))
        else:
            pairs.append((seconds(one), seconds(other)))
    return pairs


def measure(name: str, batch: int) -> str:
    """Return a line of the table."""
    model = load_model(draw_checkpoint(name, 0), torch.device("cpu"))
    encoder, side = clip.Encoder(model, batch_size=max(BATCHES["cpu"][name], batch)), model.visual.input_resolution
    images = torch.randn(batch, 3, side, side)

    def fast() -> torch.Tensor:
        return model.encode_image(images)

    with torch.no_grad():
        first = seconds(fast)
        encoder.encode_image(images)
        del encoder._engine._state_dict  # the weights that it holds would be the model's too
        pairs = time_pairs(lambda: encoder.encode_image(images), fast)
        check = check_us(model)
        model.fast = False
        eager: list[float] = [seconds(fast)]
        while len(eager) < LEAST or (len(eager) < MOST and sum(eager) < EAGER_S):
            eager.append(seconds(fast))
    fast_s = statistics.median(pair[1] for pair in pairs)
    of_encoder = statistics.median(pair[0] / pair[1] for pair in pairs)
    of_eager = statistics.median(eager) / fast_s
    numbers = f"{fast_s * 1e3:.1f} | {of_encoder:.3f} | {of_eager:.2f} | {first:.2f} | {check:.0f} | {len(pairs)}"
    return f"| {name} | {batch} | {numbers} |"


def check_us(model: clip.model.CLIP) -> float:
    """Return the microseconds of deciding for a call."""
    towers = vars(model)["_fast_paths"]
    with torch.no_grad():
        times = []
        for _ in range(50):
            start = time.perf_counter()
            towers.prepare(model, "image", requires_grad=False)
            times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default=",".join(RELEASES))
    options = parser.parse_args()
    print("| model | batch | model.encode_image, ms | of Encoder's speed | of eager's | first, s | check, us | pairs |")
    print("| --- " * 8 + "|")
    for name in options.models.split(","):
        for batch in sorted({1, BATCHES["cpu"][name]}):
            print(measure(name, batch), flush=True)


if __name__ == "__main__":
    main()
