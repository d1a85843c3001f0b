"""Resize and crop windows of images on the device of the model, bit for bit as Pillow does on a CPU.

Pillow resizes in two passes, over the width and then over the height, or the other way round for tall images. Each
multiplies bytes by weights of 22 binary digits, adds, rounds and clips to a byte again. Only the weights come of
doubles, here by Pillow's operations in Pillow's order: a double has the same bits on a GPU as long as no two operations
are fused. So nothing here may be compiled, and no tensor is divided by a Python number: torch multiplies by its inverse
on CUDA.

Source:  Pillow 13.0.0 src/libImaging/Resample.c, precompute_coeffs and the two passes for 8 bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..images.geometry import SUPPORT
from ..images.windows import Window

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..images.windows import Windows
    from ..network.records import Interpolation, PreprocessSettings

DIGITS = 22  # of a weight after the point: 32 less the 8 of a byte, and 2 for sums below 0 and above 1
HALF = 1 << (DIGITS - 1)
MAX_BYTE = 255
# Bytes of a group of images, filled up to the same size: their places take eight times as much for a moment.
GROUP_BYTES = 1 << 25
FIELD = {name: number for number, name in enumerate(Window._fields)}


@dataclass(frozen=True)
class _Axis:
    """One side of a group of images: which of its pixels make each pixel of the crop, and with which weights."""

    first: Tensor  # int64 (G, R), the first pixel of each, counted in the window
    weights: Tensor  # int32 (G, R, K); 0 beyond the last pixel


def resize_windows(windows: Windows, settings: PreprocessSettings, device: torch.device) -> Tensor:
    """Return the crops that Pillow makes of the images, computed on the device.

    The memory of the windows may be written again once the device has done what was asked of it before.

    Shapes:  N windows -> uint8 (N, R, R, 3) on the device.
    """
    side = settings.resolution_px
    memory = _send(windows.memory, device)
    crops = torch.empty(len(windows), side, side, 3, dtype=torch.uint8, device=device)
    for group in _group(windows.table):
        places = torch.from_numpy(group).to(device)
        crops[places] = _resize_group(memory, windows.table[group], side, settings.interpolation)
    return crops


def _send(pieces: tuple[np.ndarray, ...], device: torch.device) -> Tensor:
    """Copy pieces of memory one behind the other to the device. Shapes: uint8 (bytes,) each -> (all bytes,)."""
    memory = torch.empty(sum(map(len, pieces)), dtype=torch.uint8, device=device)
    done = 0
    for piece in pieces:
        memory[done : done + len(piece)].copy_(torch.from_numpy(piece), non_blocking=True)
        done += len(piece)
    return memory


def _group(table: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the places of images that are resized together: of one order of passes, and of similar sizes."""
    keys = [table[:, FIELD[name]] for name in ("columns", "rows", "columns_first")]
    order = np.lexsort(keys)
    begin = rows = columns = 0
    for end, place in enumerate(order):
        window = Window(*table[place].tolist())
        is_other = end > begin and window.columns_first != table[order[begin], FIELD["columns_first"]]
        rows, columns = max(rows, window.rows), max(columns, window.columns)
        if is_other or (end > begin and (end + 1 - begin) * rows * columns * 3 > GROUP_BYTES):
            yield order[begin:end]
            begin, rows, columns = end, window.rows, window.columns
    if begin < len(order):
        yield order[begin:]


def _resize_group(memory: Tensor, table: np.ndarray, side: int, interpolation: Interpolation) -> Tensor:
    """Resize images of one order of passes. Shapes: (bytes,), (G, 13) -> uint8 (G, R, R, 3)."""
    fields = dict(zip(Window._fields, torch.from_numpy(table.T.copy()).to(memory.device), strict=True))  # (G,) each
    sizes = {name: table[:, number] for name, number in FIELD.items()}
    pixels = _gather(memory, fields, int(sizes["rows"].max()), int(sizes["columns"].max()))

    def make_axis(length: str, begin: str, crop: str) -> _Axis:
        taps = _count_taps(float((sizes[length] / sizes[f"resized_{length}"]).max()), interpolation)
        return _make_axis(
            fields[length], fields[f"resized_{length}"], fields[begin], fields[crop], side, taps, interpolation
        )

    down, across = make_axis("height", "top", "crop_top"), make_axis("width", "left", "crop_left")
    passes = [(1, down), (2, across)] if sizes["columns_first"][0] else [(2, across), (1, down)]
    for axis, filters in passes:
        pixels = _filter_along(axis, pixels, filters)
    return pixels


