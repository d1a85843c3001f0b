"""What a user can ask of search, index and classify, spelt once, and what comes back. Knows nothing about the work.

As in jobs.py: nothing heavy is imported, and the command line's flags mirror the fields.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from clip.errors import InputError
from clip.jobs import STDIN

if TYPE_CHECKING:
    from pathlib import Path

FOLDER_NAMES = "folder-names"  # as the truth: the folder that a picture lies in
MAX_SHEET = 1_000  # pictures on a contact sheet, 75 million pixels
TEMPLATE = "a photo of a {}"


@dataclass(frozen=True, kw_only=True)
class SearchJob:
    """What `clip search` is asked for."""

    output: str | Path  # what clip embed wrote
    texts: tuple[str, ...] = ()  # these, the pictures and the vector are averaged
    images: tuple[str, ...] = ()  # files; "-" is stdin
    vector: str | None = None  # a file that holds a vector, as JSON or .npy; likewise
    without: tuple[str, ...] = ()  # texts whose average is subtracted
    k: int = 10  # hits
    min_score: float | None = None  # cosine
    where: str | None = None  # a condition on the columns, in SQL
    contact_sheet: str | Path | None = None  # a picture of the hits to write
    model: str | None = None  # the run's weights; found by the manifest without
    device: str = "auto"  # of the model

    def __post_init__(self) -> None:
        if not (self.texts or self.images or self.vector):
            raise InputError("query: found nothing to look for, expected a text, a picture or a vector. Pass -t TEXT.")
        if [*self.images, self.vector].count(STDIN) > 1:
            raise InputError("query: found '-' twice, expected stdin to be read once. Name a file for the other.")
        if self.contact_sheet is not None and not str(self.contact_sheet).lower().endswith(".png"):
            raise InputError(f"contact_sheet: found {str(self.contact_sheet)!r}, expected a name in .png. Pass one.")
        if self.contact_sheet is not None and self.k > MAX_SHEET:
            raise InputError(
                f"contact_sheet: found {self.k:,} hits, expected at most {MAX_SHEET:,}. Pass a smaller -n."
            )
        check_search(self.k, self.min_score)


def check_search(k: int, min_score: float | None) -> None:
    """Refuse numbers that make no sense. Raises: InputError."""
    if k < 1:
        raise InputError(f"k: found {k}, expected at least 1 hit. Pass a larger number.")
    if min_score is not None and math.isnan(min_score):
        raise InputError("min_score: found nan, expected a cosine from -1 to 1. Pass a number.")


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
    unreadable: int = 0  # hits that the contact sheet has no picture of


@dataclass(frozen=True, kw_only=True)
class IndexJob:
    """What `clip index` is asked for."""

    output: str | Path  # what clip embed wrote


@dataclass(frozen=True)
class IndexReport:
    """What came of making an index."""

    path: Path
    rows: int
    size_bytes: int
    made: bool  # not, where one stood that is whole and up to date
    seconds: float


@dataclass(frozen=True, kw_only=True)
class ClassifyJob:
    """What `clip classify` is asked for."""

    source: str | Path  # what clip embed wrote, or pictures in any form that it takes
    labels: str | Path | tuple[str, ...]  # a file of them, a line each, or some with commas between
    template: tuple[str, ...] = ()  # texts with {} for the label, averaged; "a photo of a {}" without
    templates: str | None = None  # a set of them instead: "openai7", or a file, a line each
    k: int = 5  # labels to tell of each picture, the most probable first
    truth: str | None = None  # a column that has the right label, or "folder-names"
    model: str | None = None  # of OUT, the run's weights, found by the manifest without; of pictures, ViT-B/32 without
    untrained: int | None = None  # of pictures: draw the weights at random from this seed
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.k < 1:
            raise InputError(f"k: found {self.k}, expected at least 1 label. Pass a larger number.")
        if self.template and self.templates:
            raise InputError("templates: found single ones and a set, expected one of the two. Pass one.")


@dataclass(frozen=True)
class Classified:
    """What a picture was taken for, or why it could not be looked at."""

    id: str
    path: str
    top: tuple[tuple[str, float], ...] = ()  # labels and their probabilities, the most probable first
    truth: str | None = None  # where it is asked for and known
    stage: str | None = None  # of a failure, as in failures/
    error: str | None = None
    message: str | None = None


@dataclass(frozen=True)
class ClassifyReport:
    """What came of classifying. read = classified + failed."""

    read: int
    classified: int
    failed: int
    labels: tuple[str, ...]
    rows: tuple[Classified, ...]  # empty where `each` took them
    judged: int = 0  # those whose truth is one of the labels
    right: int = 0
    unknown: tuple[str, ...] = ()  # truths that are none of the labels: some of them
    confusion: tuple[tuple[str, str, int], ...] = ()  # truth, what it was taken for, how often

    @property
    def accuracy(self) -> float | None:
        """The part of those judged that is right."""
        return self.right / self.judged if self.judged else None
