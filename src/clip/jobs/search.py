"""The job of `clip.search`, its hits and its report."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..records import STDIN
from .fields import documented
from .options import check_place, list_inputs

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

MAX_SHEET = 1_000  # images on a contact sheet, 75 million pixels
SHEET_ENDINGS = {"contact_sheet": (".png",), "html": (".html", ".htm")}


MAX_WEIGHT = 1_000.0


@documented
@dataclass(frozen=True)
class Weighted:
    """A text or an image of a query with a weight: above 1 it counts more, below 0 it is to be avoided."""

    value: Any
    """The text, or the image in any form that a search takes."""
    weight: float
    """What its vector is multiplied by."""

    def __post_init__(self) -> None:
        if not 0 < abs(self.weight) <= MAX_WEIGHT:
            expected = f"a number of up to {MAX_WEIGHT:g}, above or below 0"
            raise InputError("weight", f"found {self.weight}", expected, "Pass 2, say, or -1.")


def weigh(value: Any) -> Weighted:
    """Return a text or an image with its weight, 1 where it has none."""
    return value if isinstance(value, Weighted) else Weighted(value, 1.0)


@documented
@dataclass(frozen=True, kw_only=True)
class SearchJob:
    """A query over an output. Texts, images, rows and the vector are averaged; negative texts are subtracted."""

    output: str | Path | Sequence[str | Path]
    """The folder that `clip.embed` wrote; or several of the same weights, which are searched as one."""
    texts: tuple[str | Weighted, ...] = ()
    """Texts to find images of."""
    images: tuple[str | Weighted, ...] = ()
    """Image files, or URLs, to find similar images to; "-" is stdin."""
    like: tuple[str, ...] = ()
    """Ids of rows to find others like them."""
    vector: str | None = None
    """File with a vector to find, as JSON or .npy; "-" is stdin."""
    negative: tuple[str, ...] = ()
    """Texts to avoid: their average is subtracted."""
    k: int = 10
    """Number of hits to return."""
    min_score: float | None = None
    """Lowest cosine that a hit may have."""
    where: str | None = None
    """Condition on the columns, in SQL; default: all rows."""
    group_duplicates: bool = False
    """Of hits that are one image, by files and pixels as of `find_duplicates`, return the best alone."""
    contact_sheet: str | Path | None = None
    """PNG file to write the hits to, as one image."""
    html: str | Path | None = None
    """HTML file to write the hits to, as a page that needs no other file."""
    root: str | Path | None = None
    """Folder where the images are now, if they have moved since; it replaces the one that the output names."""
    fetch: bool = False
    """Ask servers for images of the contact sheet or the page that are there, at addresses that the output names."""
    model: str | None = None
    """The run's weights; default: as in the manifest."""
    device: str = "auto"
    """Device of the model."""

    def __post_init__(self) -> None:
        if not (self.wanted or self.like or self.vector):
            raise InputError("query", "found nothing to look for", "a text, an image or a vector", "Pass `texts`.")
        if [*(weigh(image).value for image in self.images), self.vector].count(STDIN) > 1:
            raise InputError("query", "found '-' twice", "stdin to be read once", "Name a file for the other.")
        for name, endings in SHEET_ENDINGS.items():
            sheet = getattr(self, name)
            if sheet is None:
                continue
            check_place(name, sheet)
            if not str(sheet).lower().endswith(endings):
                raise InputError(f"`{name}`", f"found {str(sheet)!r}", f"a name in {endings[0]}", "Pass one.")
            if self.k > MAX_SHEET:
                raise InputError(f"`{name}`", f"found {self.k:,} hits", f"at most {MAX_SHEET:,}", "Pass a smaller `k`.")
        check_search(self.k, self.min_score)
        if not self.outputs:
            raise InputError("`output`", "found none", "one or several outputs", "Pass them.")
        if self.root is not None and self.outputs[1:]:
            raise InputError("`root`", "found several outputs", "one, whose images moved", "Search them one by one.")

    @property
    def wanted(self) -> list[Any]:
        """The texts and images that are not to be avoided."""
        return [term.value for term in map(weigh, [*self.texts, *self.images]) if term.weight > 0]

    @property
    def words(self) -> list[str]:
        """All texts, of those to be avoided too."""
        return [*(weigh(text).value for text in self.texts), *self.negative]

    @property
    def outputs(self) -> tuple[str, ...]:
        """The outputs in `output`, as texts."""
        return list_inputs(self.output)


def check_search(k: int, min_score: float | None) -> None:
    """Raise InputError for a number of hits below 1, and for a score that is not a number."""
    if k < 1:
        raise InputError("`k`", f"found {k}", "at least 1 hit", "Pass a larger number.")
    if min_score is not None and math.isnan(min_score):
        raise InputError("`min_score`", "found nan", "a cosine from -1 to 1", "Pass a number.")


@documented
@dataclass(frozen=True)
class Hit:
    """A row that a search returned."""

    id: str
    """The row's id."""
    path: str
    """Where its image is, by the output's base or the job's root."""
    score: float
    """Cosine to the query, -1..1."""


@documented
@dataclass(frozen=True)
class SearchReport:
    """The result of a search."""

    hits: tuple[Hit, ...]
    """The highest score first; of equal scores the lower id first."""
    rows: int
    """Rows searched."""
    unreadable: int = 0
    """Hits whose image the contact sheet, or the page, could not read."""
    missing_letters: str = ""
    """Letters of the contact sheet that no font of this machine has, so that boxes are drawn."""
    how: tuple[str, ...] = ()
    """How the index of each output was searched, in words, and the recall that was measured of it."""
