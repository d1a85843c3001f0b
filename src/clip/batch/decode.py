"""Turn entries of a source into pixels, in the calling thread. Needs no torch."""

from __future__ import annotations

import hashlib
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from ..images.decode import decode
from ..jobs.options import DecodeOptions, Limits
from ..network.records import PreprocessSettings
from ..records import Failure, Item, Member, Pixels, Row

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from ..budgets import Hold
    from ..sources.source import Source


NO_CROPS = np.empty((0, 0, 0, 3), np.uint8)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Entries that one worker takes together, and the crops that are theirs to write."""

    entries: list[Item | Member | Failure]
    crops: np.ndarray  # uint8 (N, R, R, 3); none for texts
    start: int = 0  # the first one's place in the ring
    holds: list[Hold] = field(default_factory=list["Hold"])  # of the entries' bytes, until they are decoded


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a chunk. The crops of the rows lie in the chunk's, in order."""

    outcomes: list[Row | Failure]  # in the order of the entries
    counts: list[int]  # outcomes of each entry: one, or one for each frame
    overflow: np.ndarray | None = None  # uint8 (N, R, R, 3), those of all rows, where the chunk had too few
    tokens: np.ndarray | None = None  # int32 (N, L), those of the rows, where there are texts
    warned: int = 0  # rows with a warning
    stored_turned: int = 0  # rows of images that are stored turned, and were not turned


@dataclass(frozen=True)
class Decoding:
    """Reads and decodes the entries of a job; holds what is the same for all of them."""

    source: Source
    settings: PreprocessSettings
    limits: Limits
    options: DecodeOptions
    hashes: bool = False  # also the sha256 of the encoded image

    def __call__(
        self, entry: Item | Member, reserve: Callable[[int], AbstractContextManager[None]] = nullcontext
    ) -> list[Pixels | Failure]:
        """Return the pixels of an entry, or the reason why there are none; of each frame where all are wanted."""
        item = entry.item if isinstance(entry, Member) else entry
        try:
            data = entry.data if isinstance(entry, Member) else self.source.read(item, self.limits.max_bytes)
        except Exception as exc:  # noqa: BLE001  no image ends a run, whatever it raises, MemoryError included
            return [Failure.of(item, "read", exc)]
        outcomes = decode(item, data, self.settings, reserve, self.limits, self.options)
        if not self.hashes:
            return outcomes
        sha256 = hashlib.sha256(data).hexdigest()
        return [
            replace(outcome, row=outcome.row._replace(sha256=sha256)) if isinstance(outcome, Pixels) else outcome
            for outcome in outcomes
        ]

    def decode_chunk(
        self, chunk: Chunk, reserve: Callable[[int], AbstractContextManager[None]] = nullcontext
    ) -> Answer:
        """Decode the entries of a chunk into its crops; failures among them stay what they are."""
        outcomes: list[Row | Failure] = []
        counts: list[int] = []
        more: list[np.ndarray] = []
        rows = warned = stored_turned = 0
        for entry in chunk.entries:
            of_entry = [entry] if isinstance(entry, Failure) else self(entry, reserve)
            counts.append(len(of_entry))
            for outcome in of_entry:
                if isinstance(outcome, Failure):
                    outcomes.append(outcome)
                    continue
                outcomes.append(outcome.row)
                warned += outcome.row.warning is not None
                stored_turned += outcome.stored_turned
                if rows < len(chunk.crops):
                    chunk.crops[rows] = outcome.array
                else:
                    more.append(outcome.array)
                rows += 1
        overflow = np.concatenate([*([chunk.crops] if len(chunk.crops) else []), np.stack(more)]) if more else None
        return Answer(outcomes, counts, overflow, warned=warned, stored_turned=stored_turned)
