"""What a user can ask of `clip export`, and what comes back. Knows nothing about how it is carried out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from ..errors import InputError
from .options import ExportFormat


@dataclass(frozen=True, kw_only=True)
class ExportJob:
    """What `clip export` is asked for."""

    output: str | Path  # what clip embed wrote
    target: str | Path  # a folder to write
    format: ExportFormat
    overwrite: bool = False  # replace an earlier export in the target

    def __post_init__(self) -> None:
        if self.format not in get_args(ExportFormat):
            raise InputError(
                "`format`",
                f"found {self.format!r}",
                f"one of {get_args(ExportFormat)}",
                "Pass one.",
            )


@dataclass(frozen=True)
class ExportReport:
    """What an export wrote."""

    target: Path
    files: tuple[str, ...]  # their names below the target
    rows: int
