"""Where a JPEG becomes pixels: an encoded image -> uint8 pixels as a model reads them, or a failure. Needs no torch.

`open_encoded` reads the header, `adjust` does what the options ask for, and `to_pixels` has Pillow decode and makes
OpenAI's pixels; with `pixels="fast"` that is `shrink_on_load` and `to_pixels_fast`.
"""

from __future__ import annotations

import os
from contextlib import nullcontext, suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ..errors import ImageError
from ..jobs.options import DecodeOptions, Limits, PixelMode
from ..network.records import PreprocessSettings
from ..records import Failure, Item, Pixels, Row, Stage
from .adjust import adjust, count_held_images
from .fast import FAST_MODES, shrink_on_load, to_pixels_fast
from .geometry import resized_size
from .heif import HEIF
from .open import open_encoded, open_image
from .transform import STEADY_FORMATS, to_pixels

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager


# What frames="all" goes through. The layers of a PSD are not images; rarer formats were not tried.
FORMATS_WITH_FRAMES = frozenset({"AVIF", "GIF", HEIF, "MPO", "PNG", "TIFF", "WEBP"})


def decode(
    item: Item,
    data: bytes,
    settings: PreprocessSettings,
    reserve: Callable[[int], AbstractContextManager[None]] = nullcontext,
    limits: Limits = Limits(),  # noqa: B008  frozen
    options: DecodeOptions = DecodeOptions(),  # noqa: B008  frozen
) -> list[Pixels | Failure]:
    """Decode one encoded image to one model input, or to the reason why there is none; to several for all frames.

    With frames="all" a file of several frames gives one outcome for each, with the ids `id#0`, `id#1` and so on. The
    first failure is the last outcome: the frames before it are kept. `reserve` is entered with the bytes that decoding
    a frame will take, once its header has given the size and `limits` allow it, and left before the next frame.

    A row's width and height are those of the image that was resized, so after it was turned: then a JPEG and a HEIC
    of one photo have the same, whatever the options. What cannot be decoded fast is decoded exactly, so that an image
    fails in one pixel mode if it fails in the other.

    Shapes:  data in any of `decodable_formats` -> uint8 (R, R, 3).
    """
    outcomes: list[Pixels | Failure] = []
    animated = False
    try:
        with open_encoded(data, options.orient) as image:
            for _ in _seek_frames(image, limits.max_frames) if options.frames == "all" else (0,):
                outcomes.append(_decode_frame(item, image, len(data), settings, reserve, limits, options))
                if isinstance(outcomes[-1], Failure):
                    animated = options.frames == "all" and _is_animated(image)
                    break
    except Exception as exc:  # noqa: BLE001  over 6,700 public files Pillow 13 raised nine types, TypeError among them
        outcomes.append(Failure.of(item, "open", exc))
    if options.pixels == "fast" and isinstance(outcomes[-1], Failure) and outcomes[-1].stage == "decode":
        return decode(item, data, settings, reserve, limits, replace(options, pixels="exact"))
    if len(outcomes) == 1 and not animated:
        return outcomes
    return [_with_id(outcome, f"{item.id}#{number}") for number, outcome in enumerate(outcomes)]


def read_pixels(image: object, settings: PreprocessSettings, pixels: PixelMode = "exact") -> np.ndarray:
    """Return the pixels of an image in any form that `open_image` takes.

    Shapes:  -> uint8 (R, R, 3), channels R, G, B.
    Raises:  as `open_image`; what Pillow raises for a damaged image comes through.
    """
    if pixels == "exact":
        return to_pixels(open_image(image), settings)
    if isinstance(image, (str, os.PathLike, bytes, bytearray, memoryview)):
        data = Path(image).read_bytes() if isinstance(image, (str, os.PathLike)) else bytes(image)
        with suppress(OSError), open_encoded(data) as opened:  # what cannot be decoded fast is decoded exactly below
            size = opened.size
            divisor = shrink_on_load(opened, settings.resolution_px, DecodeOptions())
            return _to_pixels_fast_or_exact(opened, size, divisor, settings)
    opened = open_image(image)  # the caller's own image is not shrunk
    return _to_pixels_fast_or_exact(opened, opened.size, 1, settings)


