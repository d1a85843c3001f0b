"""What a user can ask of `clip demo`. Knows nothing about how it is carried out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError

LEAST_SCENES, MOST_SCENES = 50, 100_000  # of a demo: fewer may lack what it looks for


@dataclass(frozen=True, kw_only=True)
class DemoJob:
    """What `clip demo` is asked for."""

    output: str | Path = "demo-out"
    scenes: int = 300
    seed: int | None = None  # of what is drawn; other scenes each time without

    def __post_init__(self) -> None:
        if not LEAST_SCENES <= self.scenes <= MOST_SCENES:
            raise InputError(
                "`scenes`",
                f"found {self.scenes:,}",
                f"{LEAST_SCENES} to {MOST_SCENES:,}",
                "Pass another number.",
            )
