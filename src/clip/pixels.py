"""A picture -> uint8 pixels as a model reads them, bit for bit OpenAI's. Knows nothing about models; needs no torch.

The first three steps of the reference's transform, in its order: resize, crop, convert to RGB. The order matters, as
Pillow resizes palettes with NEAREST and alpha premultiplied: converting first would change such pictures' vectors.
"""

from __future__ import annotations

import io
import os
import struct
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import cache
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, UnidentifiedImageError

from clip.crops import SUPPORT, crop_of, crop_offset, reached, resized_size, target_size
from clip.errors import ImageError, InputTypeError
from clip.fast_pixels import FAST_MODES, fast_pixels, shrink
from clip.items import Failure, Guards, Item, Pixels, Policies, PreprocessSettings, Row, Stage
from clip.policies import HEIF, by_policy, encoded_by_policy, is_heif, pictures_held

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractContextManager

    from clip.items import Decode, Orient

PREPROCESS_ID = "openai-clip"  # goes into manifests: the five steps, as openai/CLIP@d05afc4 has them
BICUBIC = Image.Resampling.BICUBIC
INTERPOLATIONS = {"bicubic": BICUBIC, "bilinear": Image.Resampling.BILINEAR}
# Formats whose size and mode do not change when they are decoded; None is for pictures that were made of others.
STEADY = frozenset({None, "AVIF", "BMP", "JPEG", "MPO", "PNG", "PPM", "TIFF", "WEBP"})
TWO_PASSES = frozenset({"CMYK", "L", "RGB"})  # modes that Pillow resizes as they are, by width and then by height
# Pillow's readers that start another program (EPS runs Ghostscript), or that only tell the header.
UNDECODABLE_FORMATS = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})
# What frames="all" goes through. A PSD's layers are no pictures of their own; what is rarer was not tried.
FORMATS_WITH_FRAMES = frozenset({"AVIF", "GIF", HEIF, "MPO", "PNG", "TIFF", "WEBP"})
STRIP_ROWS = 512  # resized at a time: a copy of a whole large picture costs as much as it saves
SNIFF_BYTES = 16  # what Pillow hands its readers to recognise a format by


class Resize:
    """Scale a picture until its shorter side is `size` px, or to (height, width). One that fits is left untouched."""

    def __init__(self, size: int | tuple[int, int], interpolation: Image.Resampling = BICUBIC) -> None:
        self.size = size
        self.interpolation = interpolation

    def __call__(self, image: Image.Image) -> Image.Image:
        """Shapes: (H, W) any mode -> same mode, resized. Raises: ImageError where that is over 256 megapixels."""
        _check_is_image(image, "preprocess")
        size = target_size(*image.size, self.size)
        return image if size == image.size else image.resize(size, self.interpolation)

    def __repr__(self) -> str:
        return f"Resize(size={self.size}, interpolation={self.interpolation.name.lower()})"


class CenterCrop:
    """Cut the middle out of a picture; a side that is too short is filled up with 0."""

    def __init__(self, size: int | tuple[int, int]) -> None:
        self.size = (size, size) if isinstance(size, int) else size  # height, width, as in torchvision

    def __call__(self, image: Image.Image) -> Image.Image:
        """Shapes: (H, W) any mode -> (size[0], size[1]), same mode."""
        _check_is_image(image, "CenterCrop")
        height, width = self.size
        left, top = crop_offset(image.width, width), crop_offset(image.height, height)
        return image.crop((left, top, left + width, top + height))

    def __repr__(self) -> str:
        return f"CenterCrop(size={self.size})"


def convert_image_to_rgb(image: Image.Image) -> Image.Image:
    """Pillow's conversion to RGB: alpha is dropped, CMYK converted without a profile, 16 bits clipped to 255."""
    return image.convert("RGB")


def open_picture(image: object) -> Image.Image:
    """A picture in any form that `preprocess` takes -> a PIL image, decoded only if it came as a path.

    Raises:  InputTypeError (a TypeError) for another type or an array that is not uint8 (H, W, 3), ImageError for bytes
             of no format that Pillow decodes.
    """
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, (str, os.PathLike)):
        with Image.open(Path(image), formats=decodable_formats()) as opened:
            if opened.format == HEIF:
                return _open_encoded(Path(image).read_bytes())  # as stored, like all others
            opened.load()  # before the file is closed
            return opened
    if isinstance(image, (bytes, bytearray, memoryview)):
        return _open_encoded(bytes(image))
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise InputTypeError(
                f"picture: found an array of {image.dtype} {image.shape}, expected uint8 (H, W, 3). "
                "Scale it to 0..255 and put the channels last."
            )
        return Image.fromarray(image)
    raise InputTypeError(
        f"picture: found {type(image).__name__}, expected a PIL image, a path, bytes or a uint8 array. "
        "Open it with PIL.Image.open."
    )


