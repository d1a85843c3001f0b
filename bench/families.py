"""The image towers that are not OpenAI's beside the libraries they come from: transformers, and open_clip with timm.

Usage: python bench/families.py [--models ViT-B-16-SigLIP-256,PE-Core-B-16] [--turns 7] [--batch 4]
       [--precision fp32]

Weights are drawn at random, the same for both; images are bytes for ours, which it normalises itself, and tensors that
are normalised already for theirs. Both run in this process, one after the other in each turn, theirs with the thread
count that is best for it. A line of JSON a model on stdout: median seconds a batch, images a second, their ratio, and
the largest difference of the features, of a row's RMS. It needs these libraries beside the package.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import paths  # noqa: F401  before the others, so that they find what they import
import torch
from records import cores

import clip
from clip.network.records import SiglipArchitecture
from clip.weights.checkpoints import draw_checkpoint
from clip.weights.pe_layouts import from_pe
from clip.weights.siglip_layouts import from_siglip

if TYPE_CHECKING:
    from collections.abc import Callable

    from clip.network.records import Checkpoint

    Encode = Callable[[torch.Tensor], torch.Tensor]

SEED = 0


def load_theirs(name: str, checkpoint: Checkpoint) -> Encode:
    """The library's image tower with these weights. Shapes: (B, 3, R, R) -> (B, D)."""
    if isinstance(checkpoint.architecture, SiglipArchitecture):
        from kit.siglip import transformers_config
        from transformers import SiglipConfig, SiglipModel

        siglip = SiglipModel(SiglipConfig(**transformers_config(checkpoint.architecture))).eval()
        siglip.load_state_dict(from_siglip(checkpoint.state_dict, "transformers"))
        return lambda images: siglip.get_image_features(pixel_values=images).pooler_output
    import open_clip

    model: Any = open_clip.create_model(name).eval()
    model.load_state_dict(from_pe(checkpoint.state_dict, "open_clip"))
    return model.encode_image


def time_once(run: Callable[[], Any]) -> float:
    """Seconds of a call."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def choose_threads(run: Callable[[], Any]) -> int:
    """The thread count at which torch is fastest, which is set."""
    found: dict[int, float] = {}
    for threads in {1, cores()}:
        torch.set_num_threads(threads)
        run()
        found[threads] = min(time_once(run) for _ in range(2))
    best = min(found, key=lambda threads: found[threads])
    torch.set_num_threads(best)
    return best


@torch.inference_mode()
def compare(name: str, batch: int, turns: int, precision: Any) -> dict[str, object]:
    """Measure a model."""
    checkpoint = draw_checkpoint(name, SEED)
    side = checkpoint.architecture.image_resolution
    pixels = np.random.default_rng(SEED).integers(0, 256, (batch, side, side, 3), np.uint8)
    images = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
    theirs, ours = load_theirs(name, checkpoint), clip.Encoder(name, untrained=SEED, precision=precision)
    features = ours.encode_pixels(pixels)
    wanted = theirs(images).numpy()
    error = np.abs(features - wanted).max(axis=1) / np.sqrt(np.square(wanted).mean(axis=1))
    threads = choose_threads(lambda: theirs(images))
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(turns):
        seconds["ours"].append(time_once(lambda: ours.encode_pixels(pixels)))
        seconds["theirs"].append(time_once(lambda: theirs(images)))
    medians = {who: float(np.median(found)) for who, found in seconds.items()}
    return {
        "model": name, "batch": batch, "precision": precision, "turns": turns, "threads": threads,
        "seconds": {who: round(found, 4) for who, found in medians.items()},
        "images_per_s": {who: round(batch / found, 2) for who, found in medians.items()},
        "ratio": round(medians["theirs"] / medians["ours"], 3), "worst_of_rms": float(f"{error.max():.1e}"),
    }  # fmt: skip


def main() -> None:
    """Measure the models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="ViT-B-16-SigLIP-256,PE-Core-B-16")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--precision", default="fp32")
    asked = parser.parse_args()
    for name in asked.models.split(","):
        sys.stdout.write(json.dumps(compare(name, asked.batch, asked.turns, asked.precision)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
