"""Folders of images, as most tests take them: by formula, and some files that hold no image."""

from collections.abc import Iterable
from pathlib import Path

from kit import formula

NO_IMAGE = b"no image"


def number_names(count: int) -> list[str]:
    return [f"{n:02}.png" for n in range(count)]


def draw_photos(
    folder: Path,
    names: Iterable[str],
    *,
    width: int = 40,
    height: int = 30,
    wider: int = 0,
    first: int = 0,
    broken: Iterable[str] = (),
) -> Path:
    """Make a folder of images, each `wider` px wider than the one before it; files of `broken` hold none."""
    folder.mkdir(parents=True, exist_ok=True)
    for n, name in enumerate(names):
        formula.picture(first + n, width + wider * n, height).save(folder / name)
    for name in broken:
        (folder / name).write_bytes(NO_IMAGE)
    return folder
