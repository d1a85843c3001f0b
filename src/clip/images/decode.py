"""Where a JPEG becomes pixels: an encoded image -> uint8 pixels as a model reads them, or a failure. Needs no torch.

`open_encoded` reads the header, `adjust` does what the options ask for, and `to_pixels` has Pillow decode and makes
OpenAI's pixels; with `pixels="fast"` that is `shrink_on_load` and `to_pixels_fast`, with "immich" `to_pixels_immich`.
"""

from __future__ import annotations

from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import TYPE_CHECKING

import numpy as np
from PIL import ExifTags, Image

from ..errors import ImageError
from ..jobs.options import DecodeOptions, Limits, PixelMode
from ..network.records import PreprocessSettings
from ..records import Failure, Item, Pixels, Row, Stage
from .adjust import UPRIGHT_BY, adjust, count_held_images, read_orientation
from .bomb_check import is_above_limit, unchecked
from .ending import describe_ending
from .fast import FAST_MODES, shrink_on_load, to_pixels_fast
from .geometry import resized_size
from .heif import HEIF, remove_rotation
from .immich import to_pixels_immich
from .jpeg import find_frame
from .mend import mend
from .metadata import describe_damage, is_stored_turned
from .open import (
    check_program_limit,
    is_encoded,
    make_failure,
    make_size_error,
    open_encoded,
    open_image,
    read_bytes,
    read_encoded,
    sniff_format,
)
from .raw import find_preview, is_raw
from .raw import read_orientation as read_raw_orientation
from .transform import STEADY_FORMATS, to_pixels
from .windows import cut_window

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager


ORIENTATION = ExifTags.Base.Orientation
# What frames="all" goes through. The layers of a PSD are not images; rarer formats were not tried.
FORMATS_WITH_FRAMES = frozenset({"AVIF", "GIF", HEIF, "MPO", "PNG", "TIFF", "WEBP"})


def decode(
    item: Item,
    data: bytes,
    settings: PreprocessSettings,
    reserve: Callable[[int], AbstractContextManager[None]] = nullcontext,
    limits: Limits = Limits(),  # noqa: B008  frozen
    options: DecodeOptions = DecodeOptions(),  # noqa: B008  frozen
    room_bytes: int = 0,
) -> list[Pixels | Failure]:
    """Decode one encoded image to one model input, or to the reason why there is none; to several for all frames.

    With frames="all" a file of several frames gives one outcome for each, with the ids `id#0`, `id#1` and so on. The
    first failure is the last outcome: the frames before it are kept. `reserve` is entered with the bytes that decoding
    a frame will take, once its header has given the size and `limits` allow it, and left before the next frame.

    A row's width and height are those of the image that was resized, so after it was turned: then a JPEG and a HEIC
    of one photo have the same, whatever the options. What cannot be decoded fast is decoded exactly, so that an image
    fails in one pixel mode if it fails in the other. Where only metadata is damaged, or something follows the image,
    the rows carry a `warning`.

    With `room_bytes` an image whose window (images/windows.py) takes no more is not resized, if its pixels are exact.

    Shapes:  data in any of `decodable_formats` -> uint8 (R, R, 3), or a window's (rows, columns, channels).
    """
    try:
        encoded, warnings = (data, list[str]()) if not options.raw_previews else replace_raw(data)
    except ImageError as exc:
        return [Failure.of(item, "open", exc)]
    decoder = _Decoder(item, len(data), settings, reserve, limits, options, room_bytes)
    if warnings:
        decoder = replace(decoder, orientation=read_raw_orientation(data))
    outcomes = decoder.decode(encoded)
    if isinstance(outcomes[-1], Failure) and outcomes[-1].error != MemoryError.__name__:
        for mended in mend(encoded, options):
            again = decoder.decode(mended.data)
            if not isinstance(again[-1], Failure):
                encoded, outcomes = mended.data, again
                warnings.append(mended.warning)
                break
    if options.pixels == "fast" and isinstance(outcomes[-1], Failure) and outcomes[-1].stage == "decode":
        return decode(item, data, settings, reserve, limits, replace(options, pixels="exact"))
    if isinstance(outcomes[0], Pixels) and (ending := describe_ending(encoded, outcomes[0].row.format)):
        warnings.append(ending)
    return [_with_warnings(outcome, warnings) for outcome in outcomes] if warnings else outcomes


