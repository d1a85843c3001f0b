"""Weights and images by formula: what the golden tables were made on. Source: tests/golden/README.md."""

import zlib
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image

from clip.model import CLIP
from clip.network.meta_init import build_on_meta
from clip.network.records import Architecture
from clip.weights.releases import RELEASES

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
        yield key, torch.from_numpy(np.asarray(_entry(key, tuple(like.shape)), order="C"))


def state_dict(architecture: Architecture) -> dict[str, torch.Tensor]:
    return dict(entries(architecture))


def _entry(key: str, shape: tuple[int, ...]) -> np.ndarray:
    if key.endswith("num_batches_tracked"):
        return np.array(1, np.int64)
    if key == "logit_scale":
        return np.array(4.6052, np.float32)
    parent, _, name = key.rpartition(".")
    owner = parent.rpartition(".")[2]
    draw = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape)
    if name == "running_var":
        value = 1 + 0.2 * np.abs(draw)
    elif name == "running_mean":
        value = 0.1 * draw
    elif name == "weight" and (owner.startswith(("ln_", "bn")) or "downsample.1" in key):
        value = 1 + 0.1 * draw
    elif name.endswith("bias"):
        value = 0.05 * draw
    elif name in ("positional_embedding", "class_embedding") or key == "token_embedding.weight":
        value = 0.3 * draw
    elif key in ("visual.proj", "text_projection"):
        value = draw * shape[0] ** -0.5
    else:
        value = draw * float(np.prod(shape[1:])) ** -0.5
    return np.asarray(value, np.float32)


def picture(i: int, width: int, height: int) -> Image.Image:
    """An RGB image with gradients, a pattern and noise."""
    y, x = np.mgrid[0:height, 0:width]
    plain = np.stack(
        [x * 255 // max(1, width - 1), y * 255 // max(1, height - 1), (7 * x + 13 * y + 31 * i) % 256], axis=-1
    )
    noise = np.random.RandomState(1000 + i).randint(-40, 41, size=(height, width, 3))
    return Image.fromarray(np.clip(plain + noise, 0, 255).astype(np.uint8))


def picture_in_mode(i: int, width: int, height: int, mode: str) -> Image.Image:
    """The same image in another of Pillow's modes."""
    image = picture(i, width, height)
    if mode in ("RGBA", "LA"):
        y, x = np.mgrid[0:height, 0:width]
        alpha = Image.fromarray((((y + x) * 3) % 256).astype(np.uint8))
        image = image.convert(mode.removesuffix("A"))
        image.putalpha(alpha)
        return image
    if mode == "I;16":
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 200)
    if mode in ("I", "F"):
        return image.convert("L").convert(mode)
    if mode == "P":
        return image.quantize(64, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    return image.convert(mode)


def quarters(width: int, height: int) -> Image.Image:
    """An RGB image of four colours, from the top left: red A, green B, blue C, yellow D, with a pattern on them."""
    y, x = np.mgrid[0:height, 0:width]
    colours = np.array([(200, 40, 40), (40, 160, 40), (40, 40, 200), (200, 200, 40)])
    place = 2 * (y >= height // 2) + (x >= width // 2)
    return Image.fromarray((colours[place] + ((5 * x + 3 * y) % 31)[:, :, None]).astype(np.uint8))
