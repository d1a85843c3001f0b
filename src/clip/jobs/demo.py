"""The job of `clip demo`: how many scenes to draw, and where."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import InputError
from .fields import documented
from .options import check_place

if TYPE_CHECKING:
    from pathlib import Path

MIN_SCENES, MAX_SCENES = 50, 100_000  # fewer may lack the scenes that the demo looks for


@documented
@dataclass(frozen=True, kw_only=True)
class DemoJob:
    """What to draw, and where."""

    output: str | Path = "demo-out"
    """Folder to write."""
    scenes: int = 300
    """Images to draw."""
    seed: int | None = None
    """Seed of the scenes; default: other scenes each time."""

    def __post_init__(self) -> None:
        check_place("output", self.output)
        if not MIN_SCENES <= self.scenes <= MAX_SCENES:
            found = f"found {self.scenes:,}"
            raise InputError("`scenes`", found, f"{MIN_SCENES} to {MAX_SCENES:,}", "Pass another number.")
