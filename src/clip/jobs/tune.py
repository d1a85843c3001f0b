"""What a user can ask of `clip tune`, and what comes back. Knows nothing about how it is measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError
from .options import FAST_COSINE, DecodeOptions, Limits, PixelMode, Precision, check_cosine, check_counts, named_inputs

if TYPE_CHECKING:
    from collections.abc import Sequence

MIN_SAMPLE = 16  # images


@dataclass(frozen=True, kw_only=True)
class TuneJob:
    """What `clip tune` is asked for."""

    source: str | Path | Sequence[str | Path]  # as of EmbedJob
    model: str = "ViT-B/32"
    untrained: int | None = None
    device: str = "auto"
    workers: int | None = None
    threads: int | None = None
    globs: tuple[str, ...] = ()
    column: str | None = None
    root: str = ""
    calibration: str | Path | None = None
    min_cosine: float = FAST_COSINE  # between vectors and the exact ones, of every image of the sample
    images: int = 256  # to measure on
    seed: int = 0  # which images these are
    limits: Limits = Limits()  # noqa: RUF009  frozen
    policies: DecodeOptions = DecodeOptions()  # noqa: RUF009  frozen
    isolated_s: float | None = None  # try the images in a process first, for so many seconds each

    def __post_init__(self) -> None:
        check_cosine(self.min_cosine)
        check_counts(self, ("workers", "threads"))
        if self.images < MIN_SAMPLE:
            raise InputError(
                "`images`",
                f"found {self.images}",
                f"at least {MIN_SAMPLE}",
                "Pass a larger number.",
            )

    @property
    def inputs(self) -> tuple[str, ...]:
        """What `source` names, as texts."""
        return named_inputs(self.source)


@dataclass(frozen=True)
class SettingRow:
    """One way to make vectors, as it was measured beside the exact one."""

    precision: Precision
    decode: PixelMode
    images_per_s: float  # from files to vectors, the median of several turns
    min_cosine: float
    p1_cosine: float  # a hundredth of the images is below
    mean_cosine: float
    max_angle_degrees: float
    neighbours: float  # the part of the ten nearest that is the same, 0..1
    within: bool  # the bound


@dataclass(frozen=True)
class TuneReport:
    """What came of measuring."""

    model: str
    images: int  # that were measured on
    quantised_by: int  # of them also served to quantise int8, whose figures are the better for it; others were too few
    min_cosine: float  # the bound
    rows: tuple[SettingRow, ...]  # the exact one first
    best: SettingRow  # the fastest within the bound
