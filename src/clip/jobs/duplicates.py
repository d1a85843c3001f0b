"""The job of `clip.find_duplicates`, its groups and its report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ..errors import InputError
from .fields import documented
from .options import check_words

if TYPE_CHECKING:
    from pathlib import Path

Level = Literal["same", "edited", "similar"]
Likeness = Literal["bytes", "pixels", "edited", "similar"]
MIN_COSINE: dict[Level, float] = {"same": 0.9, "edited": 0.9, "similar": 0.95}


@documented
@dataclass(frozen=True, kw_only=True)
class DuplicatesJob:
    """Which images of an output count as duplicates."""

    output: str | Path
    """The folder that `clip.embed` wrote."""
    level: Level = "edited"
    """same: equal files or pixels; edited: also re-encoded, resized, cropped, turned; similar: by the vectors alone."""
    min_cosine: float | None = None
    """Lowest cosine of two images that are compared; default: 0.9, of level similar 0.95."""
    root: str | Path | None = None
    """Folder where the images are now, if they have moved since; it replaces the one that the output names."""
    fetch: bool = False
    """Ask servers for images that are there, at the addresses that the output names."""

    def __post_init__(self) -> None:
        check_words(self)
        if self.min_cosine is not None and not 0 < self.min_cosine <= 1:
            found = f"found {self.min_cosine}"
            raise InputError("`min_cosine`", found, "more than 0 and at most 1", "Pass 0.9, say.")

    @property
    def bound(self) -> float:
        """The lowest cosine of two images that are compared."""
        return MIN_COSINE[self.level] if self.min_cosine is None else self.min_cosine


@documented
@dataclass(frozen=True)
class Duplicate:
    """An image of a group."""

    id: str
    """The row's id."""
    path: str
    """Where the image is, by the output's base or the job's root."""
    keep: bool
    """Whether it is the one to keep: of the most pixels, then of the most bytes, then the oldest, then by its id."""
    like: Likeness
    """How it is like the one to keep; of that one, bytes."""
    cosine: float
    """Cosine to the one to keep, -1..1."""
    width: int
    """Of the image [Unit: px]."""
    height: int
    """Of the image [Unit: px]."""
    size_bytes: int
    """Of the encoded image."""
    removable: bool
    """Whether it is a file of its own that is not to be kept: no member of an archive, no other name of a kept file."""


@documented
@dataclass(frozen=True)
class DuplicateGroup:
    """Images that are duplicates of one another, the one to keep first."""

    number: int
    """From 1 on, in the order of the rows."""
    images: tuple[Duplicate, ...]
    """The one to keep, then the others in the order of the rows."""


@documented
@dataclass(frozen=True)
class DuplicatesReport:
    """The result of a search for duplicates."""

    rows: int
    """Images compared."""
    level: Level
    """What counted as a duplicate."""
    min_cosine: float
    """Lowest cosine of two images that were compared."""
    percentile: float
    """Share of all pairs of images, in percent, whose cosine is lower; by a sample."""
    proposed: int
    """Pairs of at least this cosine."""
    groups: tuple[DuplicateGroup, ...]
    """Empty where `each` was called with them."""
    duplicates: int
    """Images in groups that are not to be kept."""
    group_count: int
    """Groups found."""
    unreadable: int
    """Images that had to be compared, and cannot be read any more: they are in no group."""
    crowded: int
    """Images with more neighbours than are compared, of which the nearest were."""
    seconds: float
    """Duration."""
