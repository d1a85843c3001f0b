"""An encoded image -> uint8 pixels as a model reads them, or a failure. Knows nothing about models; needs no torch."""

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
from ..jobs.options import DecodeOptions, Limits
from ..network.records import PreprocessSettings
from ..records import Failure, Item, Pixels, Row, Stage
from .fast import FAST_MODES, fast_pixels, shrink
from .geometry import resized_size
from .heif import HEIF
from .open import open_encoded, open_image
from .orient import apply_options, images_held
from .transform import STEADY, to_pixels

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractContextManager

    from ..jobs.options import PixelMode

# What frames="all" goes through. A PSD's layers are no images of their own; what is rarer was not tried.
FORMATS_WITH_FRAMES = frozenset({"AVIF", "GIF", HEIF, "MPO", "PNG", "TIFF", "WEBP"})


def read_pixels(image: object, settings: PreprocessSettings, pixels: PixelMode = "exact") -> np.ndarray:
    """An image in any form -> uint8 (R, R, 3), channels R, G, B. Raises: as `open_image`, and what Pillow raises."""
    if pixels == "exact":
        return to_pixels(open_image(image), settings)
    if isinstance(image, (str, os.PathLike, bytes, bytearray, memoryview)):
        data = Path(image).read_bytes() if isinstance(image, (str, os.PathLike)) else bytes(image)
        with suppress(OSError), open_encoded(data) as opened:  # as in `decode`
            return _nearly(opened, opened.size, shrink(opened, settings.resolution_px, DecodeOptions()), settings)
    opened = open_image(image)  # one of the caller's own is not shrunk
    return _nearly(opened, opened.size, 1, settings)


def _nearly(image: Image.Image, size: tuple[int, int], by: int, settings: PreprocessSettings) -> np.ndarray:
    """The fast way where there is one. `size` is that before it was divided by `by`."""
    if image.mode in FAST_MODES and image.format in STEADY:
        return fast_pixels(image, size, by, settings)
    return to_pixels(image, settings)


def decode(
    item: Item,
    data: bytes,
    settings: PreprocessSettings,
    reserve: Callable[[int], AbstractContextManager[None]] = nullcontext,
    limits: Limits = Limits(),  # noqa: B008  frozen
    options: DecodeOptions = DecodeOptions(),  # noqa: B008  frozen
) -> list[Pixels | Failure]:
    """One encoded image -> one model input, or the reason there is none; several where all frames are wanted.

    With frames="all" a file of several frames gives one outcome for each, with the ids `id#0`, `id#1` and so on. The
    first that fails is the last: what came before is kept. `reserve` is entered with the bytes that decoding a frame
    will take, once its header has told the size and `limits` let it pass, and left before the next.

    A row's width and height are those of the image that was resized, so after it was turned: then a JPEG and a HEIC
    of one photo have the same under each policy. What cannot be decoded in the fast way is decoded exactly, so that a
    image fails in one if it fails in the other.

    Shapes:  data of any of `decodable_formats` -> uint8 (R, R, 3).
    """
    found: list[Pixels | Failure] = []
    several = False
    try:
        with open_encoded(data, options.orient) as image:
            for _ in _frames(image, limits.max_frames) if options.frames == "all" else (0,):
                found.append(_decode_frame(item, image, len(data), settings, reserve, limits, options))
                if isinstance(found[-1], Failure):
                    several = options.frames == "all" and _is_animated(image)
                    break
    except Exception as exc:  # noqa: BLE001  over 6,700 public files Pillow 13 raised nine types, TypeError among them
        found.append(Failure.of(item, "open", exc))
    if options.pixels == "fast" and isinstance(found[-1], Failure) and found[-1].stage == "decode":
        return decode(item, data, settings, reserve, limits, replace(options, pixels="exact"))
    if len(found) == 1 and not several:
        return found
    return [_renamed(outcome, f"{item.id}#{index}") for index, outcome in enumerate(found)]


def _frames(image: Image.Image, max_frames: int) -> Iterable[int]:
    """Show one frame of a file after the other. Raises: ImageError where there are more than so many, or too few."""
    return _shown_frames(image, max_frames) if image.format in FORMATS_WITH_FRAMES else (0,)


def _shown_frames(image: Image.Image, max_frames: int) -> Iterator[int]:
    for index in count():
        try:
            image.seek(index)
        except EOFError as exc:
            announced = max(1, getattr(image, "n_frames", index))  # never none at all: each file has an outcome
            if index < announced:
                raise ImageError(
                    "image",
                    f"ends before frame {index} of {announced}",
                    "all",
                    "Restore it from where it came.",
                ) from exc
            return
        if index == max_frames:
            raise ImageError(
                "image",
                f"more than {max_frames:,} frames",
                "fewer",
                "Raise `max_frames`.",
            )
        yield index


def _is_animated(image: Image.Image) -> bool:
    with suppress(Exception):  # which a damaged file may raise of any type; its failure is told already
        return image.format in FORMATS_WITH_FRAMES and bool(getattr(image, "is_animated", False))
    return False


def _decode_frame(
    item: Item,
    image: Image.Image,
    size_bytes: int,
    settings: PreprocessSettings,
    reserve: Callable[[int], AbstractContextManager[None]],
    limits: Limits,
    options: DecodeOptions,
) -> Pixels | Failure:
    """What the opened file shows now, decoded."""
    stage: Stage = "open"
    exact = options.pixels == "exact"
    try:
        check_size(*image.size, limits)
        stage = "decode"
        with reserve(_decoded_bytes(*image.size, settings.resolution_px, images_held(options))):
            stored = image.size
            by = 1 if exact else shrink(image, settings.resolution_px, options)
            prepared = apply_options(image, options)
            width, height = prepared.size  # before it is decoded, unless an option did: as the header has it
            if by > 1:
                width, height = stored if prepared is image else (width * by, height * by)
            array = to_pixels(prepared, settings) if exact else _nearly(prepared, (width, height), by, settings)
        return Pixels(Row(item.id, item.path, width, height, image.format or "", size_bytes, values=item.values), array)
    except Exception as exc:  # noqa: BLE001  as in decode
        return Failure.of(item, stage, exc)


def _renamed(outcome: Pixels | Failure, own_id: str) -> Pixels | Failure:
    if isinstance(outcome, Failure):
        return replace(outcome, id=own_id)
    return replace(outcome, row=replace(outcome.row, id=own_id))


def check_size(width: int, height: int, limits: Limits) -> None:
    """Refuse an image for its size alone. Raises: ImageError."""
    if width * height > limits.max_pixels:
        raise ImageError(
            "image",
            f"{width} x {height} px",
            f"at most {limits.max_pixels:,} pixels",
            "Shrink it, or raise `max_pixels`.",
        )
    if limits.max_aspect is not None and max(width, height) > limits.max_aspect * min(width, height) > 0:
        raise ImageError(
            "image",
            f"{width} x {height} px",
            f"sides of at most {limits.max_aspect:g} to 1",
            "Crop it, or raise `max_aspect`.",
        )


def _decoded_bytes(width: int, height: int, resolution_px: int, images: int) -> int:
    """What decoding and resizing hold at their peak: Pillow keeps four bytes a pixel for all that has colours."""
    resized_width, resized_height = resized_size(max(width, 1), max(height, 1), resolution_px)
    return 4 * (images * width * height + resized_width * resized_height)
