"""OpenAI's transform: an image -> the tensor that a model reads, bit for bit.

Five steps in the reference's order: resize, crop and convert to RGB as in `transform`, to tensor, normalise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from ..errors import InputTypeError
from ..network.records import BYTE_MAX, PreprocessSettings
from .open import open_image
from .transform import pixel_steps

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    from PIL import Image

__all__ = ["Compose", "Normalize", "ToTensor", "make_preprocess", "normalize_pixels"]


class ToTensor:
    """Turn an image into a tensor."""

    def __call__(self, image: Image.Image | np.ndarray) -> torch.Tensor:
        """Shapes: uint8 (H, W) or (H, W, C) -> float32 (C, H, W). Units: 0..255 -> 0..1."""
        pixels = np.array(image)
        if pixels.dtype != np.uint8:
            found = f"found {pixels.dtype} values"
            raise InputTypeError("ToTensor", found, "uint8", "Convert the image to RGB first.")
        pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels  # (H, W) -> (H, W, 1)
        channels_first = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()  # (C, H, W)
        return channels_first.to(torch.float32).div_(BYTE_MAX)

    def __repr__(self) -> str:
        return "ToTensor()"


class Normalize:
    """Subtract the mean and divide by the standard deviation of each channel."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean = mean
        self.std = std

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        """Shapes: float (..., C, H, W) -> the same. Units: 0..1 -> standard deviations from the mean."""
        if not tensor.is_floating_point():
            found = f"found a tensor of {tensor.dtype}"
            raise InputTypeError("Normalize", found, "floats in 0..1", "Pass it through ToTensor first.")
        mean = torch.as_tensor(self.mean, dtype=tensor.dtype, device=tensor.device).view(-1, 1, 1)
        std = torch.as_tensor(self.std, dtype=tensor.dtype, device=tensor.device).view(-1, 1, 1)
        return (tensor - mean).div_(std)

    def __repr__(self) -> str:
        return f"Normalize(mean={self.mean}, std={self.std})"


class Compose:
    """A list of steps that users index, slice and assign into, as with torchvision's class."""

    def __init__(self, transforms: list[Callable[..., object]]) -> None:
        self.transforms = transforms

    def __call__(self, image: Image.Image | str | os.PathLike[str] | bytes | np.ndarray) -> torch.Tensor:
        """Turn one image into what the model reads.

        Shapes:  a PIL image of any mode, a path, an encoded image, or uint8 (H, W, 3) -> float32 (3, R, R).
        Units:   in 0..255; out standard deviations from the training mean.
        Raises:  InputTypeError (a TypeError) for anything else, ImageError for a canvas over 256 megapixels; what
                 Pillow raises for a damaged image comes through.
        Source:  openai/CLIP@d05afc4 clip/clip.py:79.
        """
        step: object = open_image(image)
        for transform in self.transforms:
            step = transform(step)
        return cast("torch.Tensor", step)  # OpenAI's last step returns one; a user's own may return something else

    def __repr__(self) -> str:
        steps = "\n".join(f"    {getattr(t, '__name__', None) or repr(t)}" for t in self.transforms)
        return f"Compose(\n{steps}\n)"


def make_preprocess(settings: PreprocessSettings) -> Compose:
    """Return OpenAI's five steps, as a checkpoint asks for them."""
    return Compose([*pixel_steps(settings), ToTensor(), Normalize(settings.mean, settings.std)])


def normalize_pixels(pixels: torch.Tensor, settings: PreprocessSettings) -> torch.Tensor:
    """Do the last two steps for a whole batch, with the same float32 operations and so the same bits.

    Shapes:  uint8 (B, R, R, 3) -> float32 (B, 3, R, R).
    """
    scaled = pixels.permute(0, 3, 1, 2).to(torch.float32).div_(BYTE_MAX)  # (B, 3, R, R)
    return Normalize(settings.mean, settings.std)(scaled)
