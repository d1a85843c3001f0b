"""The job of `clip.tune`, and what comes back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import InputError
from .fields import documented
from .options import (
    FAST_COSINE,
    Columns,
    DecodeOptions,
    Limits,
    ModelOptions,
    PixelMode,
    Precision,
    check_cosine,
    check_counts,
    list_inputs,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

MIN_SAMPLE = 16  # images


@documented
@dataclass(frozen=True, kw_only=True)
class TuneJob:
    """Which settings to measure, and on which images. Fields it shares with EmbedJob mean the same."""

    source: str | Path | Sequence[str | Path]
    """One or several inputs, as of EmbedJob."""
    model: str | ModelOptions = ModelOptions()  # noqa: RUF009  frozen, as are the next three
    """A model's name or path, or its options; tune chooses precision and batch size itself."""
    decode: DecodeOptions = DecodeOptions()  # noqa: RUF009
    """How files become pixels; tune chooses `pixels` itself."""
    limits: Limits = Limits()  # noqa: RUF009
    """What an image may cost."""
    columns: Columns = Columns()  # noqa: RUF009
    """Which column of lists and tables names or holds the images."""
    globs: tuple[str, ...] = ()
    """Take the paths that match a pattern, instead of those with an image's extension."""
    root: str = ""
    """Folder at which relative paths in lists start; default: the current folder."""
    workers: int | None = None
    """Threads that decode; default: one per core."""
    calibration: str | Path | None = None
    """Folder of images to quantise int8 by; default: the first images of the input."""
    min_cosine: float = FAST_COSINE
    """Lowest cosine to the exact vectors that an image of the sample may have."""
    images: int = 256
    """Images to measure on."""
    seed: int = 0
    """Seed that draws these images; another one draws others."""
    isolated_s: float | None = None
    """Seconds an image may take in a separate process, which decodes it first; default: threads decode."""

    def __post_init__(self) -> None:
        check_cosine(self.min_cosine)
        check_counts(self, ("workers",))
        if self.images < MIN_SAMPLE:
            raise InputError("`images`", f"found {self.images}", f"at least {MIN_SAMPLE}", "Pass a larger number.")

    @property
    def inputs(self) -> tuple[str, ...]:
        """The inputs in `source`, as texts."""
        return list_inputs(self.source)

    @property
    def model_options(self) -> ModelOptions:
        """The model's options, also where only its name was given."""
        return ModelOptions.of(self.model)


@documented
@dataclass(frozen=True)
class SettingRow:
    """One way to make vectors, measured beside the exact one."""

    precision: Precision
    """Number type that the model computed in."""
    decode: PixelMode
    """How files became pixels."""
    images_per_s: float
    """From files to vectors, median of several rounds."""
    min_cosine: float
    """Lowest cosine to the exact vector."""
    p1_cosine: float
    """First percentile of the cosines."""
    mean_cosine: float
    """Mean cosine."""
    max_angle_degrees: float
    """Largest angle to the exact vector."""
    neighbours: float
    """Part of the ten nearest neighbours that is the same, 0..1."""
    within: bool
    """Whether the lowest cosine is within the bound."""


@documented
@dataclass(frozen=True)
class TuneReport:
    """The measurements, and the fastest setting."""

    model: str
    """The model's name."""
    images: int
    """Images measured on."""
    quantised_by: int
    """Of these, images that also quantised int8, as there were too few others; its figures are the better for it."""
    min_cosine: float
    """The bound."""
    rows: tuple[SettingRow, ...]
    """One row per setting, the exact one first."""
    best: SettingRow
    """The fastest within the bound."""
