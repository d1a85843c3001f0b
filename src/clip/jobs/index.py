"""The job of `clip.index`, and its report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from ..errors import InputError
from .fields import documented
from .options import check_words

if TYPE_CHECKING:
    from pathlib import Path

IndexType = Literal["exact", "ivf"]
Codes = Literal["sq8", "rabitq4", "fp16"]
MIN_MEMORY = 2**27


@documented
@dataclass(frozen=True, kw_only=True)
class IndexJob:
    """Which output to index, and how."""

    output: str | Path
    """The folder that `clip.embed` wrote."""
    type: IndexType | None = None
    """exact: every row is scanned; ivf: only lists near the query, for millions; default: as it is, exact at first."""
    codes: Codes = "sq8"
    """What ivf scans: a byte for a quarter of the numbers (sq8), for all half a byte (rabitq4) or two (fp16)."""
    recall: float = 0.99
    """Share of the true ten nearest that a search by ivf is to find, measured on the output's own vectors."""
    memory: int = 2**30
    """Bytes of memory that making ivf may take, beside mapped files."""
    rebuild: bool = False
    """Make ivf anew, lists too, instead of bringing it up to date."""
    model: str | None = None
    """The run's weights, for the recall of text queries; default: as in the manifest."""
    device: str = "auto"
    """Device of the model."""

    def __post_init__(self) -> None:
        check_words(self)
        if self.type not in (None, *get_args(IndexType)):
            raise InputError("`type`", f"found {self.type!r}", f"one of {', '.join(get_args(IndexType))}", "Pass one.")
        if not 0.5 <= self.recall < 1:
            raise InputError("`recall`", f"found {self.recall}", "at least 0.5 and less than 1", "Pass 0.99, say.")
        if self.memory < MIN_MEMORY:
            raise InputError("`memory`", f"found {self.memory:,} bytes", f"{MIN_MEMORY:,} or more", "Pass more.")


@documented
@dataclass(frozen=True)
class Recall:
    """What a search by ivf finds of the true ten nearest rows, measured on the output's own vectors."""

    queries: Literal["rows", "texts"]
    """Whether the queries are rows of the output, or texts."""
    count: int
    """Number of queries; 0 where it was not measured, as the model is not on this machine."""
    recall: float
    """Share of the true ten nearest rows that were found, 0..1."""
    lists: int
    """Lists that a search reads."""
    again: int
    """Rows whose vectors are compared again, as they are stored, for ten hits."""
    share: float
    """Share of all rows that the lists hold, 0..1."""
    milliseconds: float
    """Median duration of a search."""


@documented
@dataclass(frozen=True)
class IndexReport:
    """The index of an output."""

    path: Path
    """Path of its file."""
    rows: int
    """Vectors in it."""
    size_bytes: int
    """Size of its file, and of rows.index beside it, which it needs."""
    made: bool
    """False where a whole and current index was there already."""
    seconds: float
    """Duration."""
    type: IndexType = "exact"
    """Its type."""
    codes: Codes | None = None
    """What ivf scans."""
    lists: int = 0
    """Lists of ivf."""
    recall: tuple[Recall, ...] = ()
    """What ivf finds, for queries like the rows and for texts."""
    advice: str = ""
    """What to do about an ivf that finds less than it should, or reads more; empty where it is well."""
