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

from clip.errors import ImageError, InputTypeError
from clip.items import Failure, Guards, Item, Pixels, Policies, PreprocessSettings, Row, Stage
from clip.policies import HEIF, by_policy, encoded_by_policy, is_heif, pictures_held

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractContextManager

    from clip.items import Orient

PREPROCESS_ID = "openai-clip"  # goes into manifests: the five steps, as openai/CLIP@d05afc4 has them
BICUBIC = Image.Resampling.BICUBIC
INTERPOLATIONS = {"bicubic": BICUBIC, "bilinear": Image.Resampling.BILINEAR}
# A 1 x 50 picture is resized to 224 x 11200 before its middle is cut out, and thinner ones to more than memory holds.
MAX_CANVAS_PX = 256_000_000  # pixels of the resized picture; up to 1 GB in Pillow's four bytes a pixel
# Pillow's readers that start another program (EPS runs Ghostscript), or that only tell the header.
UNDECODABLE_FORMATS = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})
# What frames="all" goes through. A PSD's layers are no pictures of their own; what is rarer was not tried.
FORMATS_WITH_FRAMES = frozenset({"AVIF", "GIF", HEIF, "MPO", "PNG", "TIFF", "WEBP"})
SNIFF_BYTES = 16  # what Pillow hands its readers to recognise a format by


def resized_size(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Width and height after the shorter side became `short_side`; the longer one is rounded down.

    Units:   px.
    Source:  torchvision 0.29.2 transforms/functional.py:358, whose float arithmetic decides 1 px cases.
    """
    short, long = (width, height) if width <= height else (height, width)
    new_long = int(short_side * long / short)
    return (short_side, new_long) if width <= height else (new_long, short_side)


def crop_offset(size: int, crop: int) -> int:
    """Where a centre crop starts: half of what is left, rounded half to even. Units: px.

    Flooring instead shifts the crop by a pixel wherever `size - crop` leaves 3 modulo 4.
    Source:  torchvision 0.29.2 transforms/functional.py:592.
    """
    return round((size - crop) / 2.0) if size >= crop else -((crop - size) // 2)


class Resize:
    """Scale a picture until its shorter side is `size` px, or to (height, width). One that fits is left untouched."""

    def __init__(self, size: int | tuple[int, int], interpolation: Image.Resampling = BICUBIC) -> None:
        self.size = size
        self.interpolation = interpolation

    def __call__(self, image: Image.Image) -> Image.Image:
        """Shapes: (H, W) any mode -> same mode, resized. Raises: ImageError where that is over 256 megapixels."""
        _check_is_image(image, "preprocess")
        width, height = image.size
        if not width or not height:
            raise ImageError(f"picture: {width} x {height} px, expected sides above 0. Leave it out.")
        size = resized_size(width, height, self.size) if isinstance(self.size, int) else (self.size[1], self.size[0])
        if size == image.size:
            return image
        if size[0] * size[1] > MAX_CANVAS_PX:
            raise ImageError(
                f"picture: {width} x {height} px would be resized to {size[0]} x {size[1]}, "
                f"expected at most {MAX_CANVAS_PX:,} pixels. Crop it first, or leave it out."
            )
        return image.resize(size, self.interpolation)

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
    for step in pixel_steps(settings):
        image = step(image)
    return np.asarray(image)


def decode(
    item: Item,
    data: bytes,
    settings: PreprocessSettings,
    reserve: Callable[[int], AbstractContextManager[None]] = nullcontext,
    guards: Guards = Guards(),  # noqa: B008  frozen
    policies: Policies = Policies(),  # noqa: B008  frozen
) -> list[Pixels | Failure]:
    """One encoded picture -> one model input, or the reason there is none; several where all frames are wanted.

    With frames="all" a file of several frames gives one outcome for each, with the ids `id#0`, `id#1` and so on. The
    first that fails is the last: what came before is kept. `reserve` is entered with the bytes that decoding a frame
    will take, once its header has told the size and `guards` let it pass, and left before the next.

    A row's width and height are those of the picture that was resized, so after it was turned: then a JPEG and a HEIC
    of one photo have the same under each policy.

    Shapes:  data of any of `decodable_formats` -> uint8 (R, R, 3).
    """
    found: list[Pixels | Failure] = []
    several = False
    try:
        with _open_encoded(data, policies.orient) as image:
            for _ in _frames(image, guards.max_frames) if policies.frames == "all" else (0,):
                found.append(_decode_frame(item, image, len(data), settings, reserve, guards, policies))
                if isinstance(found[-1], Failure):
                    several = policies.frames == "all" and _is_animated(image)
                    break
    except Exception as exc:  # noqa: BLE001  over 6,700 public files Pillow 13 raised nine types, TypeError among them
        found.append(_failure(item, "open", exc))
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
) -> Pixels | Failure:
    """What the opened file shows now, decoded."""
    stage: Stage = "open"
    try:
        check_size(*image.size, guards)
        stage = "decode"
        with reserve(_decoded_bytes(*image.size, settings.resolution_px, pictures_held(policies))):
            picture = by_policy(image, policies)
            width, height = picture.size  # before it is decoded, unless a policy did: as the header has it
            array = to_pixels(picture, settings)
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
