"""What a user can ask of `clip search`, and what comes back. Knows nothing about how it is carried out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import InputError
from ..records import STDIN

if TYPE_CHECKING:
    from pathlib import Path

MAX_SHEET = 1_000  # images on a contact sheet, 75 million pixels


@dataclass(frozen=True, kw_only=True)
class SearchJob:
    """What `clip search` is asked for."""

    output: str | Path  # what clip embed wrote
    texts: tuple[str, ...] = ()  # these, the images and the vector are averaged
    images: tuple[str, ...] = ()  # files; "-" is stdin
    vector: str | None = None  # a file that holds a vector, as JSON or .npy; likewise
    without: tuple[str, ...] = ()  # texts whose average is subtracted
    k: int = 10  # hits
    min_score: float | None = None  # cosine
    where: str | None = None  # a condition on the columns, in SQL
    contact_sheet: str | Path | None = None  # an image of the hits to write
    model: str | None = None  # the run's weights; found by the manifest without
    device: str = "auto"  # of the model

    def __post_init__(self) -> None:
        if not (self.texts or self.images or self.vector):
            raise InputError(
                "query",
                "found nothing to look for",
                "a text, an image or a vector",
                "Pass `texts`.",
            )
        if [*self.images, self.vector].count(STDIN) > 1:
            raise InputError(
                "query",
                "found '-' twice",
                "stdin to be read once",
                "Name a file for the other.",
            )
        if self.contact_sheet is not None and not str(self.contact_sheet).lower().endswith(".png"):
            raise InputError(
                "`contact_sheet`",
                f"found {str(self.contact_sheet)!r}",
                "a name in .png",
                "Pass one.",
            )
        if self.contact_sheet is not None and self.k > MAX_SHEET:
            raise InputError(
                "`contact_sheet`",
                f"found {self.k:,} hits",
                f"at most {MAX_SHEET:,}",
                "Pass a smaller `k`.",
            )
        check_search(self.k, self.min_score)


def check_search(k: int, min_score: float | None) -> None:
    """Refuse numbers that make no sense. Raises: InputError."""
    if k < 1:
        raise InputError(
            "`k`",
            f"found {k}",
            "at least 1 hit",
            "Pass a larger number.",
        )
    if min_score is not None and math.isnan(min_score):
        raise InputError(
            "`min_score`",
            "found nan",
            "a cosine from -1 to 1",
            "Pass a number.",
        )


@dataclass(frozen=True)
class Hit:
    """A row that a search found."""

    id: str
    path: str
    score: float  # cosine


@dataclass(frozen=True)
class SearchReport:
    """What a search found."""

    hits: tuple[Hit, ...]  # the best first; of equal ones the lower id first
    rows: int  # that there are
    unreadable: int = 0  # hits that the contact sheet has no image of
