"""Turn an entry of a source into pixels, in the calling thread."""

from __future__ import annotations

import hashlib
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..images.decode import decode
from ..jobs.options import DecodeOptions, Limits
from ..network.records import PreprocessSettings
from ..records import Failure, Item, Member, Pixels

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from ..sources.source import Source


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
            replace(outcome, row=replace(outcome.row, sha256=sha256)) if isinstance(outcome, Pixels) else outcome
            for outcome in outcomes
        ]
