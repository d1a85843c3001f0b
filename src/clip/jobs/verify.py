"""The job of `clip.verify`, and its report."""

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
    """Number of images to embed again and compare."""
    model: str | None = None
    """Model for the sample; default: as in the manifest."""
    device: str = "auto"
    """Device for the sample."""
    seed: int = 0
    """Seed that draws the sample; another one draws other images."""
    root: str | Path | None = None
    """Folder where the images are now, if they have moved since; it replaces the one that the output names."""
    fetch: bool = False
    """Ask servers for images of the sample that are there, at the addresses that the output names."""

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
    """The result of reading an output back. Without problems, read = written + failed."""

    output: Path
    """The folder."""
    read: int
    """Entries that the plan lists; for archives and frames, those that the parts hold."""
    written: int
    """Rows found."""
    failed: int
    """Failure rows found."""
    sampled: int
    """Images embedded again."""
    min_cosine: float | None
    """Lowest cosine between the stored vectors of the sample and those made again."""
    problems: tuple[Problem, ...]
    """Everything that is wrong; empty where nothing is."""
    notes: tuple[str, ...] = ()
    """What is no problem and good to know: files without checksums, files that are none of ours."""
