"""Measure `model.encode_image` beside `Encoder.encode_image` and eager, in turns in one process, and print a table.

Usage: python bench/fast_path.py [--models ViT-B/32,...] [--turns 7]. Weights are drawn at random: speed does not depend
on them. All three get the same tensors under no_grad; ratios are medians of the turns' ratios.
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

TURN_S = 0.5  # a turn repeats calls for this long, at most


def seconds(call: Callable[[], object]) -> float:
    """Return the time of a call, the median of a turn."""
    times: list[float] = []
    while sum(times) < TURN_S and len(times) < 50:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure(name: str, batch: int, turns: int) -> str:
    """Return a line of the table."""
    model = load_model(draw_checkpoint(name, 0), torch.device("cpu"))
    encoder, side = clip.Encoder(model, batch_size=max(BATCHES["cpu"][name], batch)), model.visual.input_resolution
    images = torch.randn(batch, 3, side, side)
    calls = {"encoder": lambda: encoder.encode_image(images), "fast": lambda: model.encode_image(images)}

    def eager() -> None:
        model.fast = False
        model.encode_image(images)
        model.fast = True

    first = time.perf_counter()
    with torch.no_grad():
        model.encode_image(images)
        first = time.perf_counter() - first
        encoder.encode_image(images)
        del encoder._engine._state_dict  # the weights that it holds would be the model's too
        rows = [{key: seconds(call) for key, call in (calls | {"eager": eager}).items()} for _ in range(turns)]
    check = check_us(model)
    of_encoder = statistics.median(row["encoder"] / row["fast"] for row in rows)
    of_eager = statistics.median(row["eager"] / row["fast"] for row in rows)
    fast_ms = statistics.median(row["fast"] for row in rows) * 1e3
    return f"| {name} | {batch} | {fast_ms:.1f} | {of_encoder:.2f} | {of_eager:.2f} | {first:.2f} | {check:.0f} |"


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
    parser.add_argument("--turns", type=int, default=7)
    options = parser.parse_args()
    print("| model | batch | model.encode_image, ms | of Encoder's speed | of eager's | first call, s | check, us |")
    print("| --- " * 7 + "|")
    for name in options.models.split(","):
        for batch in sorted({1, BATCHES["cpu"][name]}):
            print(measure(name, batch, options.turns), flush=True)


if __name__ == "__main__":
    main()
