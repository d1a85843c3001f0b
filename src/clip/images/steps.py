"""The steps of `preprocess` as torchvision has them, without torchvision: its names, arguments, attributes and repr.

They take PIL images, with OpenAI's bits, and tensors, as torchvision's do. Where a program has torchvision,
`preprocess.transforms` holds torchvision's own steps, and these are not used.
Source:  torchvision 0.29.2 transforms/transforms.py and functional.py, for what each step does with what it is given.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from enum import Enum

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ..errors import InputError, InputTypeError
from ..network.records import BYTE_MAX
from .geometry import check_has_pixels, crop_offset, resized_size
from .transform import crop_image, resize_image

__all__ = ["CenterCrop", "InterpolationMode", "Normalize", "Resize", "ToTensor"]

ANTIALIASED = ("bilinear", "bicubic")
# What Pillow's modes hold, where that is not bytes.
DTYPES_OF_MODES = {"I": np.int32, "I;16" if sys.byteorder == "little" else "I;16B": np.int16, "F": np.float32}


class InterpolationMode(Enum):
    """How pixels between pixels are computed."""

    NEAREST = "nearest"
    NEAREST_EXACT = "nearest-exact"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    BOX = "box"
    HAMMING = "hamming"
    LANCZOS = "lanczos"


class Resize(nn.Module):
    """Scale an image until its shorter side is `size` px and its longer one at most `max_size`, or to (height, width).

    One that fits is left untouched. `interpolation` may be a constant of Pillow's; `antialias` is for tensors.
    """

    def __init__(
        self,
        size: int | Sequence[int],
        interpolation: InterpolationMode | int = InterpolationMode.BILINEAR,
        max_size: int | None = None,
        antialias: bool | None = True,
    ) -> None:
        super().__init__()
        if isinstance(size, Sequence) and len(size) not in (1, 2):
            raise InputError("`size`", f"found {len(size)} values", "1 or 2", "Pass (height, width).")
        if isinstance(interpolation, int):
            interpolation = InterpolationMode[Image.Resampling(interpolation).name]
        self.size = size
        self.max_size = max_size
        self.interpolation = interpolation
        self.antialias = antialias

    def forward(self, img: Image.Image | Tensor) -> Image.Image | Tensor:
        """Shapes: (H, W) of any mode, or a tensor (..., C, H, W) -> the same, resized; integers are rounded.

        Raises:  InputTypeError for other types, ImageError for PIL images that would have over 256 megapixels.
        """
        width, height = _size(img)
        target = self._target_size(width, height)
        if isinstance(img, Image.Image):
            filter_ = "nearest" if self.interpolation is InterpolationMode.NEAREST_EXACT else self.interpolation.value
            return resize_image(img, (target[1], target[0]), Image.Resampling[filter_.upper()])
        return img if target == (width, height) else self._resize_tensor(img, (target[1], target[0]))

    def _target_size(self, width: int, height: int) -> tuple[int, int]:
        """Return the width and height to resize to."""
        if isinstance(self.size, Sequence) and len(self.size) == 2:
            return self.size[1], self.size[0]
        check_has_pixels(width, height)
        short = self.size if isinstance(self.size, int) else self.size[0]
        target = resized_size(width, height, short)
        if self.max_size is None or max(target) <= self.max_size:
            return target
        if self.max_size <= short:
            expected = f"more than `size`, {short}"
            raise InputError("`max_size`", f"found {self.max_size}", expected, "Pass a larger one.")
        short = int(self.max_size * short / max(target))
        return (short, self.max_size) if width <= height else (self.max_size, short)

    def _resize_tensor(self, img: Tensor, size: tuple[int, int]) -> Tensor:
        """(..., C, H, W) -> (..., C, size[0], size[1])."""
        mode = self.interpolation.value
        batch = img if img.ndim >= 4 else img[None]
        floats = batch if img.dtype in (torch.float32, torch.float64) else batch.to(torch.float32)
        align = False if mode in ANTIALIASED else None
        antialias = bool(self.antialias) and mode in ANTIALIASED
        resized = F.interpolate(floats, size=size, mode=mode, align_corners=align, antialias=antialias)
        if img.dtype == torch.uint8:
            resized = resized.clamp(0, BYTE_MAX)  # bicubic overshoots
        if not img.dtype.is_floating_point:
            resized = resized.round()
        return (resized if img.ndim >= 4 else resized[0]).to(img.dtype)

    def __repr__(self) -> str:
        shown = f"size={self.size}, interpolation={self.interpolation.value}"
        return f"{type(self).__name__}({shown}, max_size={self.max_size}, antialias={self.antialias})"


class CenterCrop(nn.Module):
    """Cut the middle out of an image; a side that is too short is filled up with 0."""

    def __init__(self, size: int | Sequence[int]) -> None:
        super().__init__()
        sides = (size,) if isinstance(size, int) else tuple(size)
        if len(sides) not in (1, 2):
            raise InputError("`size`", f"found {len(sides)} values", "1 or 2", "Pass (height, width).")
        self.size = (sides[0], sides[-1])  # height, width

    def forward(self, img: Image.Image | Tensor) -> Image.Image | Tensor:
        """Shapes: (H, W) of any mode, or a tensor (..., C, H, W) -> the same with H, W = size."""
        width, height = _size(img)
        if isinstance(img, Image.Image):
            return crop_image(img, self.size)
        left, top = crop_offset(width, self.size[1]), crop_offset(height, self.size[0])
        right, bottom = self.size[1] - width + left, self.size[0] - height + top
        # A negative border cuts: as with Pillow, what lies outside of the image is 0.
        return F.pad(img, (-left, right, -top, bottom))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(size={self.size})"


class ToTensor:
    """Turn an image into a tensor."""

    def __call__(self, pic: object) -> Tensor:
        """Shapes: (H, W) or (H, W, C) -> (C, H, W). Units: bytes 0..255 -> float32 0..1, other values as they are."""
        if isinstance(pic, Image.Image):
            pixels = np.array(pic, DTYPES_OF_MODES.get(pic.mode, np.uint8))
            pixels = pixels * np.uint8(BYTE_MAX) if pic.mode == "1" else pixels
        elif isinstance(pic, np.ndarray):
            pixels = pic
        else:
            found = f"found {type(pic).__name__}"
            raise InputTypeError("ToTensor", found, "a PIL image or an array", "Leave a tensor as it is.")
        if pixels.ndim not in (2, 3):
            raise InputError("ToTensor", f"found {pixels.ndim} dimensions", "2 or 3", "Pass one image.")
        pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels  # (H, W) -> (H, W, 1)
        channels_first = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()  # (C, H, W)
        return channels_first.to(torch.float32).div_(BYTE_MAX) if pixels.dtype == np.uint8 else channels_first

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class Normalize(nn.Module):
    """Subtract the mean and divide by the standard deviation of each channel."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], inplace: bool = False) -> None:
        super().__init__()
        self.mean = mean
        self.std = std
        self.inplace = inplace

    def forward(self, tensor: Tensor) -> Tensor:
        """Shapes: float (..., C, H, W) -> the same. Units: 0..1 -> standard deviations from the mean."""
        dtype = getattr(tensor, "dtype", None)
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            found = f"found {type(tensor).__name__} of {dtype}"
            raise InputTypeError("Normalize", found, "floats in 0..1", "Pass it through ToTensor first.")
        if tensor.ndim < 3:
            found = f"found a tensor of {tensor.ndim} dimensions"
            raise InputError("Normalize", found, "(..., C, H, W)", "Add the dimensions that it lacks.")
        mean = torch.as_tensor(self.mean, dtype=tensor.dtype, device=tensor.device).view(-1, 1, 1)
        std = torch.as_tensor(self.std, dtype=tensor.dtype, device=tensor.device).view(-1, 1, 1)
        return tensor.sub_(mean).div_(std) if self.inplace else (tensor - mean).div_(std)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(mean={self.mean}, std={self.std})"


def _size(img: object) -> tuple[int, int]:
    """Return the width and height of a PIL image or a tensor (..., C, H, W)."""
    if isinstance(img, Image.Image):
        return img.size
    if isinstance(img, Tensor) and img.ndim >= 2:
        return img.shape[-1], img.shape[-2]
    found = f"found {type(img).__name__}"
    raise InputTypeError("image", found, "a PIL image or a tensor (..., C, H, W)", "Open it with PIL.Image.open.")
