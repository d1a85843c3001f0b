"""The job of `clip.index`, and its report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .fields import documented

if TYPE_CHECKING:
    from pathlib import Path


@documented
@dataclass(frozen=True, kw_only=True)
class IndexJob:
    """Which output to index."""

    output: str | Path
    """The folder that `clip.embed` wrote."""


@documented
@dataclass(frozen=True)
class IndexReport:
    """The index of an output."""

    path: Path
    """Path of its file."""
    rows: int
    """Vectors in it."""
    size_bytes: int
    """Size of its file."""
    made: bool
    """False where a whole and current index was there already."""
    seconds: float
    """Duration."""
