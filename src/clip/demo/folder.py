"""A folder of drawn scenes, and a list of what they show. Knows nothing about models or the command line."""

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
from .scenes import caption, compose, plain_words

if TYPE_CHECKING:
    from ..jobs.demo import DemoJob
    from .scenes import Scene

LIST, IMAGES = "scenes.csv", "scenes"
OTHERS = VECTORS, SHEET = "vectors", "hits.png"  # what a demo makes beside them
COLUMNS = ("path", "caption", "shape", "colour")
TWO = "two"  # in place of a shape or a colour
UNSEEN_EVERY = 10  # one in so many scenes is of pairs of colour and shape that training never drew
SHORT_SIDE_PX = (192, 384)  # larger than in training, for people to look at


@dataclass(frozen=True)
class Drawn:
    """An image, and what it shows."""

    path: str  # below the folder
    scene: Scene
    caption: str  # all of it but perhaps sizes and background


def draw_folder(job: DemoJob) -> tuple[Path, list[Drawn]]:
    """Draw JPEGs, write a list of them with their captions, shapes and colours; tells its path and what was drawn.

    Shape and colour are "two" where an image shows two. What an earlier list names is removed first.

    Raises:  InputError where the folder holds something else of these names; StoreError where it cannot be written.
    """
    folder = Path(job.output)
    rng = Random() if job.seed is None else Random(f"demo {job.seed}")
    drawn: list[Drawn] = []
    for number in range(job.scenes):
        scene = compose(rng, unseen=number % UNSEEN_EVERY == UNSEEN_EVERY - 1)
        name = f"{number:04}-{plain_words(scene).replace(' ', '-')}.jpg"
        drawn.append(Drawn(f"{IMAGES}/{name}", scene, caption(rng, scene)))
    with translate_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _clear(folder)
        with atomic_write(folder / LIST) as file:  # before the images, so that after a break it tells what to remove
            file.write(_listed(drawn))
        (folder / IMAGES).mkdir()
        for one in drawn:
            draw(rng, one.scene, SHORT_SIDE_PX).save(folder / one.path, quality=90)
    return folder / LIST, drawn


def _listed(drawn: list[Drawn]) -> bytes:
    lines = io.StringIO(newline="")
    table = csv.writer(lines, lineterminator="\n")
    table.writerow(COLUMNS)
    for one in drawn:
        only = (TWO, TWO) if one.scene.second else (one.scene.first.shape, one.scene.first.colour)
        table.writerow((one.path, one.caption, *only))
    return lines.getvalue().encode()


def _clear(folder: Path) -> None:
    """Remove what an earlier call drew; refuse to touch anything else."""
    listed, images = folder / LIST, folder / IMAGES
    for name in _names(listed) if listed.exists() else ():
        (images / name).unlink(missing_ok=True)
    for name in OTHERS if not listed.exists() else ():
        if (folder / name).exists():
            raise InputError(
                f"{folder / name}",
                f"stands there, and no {LIST} of ours",
                "both or none",
                "Pass another folder.",
            )
    if images.exists():
        if any(images.iterdir()):
            raise InputError(
                images,
                "holds other files",
                "none",
                "Pass another folder.",
            )
        images.rmdir()


def _names(listed: Path) -> list[str]:
    try:
        rows = list(csv.reader(listed.read_text(encoding="utf-8").splitlines(), strict=True))
    except (ValueError, csv.Error):
        rows = []
    if not rows or tuple(rows[0]) != COLUMNS or any(len(row) != len(COLUMNS) for row in rows):
        raise InputError(
            listed,
            "not a list of ours",
            "one or none",
            "Pass another folder.",
        )
    return [Path(row[0]).name for row in rows[1:]]
