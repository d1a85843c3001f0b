"""An image in any form -> a PIL image. What is encoded comes here as bytes, so that each way of reading gives the same.

`open_encoded` reads a header, `read_encoded` all of an image, and once more without damaged metadata where that fails.
"""

from __future__ import annotations

import io
import os
import struct
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..errors import ClipError, ImageError, InputTypeError
from ..jobs.options import DecodeOptions
from ..records import Failure
from .bomb_check import check, is_above_limit, unchecked
from .formats import SNIFF_BYTES, accepts, decodable_formats
from .heif import HEIF, remove_rotation
from .kinds import HEIC, RAW, VIDEO, sniff_unread_kind
from .mend import mend

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..jobs.options import Orient
    from ..records import Item, Member, Stage

T = TypeVar("T")
# Formats that a file's first bytes tell for certain.
TELLING_FORMATS = ("AVIF", "GIF", "JPEG", "JPEG2000", "PNG", "PSD", "QOI", "TIFF", "WEBP")
# What Pillow's readers raise for a file of another format. Source: Pillow 13.0.0 Image.open.
NOT_THIS_FORMAT = (SyntaxError, IndexError, TypeError, struct.error)
UNREAD = {  # by kind: what was found, expected, and the one thing to do
    HEIC: ("is a HEIC", "a format that Pillow decodes", "Run: pip install 'clip-turbo[heic]'"),
    RAW: ("is a RAW photo of a camera", "an image", "Convert it, or pass `decode.raw_previews=True` to clip embed."),
    VIDEO: ("is a video", "an image", "Take images out of it: ffmpeg -i VIDEO -vf fps=1 %04d.jpg"),
}
OTHER_CONTENT = {  # by first bytes: what it is, and the one thing to do
    (b"<!doctype html", b"<html"): ("a web page", "Check where it was downloaded from."),
    (b"<svg", b"<?xml"): ("a drawing or a text in XML", "Save it as PNG."),
    (b"%pdf",): ("a PDF", "Save its pages as PNG."),
    (b"version https://git-lfs",): ("a pointer of Git LFS, not the file", "Run: git lfs pull"),
}


def is_encoded(image: object) -> bool:
    """Whether an image comes as a path or as bytes."""
    return isinstance(image, (str, os.PathLike, bytes, bytearray, memoryview))


def read_bytes(image: object) -> bytes:
    """Return the bytes of an image that comes as a path or as bytes. Raises: OSError."""
    if isinstance(image, (bytes, bytearray, memoryview)):
        return bytes(image)
    return Path(os.fspath(image)).read_bytes()  # type: ignore[arg-type]  # pyright: ignore


def open_image(image: object) -> Image.Image:
    """Return a PIL image of anything that `preprocess` takes; what comes encoded is decoded already.

    Raises:  InputTypeError (a TypeError) for another type or an array that is not uint8 (H, W, 3), ImageError for bytes
             in no format that Pillow decodes, and for more pixels than the program lets Pillow decode.
    """
    if isinstance(image, Image.Image):
        return image
    if is_encoded(image):
        return read_encoded(read_bytes(image), _load)[0]
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            found = f"found an array of {image.dtype} {image.shape}"
            raise InputTypeError("image", found, "uint8 (H, W, 3)", "Scale it to 0..255 and put the channels last.")
        return Image.fromarray(image)
    found, forms = f"found {type(image).__name__}", "a PIL image, a path, bytes or a uint8 array"
    raise InputTypeError("image", found, forms, "Open it with PIL.Image.open.")


def _load(image: Image.Image) -> Image.Image:
    check_program_limit(image.size)
    image.load()
    return image


def check_program_limit(size: tuple[int, int], *, error_only: bool = False) -> None:
    """Refuse an image of more pixels than the program lets Pillow decode. Raises: ImageError."""
    try:
        check(size, error_only=error_only)
    except Image.DecompressionBombError as exc:
        found, limit = f"{size[0]} x {size[1]} px", f"at most {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels"
        raise ImageError("image", found, limit, "Shrink it, or set PIL.Image.MAX_IMAGE_PIXELS.") from exc


def read_encoded(
    data: bytes,
    use: Callable[[Image.Image], T],
    options: DecodeOptions = DecodeOptions(),  # noqa: B008  frozen
    max_pixels: int | None = None,
) -> tuple[T, str | None]:
    """Return what `use` makes of an opened image, and a warning where damaged metadata had to be left out for that.

    `use` decodes it, and is called again with what `mend` yields where it raises.

    Raises:  what `open_encoded` and `use` raised at first.
    """
    try:
        with open_encoded(data, options.orient, max_pixels) as image:
            return use(image), None
    except Exception as exc:  # Pillow 13 raised nine types over 6,700 public files
        if isinstance(exc, MemoryError):
            raise
        for mended in mend(data, options):
            try:
                with open_encoded(mended.data, options.orient, max_pixels) as image:
                    return use(image), mended.warning
            except Exception as again:
                if isinstance(again, MemoryError):
                    raise
        raise


