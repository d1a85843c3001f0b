"""The job of `clip.stats`, and its report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .fields import documented

if TYPE_CHECKING:
    from pathlib import Path

PERCENTS = (1.0, 5.0, 25.0, 50.0, 75.0, 95.0, 99.0, 99.9)


@documented
@dataclass(frozen=True, kw_only=True)
class StatsJob:
    """Which cosines to describe."""

    output: str | Path
    """The folder that `clip.embed` wrote."""
    texts: tuple[str, ...] = ()
    """Text whose cosines to all rows are described too."""
    model: str | None = None
    """Where the run's weights are; default: as in the manifest."""
    device: str = "auto"
    """Device of the model."""


@documented
@dataclass(frozen=True)
class Cosines:
    """The percentiles of some cosines."""

    of: str
    """"image to image", or a text."""
    pairs: int
    """How many cosines."""
    percentiles: tuple[float, ...]
    """The cosines that 1, 5, 25, 50, 75, 95, 99 and 99.9 % of them are not above."""


@documented
@dataclass(frozen=True)
class StatsReport:
    """The cosines in an output."""

    rows: int
    """Rows of the output."""
    cosines: tuple[Cosines, ...]
    """Of pairs of rows, then of each text to all rows; none of pairs where there is one row."""