def _gather(memory: Tensor, fields: dict[str, Tensor], rows: int, columns: int) -> Tensor:
    """Return the images as RGB, filled up with what is at their ends. Shapes: (bytes,) -> uint8 (G, H, W, 3)."""
    device = memory.device
    start, channels, own_columns = (fields[name][:, None, None, None] for name in ("start", "channels", "columns"))
    y = torch.arange(rows, device=device)[None, :].minimum(fields["rows"][:, None] - 1)[
        :, :, None, None
    ]  # (G, H, 1, 1)
    x = torch.arange(columns, device=device)[None, :].minimum(fields["columns"][:, None] - 1)[:, None, :, None]
    channel = torch.arange(3, device=device).minimum(channels - 1)  # (G, 1, 1, 3); grey is the same in all three
    return memory[start + (y * own_columns + x) * channels + channel]  # (G, H, W, 3)


def _count_taps(scale: float, interpolation: Interpolation) -> int:
    """Return how many pixels make one, at most."""
    return 2 * math.ceil(SUPPORT[interpolation] * max(scale, 1.0)) + 1


def _make_axis(
    size: Tensor, resized: Tensor, begin: Tensor, crop: Tensor, side: int, taps: int, interpolation: Interpolation
) -> _Axis:
    """Compute the weights of a side that is `size` long, `resized` from it, and cropped from `crop` on.

    Shapes:  int64 (G,) each; `begin` is the window's first pixel.
    """
    scale = size.double() / resized.double()  # (G,)
    stretch = scale.clamp(min=1.0)
    support, inverse = (SUPPORT[interpolation] * stretch)[:, None], stretch.reciprocal()[:, None, None]
    places = torch.arange(side, device=size.device)[None, :] + crop[:, None]  # (G, R)
    center = (places.double() + 0.5) * scale[:, None]
    first = (center - support + 0.5).long().clamp(min=0)  # (G, R)
    last = (center + support + 0.5).long().minimum(size[:, None])
    pixels = first[:, :, None] + torch.arange(taps, device=size.device)  # (G, R, K)
    values = _evaluate((pixels.double() - center[:, :, None] + 0.5) * inverse, interpolation)
    values = values.where(pixels < last[:, :, None], torch.zeros_like(values))
    total = torch.zeros_like(center)
    for tap in range(taps):  # one after the other, as the sum of doubles depends on the order
        total = total + values[:, :, tap]
    scaled = values / total[:, :, None] * (1 << DIGITS)
    rounded = torch.where(scaled < 0, scaled - 0.5, scaled + 0.5).to(torch.int32)  # towards 0
    return _Axis(first - begin[:, None], rounded)


def _evaluate(distance: Tensor, interpolation: Interpolation) -> Tensor:
    """Return the filter at distances from a pixel's middle, in pixels of the coarser side; for bicubic a is -0.5."""
    x = distance.abs()
    zero = torch.zeros_like(x)
    if interpolation == "bilinear":
        return torch.where(x < 1.0, 1.0 - x, zero)
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
    return torch.where(x < 1.0, near, torch.where(x < 2.0, far, zero))


def _filter_along(axis: int, pixels: Tensor, filters: _Axis) -> Tensor:
    """Resize one side of each image. Shapes: uint8 (G, H, W, 3) -> the same with R at `axis`."""
    form = [len(pixels), 1, 1, 1]
    form[axis] = filters.first.shape[1]
    wanted = list(pixels.shape)
    wanted[axis] = form[axis]
    total = torch.full(wanted, HALF, dtype=torch.int32, device=pixels.device)
    for tap in range(filters.weights.shape[2]):
        # Where a weight is 0 the pixel may be beyond the window's end: any other does.
        places = (filters.first + tap).clamp(0, pixels.shape[axis] - 1).view(form).expand(wanted)
        total += pixels.gather(axis, places) * filters.weights[:, :, tap].reshape(form)
    return (total >> DIGITS).clamp(0, MAX_BYTE).to(torch.uint8)
