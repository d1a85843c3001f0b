"""The one check that read = written + failed: what a plan lists beside what the parts hold. Run and verify share it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..records import ContainerPart
from ..store.parts import EMBEDDINGS, FAILURES, IGNORED, PART, READ, count_rows, read_metadata, read_part
from ..store.plan import count_members

if TYPE_CHECKING:
    from pathlib import Path

    from ..jobs.options import Frames
    from ..records import Shard
    from ..store.plan import Plan


@dataclass(frozen=True)
class Expected:
    """How many entries a shard lists."""

    entries: int | None  # None where a container does not say how many members it has
    container: str | None = None  # its id, where the shard is one

    @classmethod
    def of(cls, shard: Shard) -> Expected:
        """Count the entries of a shard, of a container its members."""
        known = [count_members(entry) for entry in shard.entries]
        container = next((entry.id for entry in shard.entries if isinstance(entry, ContainerPart)), None)
        return cls(None if None in known else sum(filter(None, known)), container)


@dataclass(frozen=True)
class Count:
    """How many outcomes the two parts of a shard hold, and how many were counted while it was read."""

    rows: int
    failures: int
    ignored: int  # members of a container that are no images
    read: int | None  # None in parts of version 0.1.0
    ends_early: bool  # whether a failure stands for all the rest of a container

    def find_error(self, expected: Expected, frames: Frames) -> str | None:
        """Say what is wrong; None where each entry became a row or a failure row.

        A container that says how many members it has is held to it: outcomes and ignored members make up exactly these,
        unless a failure stands for the rest. A file of several frames has one outcome for each, and at least one.
        """
        outcomes = self.rows + self.failures
        found = f"{self.rows:,} rows and {self.failures:,} failures"
        if self.read is not None and self.read != outcomes:
            return f"{found}, expected {self.read:,} together, as many as were read"
        if expected.entries is None:
            return None
        too_few = outcomes + self.ignored < (1 if self.ends_early else expected.entries)
        too_many = outcomes + self.ignored > expected.entries and frames == "first"
        if not (too_few or too_many):
            return None
        ignored = f" and {self.ignored:,} ignored" if self.ignored else ""
        return f"{found}{ignored}, expected {expected.entries:,} together, as many as are listed"


def count_expected(plan: Plan, index: int) -> Expected:
    """Count the entries of a shard of a plan. Raises: StoreError where it cannot be read."""
    return Expected.of(plan.shard(index)) if plan.containers else Expected(plan.summary(index).entries)


def count_shard(output: Path, index: int, expected: Expected) -> Count:
    """Count what the parts of a shard hold, by their footers. Raises: StoreError for a part that cannot be read."""
    embeddings, failures = (output / folder / PART.format(index) for folder in (EMBEDDINGS, FAILURES))
    noted, failed = read_metadata(embeddings), count_rows(failures)
    ends_early = bool(failed and expected.container) and (
        expected.container in read_part(failures, ["id"]).column("id").to_pylist()
    )
    return Count(
        rows=count_rows(embeddings),
        failures=failed,
        ignored=sum(json.loads(noted.get(IGNORED, b"{}")).values()),
        read=int(noted[READ]) if READ in noted else None,
        ends_early=ends_early,
    )
