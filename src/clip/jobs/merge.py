"""The job of `clip.merge`, and its report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import InputError
from .fields import documented
from .options import check_place, list_inputs

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


@documented
@dataclass(frozen=True, kw_only=True)
class MergeJob:
    """Which outputs to make one of."""

    source: str | Path | Sequence[str | Path]
    """Folders that `clip.embed` wrote, of the same weights, precision and preprocessing."""
    output: str | Path
    """Folder to write."""

    def __post_init__(self) -> None:
        check_place("output", self.output)
        if not self.outputs:
            raise InputError("`source`", "found no output", "one or several", "Pass them.")
        if repeated := [name for name in self.outputs if self.outputs.count(name) > 1]:
            raise InputError("`source`", f"found {repeated[0]!r} twice", "each output once", "Leave one out.")

    @property
    def outputs(self) -> tuple[str, ...]:
        """The outputs in `source`, as texts."""
        return list_inputs(self.source)


@documented
@dataclass(frozen=True)
class MergeReport:
    """What a merge wrote. read = written + failed."""

    output: Path
    """The folder."""
    read: int
    """Entries of all outputs."""
    written: int
    """Rows."""
    failed: int
    """Failure rows."""
    linked: int
    """Parts that are hard links to those of an output."""
    copied: int
    """Parts that were written anew."""
