"""Folders of JPEGs by formula, made on first use. Knows nothing about models."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kit import formula
from models import CACHE, whole_folder
from PIL import Image

if TYPE_CHECKING:
    from pathlib import Path

QUALITY = 90
SOFT = 2  # the formula's noise is drawn on a grid so much coarser: as sharp as a photo, not as a page of static


@dataclass(frozen=True)
class Kind:
    """A kind of image that users have."""

    sizes: tuple[tuple[int, int], ...]  # width and height, in turns [Unit: px]
    distinct: int  # a folder of more repeats them under other names
    pictures: int  # in the folder for ViT-B/32, at most


KINDS = {
    "web": Kind(((512, 384), (400, 500), (600, 400), (450, 450)), distinct=64, pictures=256),  # 0.2 MP
    "12mp": Kind(((4000, 3000), (3000, 4000)), distinct=8, pictures=32),
}


def folder(kind: str, count: int) -> Path:
    """A folder with so many images of a kind; their names sort in the order they were made."""
    path = CACHE / "images" / f"{kind}-{count}"
    if not path.exists():
        distinct = KINDS[kind].distinct
        encoded = [jpeg(kind, i) for i in range(min(count, distinct))]
        with whole_folder(path) as part:
            for i in range(count):
                (part / f"{i:05}.jpg").write_bytes(encoded[i % distinct])
    return path


def jpeg(kind: str, i: int) -> bytes:
    """The i-th image of a kind, encoded."""
    sizes = KINDS[kind].sizes
    width, height = sizes[i % len(sizes)]
    coarse = formula.picture(i, width // SOFT, height // SOFT)
    buffer = io.BytesIO()
    coarse.resize((width, height), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def how_many(kind: str, gflops: float, batch: int) -> int:
    """Images for a model: fewer the larger it is, whole batches, and two at least."""
    of_small = 8.82 * KINDS[kind].pictures / gflops  # ViT-B/32 has 8.82 GFLOP
    return max(2, round(min(of_small, KINDS[kind].pictures) / batch)) * batch