def replace_raw(data: bytes) -> tuple[bytes, list[str]]:
    """Return the JPEG inside a RAW photo, and the warning of it; any other encoded image with none.

    Raises:  ImageError for a RAW photo without a JPEG.
    """
    if not is_raw(data):
        return data, []
    preview = find_preview(data)
    if preview is None:
        found = "is a RAW photo without a JPEG inside"
        raise ImageError("image", found, "its preview", "Convert it with the program of the camera's maker.")
    width, height = find_frame(preview) or (0, 0)
    return preview, [f"the JPEG of {width} x {height} px inside a RAW photo"]


def read_pixels(image: object, settings: PreprocessSettings, pixels: PixelMode = "exact") -> np.ndarray:
    """Return the pixels of an image in any form that `open_image` takes.

    Shapes:  -> uint8 (R, R, 3), channels R, G, B.
    Raises:  as `open_image`; what Pillow raises for a damaged image comes through.
    """
    if not is_encoded(image):
        opened = open_image(image)  # the caller's own image is not shrunk
        return _make_pixels(opened, opened.size, 1, settings, pixels)
    return read_pixels_of(read_bytes(image), settings, pixels)


def read_pixels_of(
    data: bytes,
    settings: PreprocessSettings,
    pixels: PixelMode,
    opened: Callable[[], None] = lambda: None,
    max_pixels: int | None = None,
) -> np.ndarray:
    """Return the pixels of an encoded image as `read_pixels` does; `opened` is called when its header has been read.

    With `max_pixels` that is the limit, and not the program's own.
    """

    def use(image: Image.Image, mode: PixelMode) -> np.ndarray:
        opened()
        if max_pixels is None:
            check_program_limit(image.size)
        else:
            _check_size(*image.size, Limits(max_pixels=max_pixels))
        with unchecked() if max_pixels is not None and is_above_limit(image.size) else nullcontext():
            size = image.size
            divisor = shrink_on_load(image, settings.resolution_px, DecodeOptions()) if mode == "fast" else 1
            return _make_pixels(image, size, divisor, settings, mode)

    if pixels == "fast":
        with suppress(OSError):  # what cannot be decoded fast is decoded exactly
            return read_encoded(data, partial(use, mode="fast"), max_pixels=max_pixels)[0]
        pixels = "exact"
    return read_encoded(data, partial(use, mode=pixels), max_pixels=max_pixels)[0]


