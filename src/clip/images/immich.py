"""An image -> uint8 pixels as Immich's machine-learning server makes them: what `pixels="immich"` does.

For an index of Immich's that is to be kept. It converts to RGB before it resizes, computes the longer side in another
order, and cuts the crop's corner at the next whole pixel towards 0; for what it is asked for most, RGB images with even
remainders, the pixels are OpenAI's.
Source:  immich-app/immich machine-learning/app/models/transforms.py, resize_pil and crop_pil.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .geometry import target_size
from .transform import INTERPOLATIONS, convert_image_to_rgb

if TYPE_CHECKING:
    from PIL import Image

    from ..network.records import PreprocessSettings


def to_pixels_immich(image: Image.Image, settings: PreprocessSettings) -> np.ndarray:
    """Convert, resize and crop a PIL image. Shapes: (H, W) any mode -> uint8 (R, R, 3), channels R, G, B.

    Raises:  ImageError, as `target_size`.
    """
    side = settings.resolution_px
    width, height = image.size
    target_size(width, height, side)  # it refuses what no memory holds
    if settings.resize_mode == "squash":
        width, height = side, side
    elif width < height:
        width, height = side, int((height / width) * side)
    else:
        width, height = int((width / height) * side), side
    resized = convert_image_to_rgb(image).resize((width, height), INTERPOLATIONS[settings.interpolation])
    left, top = int(width / 2 - side / 2), int(height / 2 - side / 2)
    return np.asarray(resized.crop((left, top, left + side, top + side)))
