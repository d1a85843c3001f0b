"""The weights and images of `formula`, without the package: for programs that run on OpenAI's code too."""

import io
import zlib

import numpy as np
from PIL import Image


def entry(key: str, shape: tuple[int, ...]) -> np.ndarray:
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


def png(i: int, width: int, height: int) -> bytes:
    whole = io.BytesIO()
    picture(i, width, height).save(whole, "PNG")
    return whole.getvalue()


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