def _open_encoded(data: bytes, orient: Orient = "none") -> Image.Image:
    if not data:
        raise ImageError("picture: empty, expected an encoded one. Restore it from where it came.")
    try:
        return Image.open(io.BytesIO(encoded_by_policy(data, orient)), formats=decodable_formats())
    except UnidentifiedImageError as exc:  # whose own message names a buffer at an address
        if is_heif(data) and HEIF not in decodable_formats():
            raise ImageError(
                "picture: a HEIC, expected a format that Pillow decodes. Run: pip install 'clip-turbo[heic]'"
            ) from exc
        if is_heif(data):
            raise ImageError("picture: a damaged HEIC, expected a whole one. Restore it from where it came.") from exc
        raise ImageError(
            f"picture: starts with {data[:SNIFF_BYTES]!r}, expected a format that Pillow decodes. Check what it is."
        ) from exc


def _check_is_image(image: object, where: str) -> None:
    if not isinstance(image, Image.Image):
        raise InputTypeError(
            f"{where}: found {type(image).__name__}, expected a PIL image. Open it with PIL.Image.open."
        )


def pixel_steps(settings: PreprocessSettings) -> list[Callable[[Image.Image], Image.Image]]:
    """Resize, crop, convert, as a checkpoint asks for them."""
    side = settings.resolution_px
    resize = Resize((side, side) if settings.resize_mode == "squash" else side, INTERPOLATIONS[settings.interpolation])
    return [resize, CenterCrop(side), convert_image_to_rgb]


def to_pixels(image: Image.Image, settings: PreprocessSettings) -> np.ndarray:
    """The first three steps: a PIL image -> uint8 (R, R, 3), channels R, G, B."""
    if image.format in STEADY and image.mode in TWO_PASSES and (cropped := _cropped_by_rows(image, settings)):
        return np.asarray(convert_image_to_rgb(cropped))
    for step in pixel_steps(settings):
        image = step(image)
    return np.asarray(image)


def _cropped_by_rows(image: Image.Image, settings: PreprocessSettings) -> Image.Image | None:
    """Resize and crop of an upright picture without the rows that the crop leaves out; None where that saves nothing.

    The same bits: the pass over the width, which is the dear one, treats each row alone, so rows may be missing in it.
    The pass over the height then finds the others in their places, and what it makes of the black ones is cut off.
    """
    width, height = image.size
    crop = crop_of(width, height, settings)
    if crop.height == crop.side or crop.columns_first or crop.width == width or crop.height == height:
        return None
    resample = INTERPOLATIONS[settings.interpolation]
    bottom = crop.top + crop.side
    first, last = reached(crop.top, bottom, height, crop.height, SUPPORT[settings.interpolation])
    last = min(last, height)
    narrow = Image.new(image.mode, (crop.width, height))
    for start in range(first, last, STRIP_ROWS):
        strip = image.crop((0, start, width, min(start + STRIP_ROWS, last)))
        narrow.paste(strip.resize((crop.width, strip.height), resample), (0, start))
    return narrow.resize((crop.width, crop.height), resample).crop((0, crop.top, crop.width, bottom))


def read_pixels(image: object, settings: PreprocessSettings, how: Decode = "exact") -> np.ndarray:
    """A picture in any form -> uint8 (R, R, 3), channels R, G, B. Raises: as `open_picture`, and what Pillow raises."""
    if how == "exact":
        return to_pixels(open_picture(image), settings)
    if isinstance(image, (str, os.PathLike, bytes, bytearray, memoryview)):
        data = Path(image).read_bytes() if isinstance(image, (str, os.PathLike)) else bytes(image)
        with suppress(OSError), _open_encoded(data) as opened:  # as in `decode`
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
        with _open_encoded(data, policies.orient) as image:
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


@cache
def decodable_formats() -> tuple[str, ...]:
    """Pillow's names of the formats we decode: all it reads by itself, without starting another program.

    HEIF, for HEIC files, is among them where the extra `heic` is installed, or a reader of them registered before.
    """
    Image.init()
    if HEIF not in Image.OPEN:
        with suppress(ImportError):
            from pi_heif import register_heif_opener

            register_heif_opener()
    return tuple(name for name in Image.ID if name not in UNDECODABLE_FORMATS)


@cache
def decodable_extensions() -> frozenset[str]:
    """The file name extensions of these formats, in lower case, with their dot."""
    formats = {*decodable_formats(), "MPO"}  # MPO, several JPEGs in one file, is read by the JPEG reader
    return frozenset(ext for ext, name in Image.registered_extensions().items() if name in formats)


def looks_like_picture(path: str) -> bool:
    """Whether a file's content is one of these formats, by its header. Raises OSError where it cannot be read."""
    with Path(path).open("rb") as file:
        return begins_like_picture(file.read(SNIFF_BYTES))


def begins_like_picture(prefix: bytes) -> bool:
    """Whether the first SNIFF_BYTES bytes are of one of these formats."""
    return any(_accepts(name, prefix) for name in decodable_formats())


def _accepts(name: str, prefix: bytes) -> bool:
    accepts = Image.OPEN[name][1]
    try:
        return accepts is not None and accepts(prefix) is True
    except (SyntaxError, IndexError, TypeError, struct.error):  # as in Image.open: prefixes shorter than a header
        return False
