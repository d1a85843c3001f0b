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
from ..jobs.options import Guards, Policies
from ..network.records import PreprocessSettings
from ..records import Failure, Item, Pixels, Row, Stage
from .fast import FAST_MODES, fast_pixels, shrink
from .geometry import resized_size
from .heif import HEIF
from .open import open_encoded, open_picture
from .orient import by_policy, pictures_held
from .transform import STEADY, to_pixels

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractContextManager

    from ..jobs.options import Decode

# What frames="all" goes through. A PSD's layers are no pictures of their own; what is rarer was not tried.
FORMATS_WITH_FRAMES = frozenset({"AVIF", "GIF", HEIF, "MPO", "PNG", "TIFF", "WEBP"})


def read_pixels(image: object, settings: PreprocessSettings, how: Decode = "exact") -> np.ndarray:
    """A picture in any form -> uint8 (R, R, 3), channels R, G, B. Raises: as `open_picture`, and what Pillow raises."""
    if how == "exact":
        return to_pixels(open_picture(image), settings)
    if isinstance(image, (str, os.PathLike, bytes, bytearray, memoryview)):
        data = Path(image).read_bytes() if isinstance(image, (str, os.PathLike)) else bytes(image)
        with suppress(OSError), open_encoded(data) as opened:  # as in `decode`
            return _nearly(opened, opened.size, shrink(opened, settings.resolution_px, Policies()), settings)
    picture = open_picture(image)  # one of the caller's own is not shrunk
    return _nearly(picture, picture.size, 1, settings)


def _nearly(picture: Image.Image, size: tuple[int, int], by: int, settings: PreprocessSettings) -> np.ndarray:
    """The fast way where there is one. `size` is that before it was divided by `by`."""
    if picture.mode in FAST_MODES and picture.format in STEADY:
        return fast_pixels(picture, size, by, settings)
    return to_pixels(picture, settings)


def decode(
    item: Item,
    data: bytes,
    settings: PreprocessSettings,
    reserve: Callable[[int], AbstractContextManager[None]] = nullcontext,
    guards: Guards = Guards(),  # noqa: B008  frozen
    policies: Policies = Policies(),  # noqa: B008  frozen
    how: Decode = "exact",
) -> list[Pixels | Failure]:
    """One encoded picture -> one model input, or the reason there is none; several where all frames are wanted.

    With frames="all" a file of several frames gives one outcome for each, with the ids `id#0`, `id#1` and so on. The
    first that fails is the last: what came before is kept. `reserve` is entered with the bytes that decoding a frame
    will take, once its header has told the size and `guards` let it pass, and left before the next.

    A row's width and height are those of the picture that was resized, so after it was turned: then a JPEG and a HEIC
    of one photo have the same under each policy. What cannot be decoded in the fast way is decoded exactly, so that a
    picture fails in one if it fails in the other.

    Shapes:  data of any of `decodable_formats` -> uint8 (R, R, 3).
    """
    found: list[Pixels | Failure] = []
    several = False
    try:
        with open_encoded(data, policies.orient) as image:
            for _ in _frames(image, guards.max_frames) if policies.frames == "all" else (0,):
                found.append(_decode_frame(item, image, len(data), settings, reserve, guards, policies, how))
                if isinstance(found[-1], Failure):
                    several = policies.frames == "all" and _is_animated(image)
                    break
    except Exception as exc:  # noqa: BLE001  over 6,700 public files Pillow 13 raised nine types, TypeError among them
        found.append(_failure(item, "open", exc))
    if how == "fast" and isinstance(found[-1], Failure) and found[-1].stage == "decode":
        return decode(item, data, settings, reserve, guards, policies)
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
                    f"picture: ends before frame {index} of {announced}, expected all. Restore it from where it came."
                ) from exc
            return
        if index == max_frames:
            raise ImageError(f"picture: more than {max_frames:,} frames, expected fewer. Raise --max-frames.")
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
    guards: Guards,
    policies: Policies,
    how: Decode,
) -> Pixels | Failure:
    """What the opened file shows now, decoded."""
    stage: Stage = "open"
    try:
        check_size(*image.size, guards)
        stage = "decode"
        with reserve(_decoded_bytes(*image.size, settings.resolution_px, pictures_held(policies))):
            stored = image.size
            by = shrink(image, settings.resolution_px, policies) if how == "fast" else 1
            picture = by_policy(image, policies)
            width, height = picture.size  # before it is decoded, unless a policy did: as the header has it
            if by > 1:
                width, height = stored if picture is image else (width * by, height * by)
            array = to_pixels(picture, settings) if how == "exact" else _nearly(picture, (width, height), by, settings)
        return Pixels(Row(item.id, item.path, width, height, image.format or "", size_bytes, values=item.values), array)
    except Exception as exc:  # noqa: BLE001  as in decode
        return _failure(item, stage, exc)


def _failure(item: Item, stage: Stage, exc: Exception) -> Failure:
    return Failure(item.id, item.path, stage, type(exc).__name__, str(exc))


def _renamed(outcome: Pixels | Failure, own_id: str) -> Pixels | Failure:
    if isinstance(outcome, Failure):
        return replace(outcome, id=own_id)
    return replace(outcome, row=replace(outcome.row, id=own_id))


def check_size(width: int, height: int, guards: Guards) -> None:
    """Refuse a picture for its size alone. Raises: ImageError."""
    if width * height > guards.max_pixels:
        raise ImageError(
            f"picture: {width} x {height} px, expected at most {guards.max_pixels:,} pixels. Shrink it, or raise "
            "--max-pixels."
        )
    if guards.max_aspect is not None and max(width, height) > guards.max_aspect * min(width, height) > 0:
        raise ImageError(
            f"picture: {width} x {height} px, expected sides of at most {guards.max_aspect:g} to 1. Crop it, or raise "
            "--max-aspect."
        )


def _decoded_bytes(width: int, height: int, resolution_px: int, pictures: int) -> int:
    """What decoding and resizing hold at their peak: Pillow keeps four bytes a pixel for all that has colours."""
    resized_width, resized_height = resized_size(max(width, 1), max(height, 1), resolution_px)
    return 4 * (pictures * width * height + resized_width * resized_height)
