"""The job of `clip.export`, and its report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .fields import documented
from .options import ExportFormat, check_place, check_words, list_inputs

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


@documented
@dataclass(frozen=True, kw_only=True)
class ExportJob:
    """Which output to write as files for other programs."""

    output: str | Path | Sequence[str | Path]
    """The folder that `clip.embed` wrote; several of the same weights, precision and preprocessing count as one."""
    target: str | Path
    """Folder to write."""
    format: ExportFormat
    """Format of the files."""
    overwrite: bool = False
    """Replace an earlier export in the target."""

    def __post_init__(self) -> None:
        check_words(self)
        check_place("target", self.target)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The outputs in `output`, as texts."""
        return list_inputs(self.output)


@documented
@dataclass(frozen=True)
class ExportReport:
    """The files that an export wrote."""

    target: Path
    """The folder."""
    files: tuple[str, ...]
    """Names of the files in it."""
    rows: int
    """Rows in them."""
