"""A folder of drawn scenes, and a list of what they show."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from ..atomic_files import atomic_write, translate_os_errors
from ..errors import InputError
from .drawing import draw
from .scenes import Scene, caption, compose, describe

if TYPE_CHECKING:
    from ..jobs.demo import DemoJob

LIST, IMAGES = "scenes.csv", "scenes"
RESULTS = VECTORS, SHEET = "vectors", "hits.png"  # what the demo writes beside them
COLUMNS = ("path", "caption", "shape", "colour")
TWO = "two"  # in place of a shape or a colour
UNSEEN_EVERY = 10  # every tenth scene has only pairs of colour and shape that training never drew
SHORT_SIDE_PX = (192, 384)  # larger than in training, for people to look at


@dataclass(frozen=True)
class Drawing:
    """An image of a scene."""

    path: str  # relative to the folder
    scene: Scene
    caption: str  # it may leave out sizes and background


def draw_folder(job: DemoJob) -> tuple[Path, list[Drawing]]:
    """Draw JPEGs and write a list of their captions, shapes and colours; return the list's path and the drawings.

    Shape and colour are "two" where an image shows two things. The images of an earlier list are removed first.

    Raises:  InputError if the folder holds something else under these names; StoreError if it cannot be written.
    """
    folder = Path(job.output)
    rng = Random() if job.seed is None else Random(f"demo {job.seed}")
    drawings: list[Drawing] = []
    for number in range(job.scenes):
        scene = compose(rng, unseen=number % UNSEEN_EVERY == UNSEEN_EVERY - 1)
        name = f"{number:04}-{describe(scene).replace(' ', '-')}.jpg"
        drawings.append(Drawing(f"{IMAGES}/{name}", scene, caption(rng, scene)))
    with translate_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _clear(folder)
        with atomic_write(folder / LIST) as file:  # before the images: after a crash it names what to remove
            file.write(_format_list(drawings))
        (folder / IMAGES).mkdir()
        for drawing in drawings:
            draw(rng, drawing.scene, SHORT_SIDE_PX).save(folder / drawing.path, quality=90)
    return folder / LIST, drawings


def _format_list(drawings: list[Drawing]) -> bytes:
    lines = io.StringIO(newline="")
    table = csv.writer(lines, lineterminator="\n")
    table.writerow(COLUMNS)
    for drawing in drawings:
        thing = drawing.scene.first
        shape, colour = (TWO, TWO) if drawing.scene.second else (thing.shape, thing.colour)
        table.writerow((drawing.path, drawing.caption, shape, colour))
    return lines.getvalue().encode()


def _clear(folder: Path) -> None:
    """Remove what an earlier call drew. Raises: InputError, for files that it did not draw."""
    list_path, images = folder / LIST, folder / IMAGES
    for name in _read_names(list_path) if list_path.exists() else ():
        (images / name).unlink(missing_ok=True)
    for name in RESULTS if not list_path.exists() else ():
        if (folder / name).exists():
            found = f"exists without a {LIST} of an earlier demo"
            raise InputError(folder / name, found, remedy="Pass another folder.")
    if images.exists():
        if any(images.iterdir()):
            raise InputError(images, "holds other files", "none", "Pass another folder.")
        images.rmdir()


def _read_names(list_path: Path) -> list[str]:
    try:
        rows = list(csv.reader(list_path.read_text(encoding="utf-8").splitlines(), strict=True))
    except (ValueError, csv.Error):
        rows = []
    if not rows or tuple(rows[0]) != COLUMNS or any(len(row) != len(COLUMNS) for row in rows):
        raise InputError(list_path, "is not the list of an earlier demo", remedy="Pass another folder.")
    return [Path(row[0]).name for row in rows[1:]]
