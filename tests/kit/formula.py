"""Weights and images by formula: what the golden tables were made on. Source: tests/golden/README.md."""

from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image

from clip.model import CLIP
from clip.network.meta_init import build_on_meta
from clip.network.records import Architecture
from clip.weights.releases import RELEASES
from kit.draws import entry, picture, picture_in_mode

__all__ = ["picture", "picture_in_mode"]  # of `draws`, for tests

TINY = {
    "tiny-vit": Architecture(32, 32, 2, 64, 8, 77, 49408, 64, 1, 2),
    "tiny-vit-wide": Architecture(48, 56, 3, 128, 14, 77, 49408, 128, 2, 2),
    "tiny-rn": Architecture(32, 64, (1, 1, 1, 1), 16, None, 77, 49408, 64, 1, 2),
    "tiny-rn-deep": Architecture(64, 96, (1, 2, 2, 1), 32, None, 77, 49408, 64, 1, 1),
}
ARCHITECTURES = TINY | {name: release.architecture for name, release in RELEASES.items()}
TEXTS = ["a diagram", "a photo of a dog, and a cat!"]


def layout(architecture: Architecture) -> CLIP:
    """The network without memory behind its weights."""
    return build_on_meta(lambda: CLIP(**vars(architecture)))


def entries(architecture: Architecture) -> Iterator[tuple[str, torch.Tensor]]:
    """The state dict, entry by entry, fp32."""
    for key, like in layout(architecture).state_dict().items():
        yield key, torch.from_numpy(np.asarray(entry(key, tuple(like.shape)), order="C"))


def state_dict(architecture: Architecture) -> dict[str, torch.Tensor]:
    return dict(entries(architecture))


def quarters(width: int, height: int) -> Image.Image:
    """An RGB image of four colours, from the top left: red A, green B, blue C, yellow D, with a pattern on them."""
    y, x = np.mgrid[0:height, 0:width]
    colours = np.array([(200, 40, 40), (40, 160, 40), (40, 40, 200), (200, 200, 40)])
    place = 2 * (y >= height // 2) + (x >= width // 2)
    return Image.fromarray((colours[place] + ((5 * x + 3 * y) % 31)[:, :, None]).astype(np.uint8))
