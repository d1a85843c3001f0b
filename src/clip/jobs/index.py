"""The job of `clip.index`, and what comes back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .fields import documented

if TYPE_CHECKING:
    from pathlib import Path


@documented
@dataclass(frozen=True, kw_only=True)
class IndexJob:
    """Which output to make an index of."""

    output: str | Path
    """The folder that `clip.embed` wrote."""


@documented
@dataclass(frozen=True)
class IndexReport:
    """The index of an output."""

    path: Path
    """Of its file."""
    rows: int
    """Vectors in it."""
    size_bytes: int
    """Of its file."""
    made: bool
    """False where a whole and current index was there already."""
    seconds: float
    """Duration."""
