"""What a user can ask of `clip index`, and what comes back. Knows nothing about how it is carried out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


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