def _decode_frame(
    item: Item,
    image: Image.Image,
    size_bytes: int,
    settings: PreprocessSettings,
    reserve: Callable[[int], AbstractContextManager[None]],
    limits: Limits,
    options: DecodeOptions,
) -> Pixels | Failure:
    """Decode the frame that an opened file is at."""
    stage: Stage = "open"
    exact = options.pixels == "exact"
    try:
        _check_size(*image.size, limits)
        stage = "decode"
        with reserve(_decoded_bytes(*image.size, settings.resolution_px, count_held_images(options))):
            full_size = image.size
            divisor = 1 if exact else shrink_on_load(image, settings.resolution_px, options)
            adjusted = adjust(image, options)
            width, height = adjusted.size  # as the header has it, unless `adjust` had to decode the image
            if divisor > 1:
                width, height = full_size if adjusted is image else (width * divisor, height * divisor)
            if exact:
                array = to_pixels(adjusted, settings)
            else:
                array = _to_pixels_fast_or_exact(adjusted, (width, height), divisor, settings)
        return Pixels(Row(item.id, item.path, width, height, image.format or "", size_bytes, values=item.values), array)
    except Exception as exc:  # noqa: BLE001  as in decode
        return Failure.of(item, stage, exc)


def _to_pixels_fast_or_exact(
    image: Image.Image, size: tuple[int, int], divisor: int, settings: PreprocessSettings
) -> np.ndarray:
    if image.mode in FAST_MODES and image.format in STEADY_FORMATS:
        return to_pixels_fast(image, size, divisor, settings)
    return to_pixels(image, settings)


def _check_size(width: int, height: int, limits: Limits) -> None:
    """Refuse an image for its size alone. Raises: ImageError."""
    if width * height > limits.max_pixels:
        bound, remedy = f"at most {limits.max_pixels:,} pixels", "Shrink it, or raise `max_pixels`."
    elif limits.max_aspect is not None and max(width, height) > limits.max_aspect * min(width, height) > 0:
        bound, remedy = f"sides of at most {limits.max_aspect:g} to 1", "Crop it, or raise `max_aspect`."
    else:
        return
    raise ImageError("image", f"{width} x {height} px", bound, remedy)


def _decoded_bytes(width: int, height: int, resolution_px: int, held_images: int) -> int:
    """Return what decoding and resizing hold at their peak: Pillow keeps four bytes per pixel for all colour modes."""
    resized_width, resized_height = resized_size(max(width, 1), max(height, 1), resolution_px)
    return 4 * (held_images * width * height + resized_width * resized_height)


def _seek_frames(image: Image.Image, max_frames: int) -> Iterator[int]:
    """Go to each frame of a file in turn. Raises: ImageError if there are more, or fewer than the file announces."""
    if image.format not in FORMATS_WITH_FRAMES:
        yield 0
        return
    for index in count():
        try:
            image.seek(index)
        except EOFError as exc:
            announced = max(1, getattr(image, "n_frames", index))  # at least one: each file has an outcome
            if index < announced:
                found = f"ends before frame {index} of {announced}"
                raise ImageError("image", found, "all", "Restore it from its source.") from exc
            return
        if index == max_frames:
            raise ImageError("image", f"more than {max_frames:,} frames", "fewer", "Raise `max_frames`.")
        yield index


def _is_animated(image: Image.Image) -> bool:
    with suppress(Exception):  # a damaged file may raise any type; its failure has been recorded already
        return image.format in FORMATS_WITH_FRAMES and bool(getattr(image, "is_animated", False))
    return False


def _with_id(outcome: Pixels | Failure, frame_id: str) -> Pixels | Failure:
    if isinstance(outcome, Failure):
        return replace(outcome, id=frame_id)
    return replace(outcome, row=replace(outcome.row, id=frame_id))
