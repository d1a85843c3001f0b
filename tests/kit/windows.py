"""Images as a decoder hands them on unresized, and their crops as the device makes them."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from clip.engine.resize import resize_windows
from clip.images.windows import Window, Windows, cut_window, join_windows
from clip.network.records import PreprocessSettings

ROOM_BYTES = 10**9


def make_windows(images: Sequence[Image.Image], settings: PreprocessSettings, before: int = 3) -> Windows:
    """The windows of images that take this path, each in memory of its own behind some other bytes."""
    parts: list[Windows] = []
    for image in images:
        cut = cut_window(image, settings, ROOM_BYTES)
        assert cut is not None, image
        memory = np.concatenate([np.full(before, 77, np.uint8), cut[0].reshape(-1)])
        parts.append(Windows((memory,), np.array([cut[1]._replace(start=before)], np.int64)))
    return join_windows(parts)


def resize(images: Sequence[Image.Image], settings: PreprocessSettings, device: str = "cpu") -> np.ndarray:
    """Shapes: N images -> uint8 (N, R, R, 3)."""
    return resize_windows(make_windows(images, settings), settings, torch.device(device)).cpu().numpy()


def read_table(table: np.ndarray) -> list[Window]:
    """The rows of a table of windows."""
    return [Window(*row) for row in table.tolist()]
