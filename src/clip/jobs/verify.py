"""What a user can ask of `clip verify`, and what comes back. Knows nothing about how it is carried out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError


@dataclass(frozen=True, kw_only=True)
class VerifyJob:
    """What `clip verify` is asked for."""

    output: str | Path  # what clip embed wrote
    sample: int = 0  # images to embed again and compare
    model: str | None = None  # for the sample; the manifest's without
    device: str = "auto"  # likewise
    seed: int = 0  # which images the sample takes

    def __post_init__(self) -> None:
        if self.sample < 0:
            raise InputError(
                "`sample`",
                f"found {self.sample}",
                "0 or more",
                "Pass a number of images.",
            )


@dataclass(frozen=True)
class Problem:
    """Something in an output that is not as it should be."""

    where: str  # a file below OUT, or an id
    what: str


@dataclass(frozen=True)
class VerifyReport:
    """What came of reading an output back."""

    output: Path
    read: int  # entries of the plan
    written: int
    failed: int
    sampled: int
    min_cosine: float | None  # of the sample, between the vectors that stand and those made again
    problems: tuple[Problem, ...]
