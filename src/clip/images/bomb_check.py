"""Leave out Pillow's own limit to the pixels of an image, in one thread and for as long as one image takes.

The limit, `Image.MAX_IMAGE_PIXELS`, is one for the whole program and belongs to the user. Pillow's readers of TIFF,
WebP, GIF and MPO ask for it while they decode. Inside `unchecked` Pillow's function that compares is replaced by one
that asks which thread it is in; elsewhere it does what it did, and after the last block it is Pillow's again.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Generator

_own = threading.local()
_lock = threading.Lock()
_blocks = 0
_original: Any = None


def is_above_limit(size: tuple[int, int]) -> bool:
    """Whether Pillow would warn of an image of this size, or refuse it, as the program has set it."""
    return Image.MAX_IMAGE_PIXELS is not None and size[0] * size[1] > Image.MAX_IMAGE_PIXELS


@contextmanager
def unchecked() -> Generator[None]:
    """Let this thread decode an image of any size, once the caller has compared it with a limit of its own."""
    global _blocks, _original
    with _lock:
        if not _blocks:
            _original = Image._decompression_bomb_check  # pyright: ignore[reportPrivateUsage]
            Image._decompression_bomb_check = _check  # pyright: ignore[reportPrivateUsage]
        _blocks += 1
    outside, _own.unchecked = getattr(_own, "unchecked", False), True
    try:
        yield
    finally:
        _own.unchecked = outside
        with _lock:
            _blocks -= 1
            if not _blocks:
                Image._decompression_bomb_check = _original  # pyright: ignore[reportPrivateUsage]


def check(size: tuple[int, int], **options: bool) -> None:
    """Compare a size with the program's limit, as Pillow does: warn of it, or raise DecompressionBombError."""
    Image._decompression_bomb_check(size, **options)  # pyright: ignore[reportPrivateUsage]


def _check(size: tuple[int, int], **options: bool) -> None:
    if not getattr(_own, "unchecked", False):
        _original(size, **options)
