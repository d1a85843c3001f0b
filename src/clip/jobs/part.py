"""Which part of a run a process does, where several share it: --part 3/8."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_PARTS = 1_000_000
TEXT = re.compile(r"(?:(?P<index>\d{1,7})|auto)(?:/(?P<count>\d{1,7}))?")
# What schedulers set: a task's number, how many there are, the first number, and the step between two.
SCHEDULERS = (
    ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_STEP"),
    ("AWS_BATCH_JOB_ARRAY_INDEX", "AWS_BATCH_JOB_ARRAY_SIZE", "", ""),
    ("JOB_COMPLETION_INDEX", "JOB_COMPLETIONS", "", ""),  # Kubernetes sets the first; the second is for the user to set
)


@dataclass(frozen=True)
class PartOf:
    """One of `count` processes that share a run: it writes every `count`-th shard."""

    index: int  # from 0
    count: int

    def __str__(self) -> str:
        """Return what `parse_part` reads."""
        return f"{self.index}/{self.count}"

    def choose(self, shards: int) -> range:
        """Return the shards of so many that are this part's."""
        return range(self.index, shards, self.count)


def parse_part(text: str, environment: Mapping[str, str] = os.environ) -> PartOf:
    """Return the part that "3/8" names; "auto" takes both numbers, "auto/8" the first one, from the environment.

    Raises:  InputError for other texts, and where the environment does not have what is needed.
    """
    match = TEXT.fullmatch(text)
    if match is None or (match["index"] is not None and match["count"] is None):
        raise InputError(
            "`part`", f"found {text!r}", "I/N with I from 0 to N - 1, auto, or auto/N", "Pass one of them."
        )
    if match["index"] is not None:
        index, count = int(match["index"]), int(match["count"])
    else:
        index, count = _read_environment(environment, match["count"])
    if not 0 <= index < count <= MAX_PARTS:
        expected = f"a number from 0 to {count - 1}" if 0 < count <= MAX_PARTS else f"1 to {MAX_PARTS:,} parts"
        raise InputError("`part`", f"found {index}/{count}", expected, "Parts are counted from 0.")
    return PartOf(index, count)


def _read_environment(environment: Mapping[str, str], given: str | None) -> tuple[int, int]:
    for index, count, first, step in SCHEDULERS:
        if index not in environment:
            continue
        if given is not None:  # then numbers are as they are, as those of one task that is run again
            return _read(environment, index), int(given)
        if count not in environment:
            remedy = f"Pass `part='auto/N'`, or set {count} to the number of tasks."
            raise InputError("`part`", f"found {index} without {count}", "the number of tasks too", remedy)
        number = _read(environment, index) - (_read(environment, first) if first in environment else 0)
        return number // max(1, _read(environment, step) if step in environment else 1), _read(environment, count)
    names = ", ".join(names[0] for names in SCHEDULERS)
    raise InputError("`part`", f"found 'auto', and none of {names}", "a task of an array", "Pass `part='I/N'`.")


def _read(environment: Mapping[str, str], name: str) -> int:
    text = environment[name]
    if not re.fullmatch(r"\d{1,7}", text):
        raise InputError("`part`", f"found {name}={text!r}", "a number", "Pass `part='I/N'`.")
    return int(text)
