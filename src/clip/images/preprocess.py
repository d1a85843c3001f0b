"""OpenAI's transform: an image -> the tensor that a model reads, bit for bit.

Five steps in the reference's order: resize, crop, convert to RGB, to tensor, normalise.
"""

from __future__ import annotations

import importlib
import os
import sys
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from PIL import Image

from ..network.records import BYTE_MAX, PreprocessSettings
from . import steps
from .open import open_image
from .transform import convert_image_to_rgb, to_pixels

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

__all__ = ["Compose", "find_transform", "make_preprocess", "normalize_pixels"]


def find_transform(name: str) -> Any:
    """Return torchvision's class of this name where the program has torchvision, else ours.

    OpenAI's `import clip` imports torchvision, which takes a second; here only looking at a step does.
    """
    torchvision = sys.modules.get("torchvision.transforms") or _import_torchvision()
    if torchvision is not None:
        return getattr(torchvision, name)
    return Compose if name == "Compose" else getattr(steps, name)


@cache
def _import_torchvision() -> ModuleType | None:
    try:
        return importlib.import_module("torchvision.transforms")
    except (ImportError, OSError, RuntimeError, AttributeError):  # none, or one that does not fit torch
        return None


def _convert_image_to_rgb(image: Image.Image) -> Image.Image:
    """Convert to RGB: the third step, by the name that OpenAI's has."""
    return convert_image_to_rgb(image)


class Compose:
    """A list of steps that users index, slice and assign into: torchvision's class, which opens images too.

    The list of `make_preprocess` is made when somebody looks at it; until then, images take a shorter way to the same
    bits. An instance also passes for one of torchvision's class, whenever the program imports that.
    """

    def __init__(
        self, transforms: list[Callable[..., Any]] | None, *, settings: PreprocessSettings | None = None
    ) -> None:
        self._transforms = transforms
        self._settings = settings  # which say what the steps are, where `transforms` is None

    @property
    def transforms(self) -> list[Callable[..., Any]]:
        """The steps; torchvision's own where the program has torchvision."""
        if self._transforms is None:
            self._transforms = _make_steps(cast("PreprocessSettings", self._settings))
        return self._transforms

    @transforms.setter
    def transforms(self, transforms: list[Callable[..., Any]]) -> None:
        self._transforms = transforms

    @property
    def __class__(self) -> type:  # pyright: ignore[reportIncompatibleMethodOverride]
        return getattr(sys.modules.get("torchvision.transforms"), "Compose", Compose)

    def __reduce__(self) -> tuple[type[Compose], tuple[None], dict[str, Any]]:
        return Compose, (None,), self.__dict__

    def __call__(self, img: object) -> Any:
        """Turn one image into what the model reads.

        Shapes:  a PIL image of any mode, a path, an encoded image, or uint8 (H, W, 3) -> float32 (3, R, R). Anything
                 else goes to the first step as it is.
        Units:   in 0..255; out standard deviations from the training mean.
        Raises:  TypeError for what the first step does not take, ImageError for a canvas over 256 megapixels; what
                 Pillow raises for a damaged image comes through.
        Source:  openai/CLIP@d05afc4 clip/clip.py:79.
        """
        encoded = isinstance(img, (str, os.PathLike, bytes, bytearray, memoryview, np.ndarray))
        if self._transforms is None and (encoded or isinstance(img, Image.Image)):
            settings = cast("PreprocessSettings", self._settings)
            pixels = steps.ToTensor()(np.array(to_pixels(open_image(img), settings)))
            return steps.Normalize(settings.mean, settings.std)(pixels)
        result = img
        if encoded and self.transforms and type(self.transforms[0]).__name__ == "Resize":
            result = open_image(img)  # a resize takes none of these
        for step in self.transforms:
            result = step(result)
        return result  # OpenAI's last step returns a tensor; a user's own may return something else

    def __repr__(self) -> str:
        return "\n".join(["Compose(", *(f"    {step}" for step in self.transforms), ")"])


def _make_steps(settings: PreprocessSettings) -> list[Callable[..., Any]]:
    side = settings.resolution_px
    resize = find_transform("Resize")(
        (side, side) if settings.resize_mode == "squash" else side,
        interpolation=find_transform("InterpolationMode")(settings.interpolation),
    )
    crop, normalize = find_transform("CenterCrop")(side), find_transform("Normalize")(settings.mean, settings.std)
    return [resize, crop, _convert_image_to_rgb, find_transform("ToTensor")(), normalize]


def make_preprocess(settings: PreprocessSettings) -> Compose:
    """Return OpenAI's five steps, as a checkpoint asks for them."""
    return Compose(None, settings=settings)


def normalize_pixels(pixels: torch.Tensor, settings: PreprocessSettings) -> torch.Tensor:
    """Do the last two steps for a whole batch, with the same float32 operations and so the same bits.

    Shapes:  uint8 (B, R, R, 3) -> float32 (B, 3, R, R).
    """
    scaled = pixels.permute(0, 3, 1, 2).to(torch.float32).div_(BYTE_MAX)  # (B, 3, R, R)
    return steps.Normalize(settings.mean, settings.std)(scaled)
