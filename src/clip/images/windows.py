"""What a crop is made of before it is resized: the pixels of an image that its crop depends on. Needs no torch.

A decoder hands these on where the device of the model resizes (engine/resize.py), as Pillow's resize takes a decoder
about as long as the rest. Images of modes that Pillow resizes channel by channel and that become RGB without loss are
handed on; all others are resized where they are decoded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .geometry import SUPPORT, compute_crop, source_range

if TYPE_CHECKING:
    from collections.abc import Iterable

    from PIL import Image

    from ..network.records import PreprocessSettings

CHANNELS = {"L": 1, "LA": 1, "RGB": 3, "RGBA": 3}  # of a window, by the image's mode
ALPHA = {"LA": 1, "RGBA": 3}  # which channel it is
OPAQUE = 255  # where all of the alpha is so, Pillow's resize premultiplies by 1 and leaves it so


class Window(NamedTuple):
    """Where the pixels of one image lie, and the crop to make of them. Lengths in px but for `start`."""

    start: int  # of the pixels in memory, row by row, channels last [Unit: bytes]
    rows: int  # that are there
    columns: int
    channels: int  # 3, or 1 for a grey image
    top: int  # of the first row in its image
    left: int
    height: int  # of the image
    width: int
    resized_height: int
    resized_width: int
    crop_top: int  # in the resized image
    crop_left: int
    columns_first: int  # 1 where Pillow resizes the height before the width


@dataclass(frozen=True, slots=True)
class Windows:
    """Windows of several images, and the memory that they lie in."""

    memory: tuple[np.ndarray, ...]  # uint8 (bytes,) each; `start` counts through all of them
    table: np.ndarray  # int64 (N, 13), the fields of each Window

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, places: slice) -> Windows:
        """Return some of the windows, in the same memory."""
        return Windows(self.memory, self.table[places])

    def copy(self) -> Windows:
        """Return the same windows in memory of their own."""
        cut = join_windows([self])
        return Windows(tuple(piece.copy() for piece in cut.memory), cut.table)


def join_windows(parts: Iterable[Windows]) -> Windows:
    """Return the windows of several, each in one piece of memory, of which only what is used is kept."""
    memory: list[np.ndarray] = []
    tables: list[np.ndarray] = []
    before = 0
    for part in parts:
        if not len(part):
            continue
        start, rows, columns, channels = part.table[:, :4].T
        begin, end = int(start.min()), int((start + rows * columns * channels).max())
        (whole,) = part.memory
        table = part.table.copy()
        table[:, 0] += before - begin
        memory.append(whole[begin:end])
        tables.append(table)
        before += end - begin
    empty = np.empty((0, len(Window._fields)), np.int64)
    return Windows(tuple(memory), np.concatenate([empty, *tables]))


def cut_window(image: Image.Image, settings: PreprocessSettings, room_bytes: int) -> tuple[np.ndarray, Window] | None:
    """Decode an image and return the pixels that its crop depends on, and their window, which starts at 0.

    None for an image that has to be resized by Pillow, and for one whose pixels take more than `room_bytes`.

    Shapes:  (H, W) any mode -> uint8 (rows, columns, channels).
    Raises:  ImageError, as `compute_crop`.
    """
    image.load()  # a format may give its size and its mode only now
    channels = CHANNELS.get(image.mode)
    if channels is None:
        return None
    width, height = image.size
    crop = compute_crop(width, height, settings)
    support = SUPPORT[settings.interpolation]
    left, right = source_range(crop.left, crop.left + crop.side, width, crop.width, support)
    top, bottom = source_range(crop.top, crop.top + crop.side, height, crop.height, support)
    right, bottom = min(right, width), min(bottom, height)
    rows, columns = bottom - top, right - left
    if rows * columns * channels > room_bytes:
        return None
    if image.mode in ALPHA and image.getchannel(ALPHA[image.mode]).getextrema()[0] != OPAQUE:
        return None
    part = image if (rows, columns) == (height, width) else image.crop((left, top, right, bottom))
    pixels = np.asarray(part).reshape(rows, columns, -1)[..., :channels]
    sizes = (rows, columns, channels, top, left, height, width, crop.height, crop.width, crop.top, crop.left)
    return pixels, Window(0, *sizes, int(crop.columns_first))


def make_finished_window(crop: np.ndarray) -> Window:
    """Return the window of a crop that is resized already. Shapes: uint8 (R, R, 3)."""
    side = len(crop)
    return Window(0, side, side, 3, 0, 0, side, side, side, side, 0, 0, 0)
