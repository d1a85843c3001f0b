"""Decode a stream of images with threads, in order, and keep the reason for each that cannot be decoded."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from ..errors import ClipError, ImageError
from ..parallel import available_cores, map_ahead
from ..records import Failure, Item, Stage
from .decode import read_pixels, read_pixels_of
from .open import is_encoded, make_failure, open_image, read_bytes, sniff_format

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator

    from ..jobs.options import PixelMode
    from ..network.records import PreprocessSettings

T = TypeVar("T")


@dataclass(frozen=True)
class DecodedImage:
    """An image of a stream as the model reads it."""

    place: int
    path: str  # empty where the image did not come as a path
    pixels: np.ndarray  # uint8 (R, R, 3)


@dataclass(frozen=True)
class BadImage:
    """An image of a stream that has no pixels, or no vector, and the reason."""

    place: int
    path: str  # empty where the image did not come as a path
    stage: Stage
    cause: Exception
    format_name: str | None = None  # where the image came encoded

    def make_failure(self) -> Failure:
        """Return the reason as a record; its id is the image's place."""
        return make_failure(Item(str(self.place), self.path, 0), self.stage, self.cause, self.format_name)

    def make_error(self) -> ClipError:
        """Return the reason as an error about the image's place."""
        item, cause = f"image {self.place}", self.cause
        if isinstance(cause, ClipError):
            return cause.about(item)
        verb = "read" if self.stage == "read" else "decoded"
        reason = f"cannot be {verb} ({type(cause).__name__}: {cause})"
        return ImageError(item, reason, remedy="Leave it out, or repair it.")


def decode_stream(
    images: Iterable[object],
    settings: PreprocessSettings,
    mode: PixelMode,
    *,
    ahead: int,
    max_pixels: int | None = None,
) -> Generator[DecodedImage | BadImage]:
    """Decode images in any form that `open_image` takes, in order, by one thread per core.

    The threads are at most `ahead` images ahead of the consumer, and one each. Of encoded images `max_pixels` is the
    limit; without it the program's own.

    Shapes:  pixels uint8 (R, R, 3), channels R, G, B.
    """

    def read(numbered: tuple[int, object]) -> DecodedImage | BadImage:
        place, image = numbered
        path, stages = "", list[Stage](["read"])
        format_name = None
        try:
            path = os.fsdecode(image) if isinstance(image, (str, os.PathLike)) else ""
            if not is_encoded(image):
                stages.append("open")
                opened = open_image(image)
                stages.append("decode")
                return DecodedImage(place, path, read_pixels(opened, settings, mode))
            data = read_bytes(image)
            stages.append("open")
            format_name = sniff_format(data)
            pixels = read_pixels_of(data, settings, mode, lambda: stages.append("decode"), max_pixels)
            return DecodedImage(place, path, pixels)
        except Exception as exc:  # noqa: BLE001  over 6,700 public files Pillow 13 raised nine types, TypeError among them
            return BadImage(place, path, stages[-1], exc, format_name)

    workers = available_cores()
    return map_ahead(read, enumerate(images), workers=workers, ahead=ahead + workers)


def split_batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield lists of `size` items; the last may be shorter."""
    batch: list[T] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