def open_encoded(data: bytes, orient: Orient = "none", max_pixels: int | None = None) -> Image.Image:
    """Return a PIL image of an encoded one, not decoded yet.

    Pillow's limit to pixels is not applied; where its reader needs the memory for them at once, `max_pixels` is.

    Raises:  ImageError for what Pillow does not decode, and for RAW photos.
    """
    if not data:
        raise ImageError("image", "is empty", remedy="Restore it from its source.")
    kind = sniff_unread_kind(data[:SNIFF_BYTES] if data[:2] not in (b"II", b"MM") else data)
    if kind in (RAW, VIDEO):
        raise ImageError("image", *UNREAD[kind])
    stored = remove_rotation(data) if orient == "none" else data
    name = sniff_format(data)
    try:
        size = _find_webp_size(data) if name == "WEBP" else None
        if size is None or not is_above_limit(size):
            return _open(stored)
        if max_pixels is None:
            check_program_limit(size, error_only=True)
        elif size[0] * size[1] > max_pixels:
            raise make_size_error(*size, max_pixels)
        with unchecked():
            return _open(stored)
    except (ClipError, MemoryError):
        raise
    except UnidentifiedImageError as exc:
        if kind == HEIC and HEIF not in decodable_formats():
            raise ImageError("image", *UNREAD[HEIC]) from exc
        if kind == HEIC:
            raise ImageError("image", "is a damaged HEIC", remedy="Restore it from its source.") from exc
        raise _explain_unopened(data, name, exc.__cause__ or exc) from exc
    except Exception as exc:
        raise _explain_unopened(data, name, exc) from exc


def make_size_error(width: int, height: int, max_pixels: int) -> ImageError:
    """Return the error of an image with more pixels than a job allows."""
    bound = f"at most {max_pixels:,} pixels"
    return ImageError("image", f"{width} x {height} px", bound, "Shrink it, or raise `max_pixels`.")


def _open(data: bytes) -> Image.Image:
    """Do what Image.open does, without its limit to pixels, which the caller compares."""
    file, begin, cause = io.BytesIO(data), data[:SNIFF_BYTES], None
    for name in decodable_formats():
        factory, accept = Image.OPEN[name]
        try:
            accepted = accept is None or accept(begin)
            if accepted and not isinstance(accepted, str):
                file.seek(0)
                return factory(file, "")
        except NOT_THIS_FORMAT as exc:
            cause = exc if name in TELLING_FORMATS else cause
    raise UnidentifiedImageError("no format that Pillow decodes") from cause


def _find_webp_size(data: bytes) -> tuple[int, int] | None:
    """Return the size of a WebP by its header; None for a damaged one. Source: RFC 9649, 2.5 to 2.7; RFC 6386, 9.1."""
    kind, header = data[12:16], data[20:30]
    if len(header) < 10:
        return None
    if kind == b"VP8X":
        return int.from_bytes(header[4:7], "little") + 1, int.from_bytes(header[7:10], "little") + 1
    if kind == b"VP8L":
        bits = int.from_bytes(header[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return int.from_bytes(header[6:8], "little") & 0x3FFF, int.from_bytes(header[8:10], "little") & 0x3FFF


def sniff_format(data: bytes) -> str | None:
    """Return Pillow's name of the format that an image has by its first bytes; None where they do not tell."""
    begin = data[:SNIFF_BYTES]
    return next((name for name in TELLING_FORMATS if name in decodable_formats() and accepts(name, begin)), None)


def _explain_unopened(data: bytes, name: str | None, exc: BaseException) -> ImageError:
    if name is not None:
        return ImageError("image", f"is a {name} whose header cannot be read ({describe(exc)})", *_whole(name))
    begin = data[:64].lstrip(b"\xef\xbb\xbf\r\n\t ").lower()
    for words, (what, remedy) in OTHER_CONTENT.items():
        if begin.startswith(words):
            return ImageError("image", f"is {what}", "an image", remedy)
    found = f"starts with {data[:SNIFF_BYTES]!r}"
    return ImageError("image", found, "a format that Pillow decodes", "Check what kind of file it is.")


def make_failure(entry: Item | Member, stage: Stage, exc: BaseException, format_name: str | None) -> Failure:
    """Return what an exception makes of an image; Pillow's own words get what was expected, and what to do."""
    failure = Failure.of(entry, stage, exc)
    if isinstance(exc, (ClipError, MemoryError)) or stage not in ("open", "decode"):
        return failure
    name = format_name or "file"
    error = ImageError("image", f"is a {name} whose pixels cannot be decoded ({describe(exc)})", *_whole(name))
    return replace(failure, message=error.reason)


def _whole(name: str) -> tuple[str, str]:
    return f"a whole {name}", "Restore it from its source, or save it as PNG with a program that reads it."


def describe(exc: BaseException) -> str:
    """Return an exception's own words on one line, or its name where it has none."""
    reason = exc.reason if isinstance(exc, ClipError) else str(exc)
    return next(iter(reason.splitlines()), "").rstrip(".") or type(exc).__name__
