"""The job of `clip.verify`, and what comes back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import InputError
from .fields import documented

if TYPE_CHECKING:
    from pathlib import Path


@documented
@dataclass(frozen=True, kw_only=True)
class VerifyJob:
    """Which output to read back, and how much of it to embed again."""

    output: str | Path
    """The folder that `clip.embed` wrote."""
    sample: int = 0
    """Images to embed again and compare."""
    model: str | None = None
    """Model for the sample; default: the run's."""
    device: str = "auto"
    """Device for the sample."""
    seed: int = 0
    """Which images the sample takes."""

    def __post_init__(self) -> None:
        if self.sample < 0:
            raise InputError("`sample`", f"found {self.sample}", "0 or more", "Pass a number of images.")


@documented
@dataclass(frozen=True)
class Problem:
    """Something in an output that is wrong."""

    where: str
    """A file below OUT, or an id."""
    what: str
    """What is wrong, and what to do."""


@documented
@dataclass(frozen=True)
class VerifyReport:
    """What reading an output back found. Without problems, read = written + failed."""

    output: Path
    """The folder."""
    read: int
    """Entries that the plan lists; of archives and frames, those that its parts hold."""
    written: int
    """Rows found."""
    failed: int
    """Failure rows found."""
    sampled: int
    """Images embedded again."""
    min_cosine: float | None
    """Lowest cosine between the stored vectors of the sample and those made again."""
    problems: tuple[Problem, ...]
    """All that is wrong."""