@dataclass(frozen=True)
class _Decoder:
    """Decodes the frames of one file; holds what is the same for all of them."""

    item: Item
    size_bytes: int
    settings: PreprocessSettings
    reserve: Callable[[int], AbstractContextManager[None]]
    limits: Limits
    options: DecodeOptions
    room_bytes: int
    orientation: int | None = None  # where another file holds it

    def decode(self, data: bytes) -> list[Pixels | Failure]:
        """Return the outcome of each frame that is asked for; a failure is the last one."""
        outcomes: list[Pixels | Failure] = []
        animated = False
        all_frames = self.options.frames == "all"
        try:
            with open_encoded(data, self.options.orient, self.limits.max_pixels) as image:
                is_turned = image.format == HEIF and self.options.orient == "none" and remove_rotation(data) != data
                with unchecked() if is_above_limit(image.size) else nullcontext():
                    for _ in seek_frames(image, self.limits.max_frames) if all_frames else (0,):
                        outcomes.append(self._decode_frame(image, is_turned))
                        if isinstance(outcomes[-1], Failure):
                            animated = all_frames and _is_animated(image)
                            break
        except Exception as exc:  # noqa: BLE001  over 6,700 public files Pillow 13 raised nine types, TypeError among them
            outcomes.append(make_failure(self.item, "open", exc, sniff_format(data)))
        if len(outcomes) == 1 and not animated:
            return outcomes
        return [_with_id(outcome, f"{self.item.id}#{number}") for number, outcome in enumerate(outcomes)]

    def _decode_frame(self, image: Image.Image, is_turned: bool) -> Pixels | Failure:
        """Decode the frame that an opened file is at."""
        stage: Stage = "open"
        item, options, settings = self.item, self.options, self.settings
        try:
            _check_size(*image.size, self.limits)
            if self.orientation is not None and ORIENTATION not in image.getexif():
                image.getexif()[ORIENTATION] = self.orientation
                is_turned = self.orientation in UPRIGHT_BY
            stage = "decode"
            with self.reserve(_decoded_bytes(*image.size, settings.resolution_px, count_held_images(options))):
                full_size = image.size
                divisor = shrink_on_load(image, settings.resolution_px, options) if options.pixels == "fast" else 1
                adjusted = adjust(image, options)
                width, height = adjusted.size  # as the header has it, unless `adjust` had to decode the image
                if divisor > 1:
                    width, height = full_size if adjusted is image else (width * divisor, height * divisor)
                room_bytes = self.room_bytes if options.pixels == "exact" else 0
                cut = cut_window(adjusted, settings, room_bytes) if room_bytes else None
                array, window = cut or (
                    _make_pixels(adjusted, (width, height), divisor, settings, options.pixels),
                    None,
                )
            damage = list(describe_damage(image))
            if options.orient == "exif" and read_orientation(image) is None:
                damage = ["the EXIF data cannot be read, so the image is not turned"]
            warning = "; ".join(damage) or None
            row = Row(
                item.id, item.path, width, height, image.format or "", self.size_bytes, None, warning, item.values
            )
            stored_turned = options.orient == "none" and (is_turned or is_stored_turned(image))
            return Pixels(row, array, stored_turned=stored_turned, window=window)
        except Exception as exc:  # noqa: BLE001  as in decode
            return make_failure(item, stage, exc, image.format)


def _make_pixels(
    image: Image.Image, size: tuple[int, int], divisor: int, settings: PreprocessSettings, mode: PixelMode
) -> np.ndarray:
    """Return the pixels of an image that was `size` before its sides were divided."""
    if mode == "immich":
        return to_pixels_immich(image, settings)
    if mode == "fast" and image.mode in FAST_MODES and image.format in STEADY_FORMATS:
        return to_pixels_fast(image, size, divisor, settings)
    return to_pixels(image, settings)


def _check_size(width: int, height: int, limits: Limits) -> None:
    """Refuse an image for its size alone. Raises: ImageError."""
    if width * height > limits.max_pixels:
        raise make_size_error(width, height, limits.max_pixels)
    if limits.max_aspect is not None and max(width, height) > limits.max_aspect * min(width, height) > 0:
        bound = f"sides of at most {limits.max_aspect:g} to 1"
        raise ImageError("image", f"{width} x {height} px", bound, "Crop it, or raise `max_aspect`.")


def _decoded_bytes(width: int, height: int, resolution_px: int, held_images: int) -> int:
    """Return what decoding and resizing hold at their peak: Pillow keeps four bytes per pixel for all colour modes."""
    resized_width, resized_height = resized_size(max(width, 1), max(height, 1), resolution_px)
    return 4 * (held_images * width * height + resized_width * resized_height)


def seek_frames(image: Image.Image, max_frames: int) -> Iterator[int]:
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
    return replace(outcome, row=outcome.row._replace(id=frame_id))


def _with_warnings(outcome: Pixels | Failure, warnings: list[str]) -> Pixels | Failure:
    if isinstance(outcome, Failure):
        return outcome
    own = [outcome.row.warning] if outcome.row.warning else []
    return replace(outcome, row=outcome.row._replace(warning="; ".join([*warnings, *own])))
