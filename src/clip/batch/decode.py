"""An entry of a source -> pixels, in the thread that asks. Knows nothing about models."""

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
    """What is the same for all images of a job."""

    source: Source
    settings: PreprocessSettings
    limits: Limits
    options: DecodeOptions
    hashes: bool = False  # also the sha256 of the encoded image

    def __call__(
        self, entry: Item | Member, reserve: Callable[[int], AbstractContextManager[None]] = nullcontext
    ) -> list[Pixels | Failure]:
        """One entry of a source -> what `pixels.decode` makes of it, or the reason why it cannot be read."""
        item = entry.item if isinstance(entry, Member) else entry
        try:
            data = entry.data if isinstance(entry, Member) else self.source.read(item, self.limits.max_bytes)
        except Exception as exc:  # noqa: BLE001  what becomes of one image never ends a run: MemoryError among them
            return [Failure.of(item, "read", exc)]
        found = decode(item, data, self.settings, reserve, self.limits, self.options)
        if not self.hashes:
            return found
        sha256 = hashlib.sha256(data).hexdigest()
        return [
            replace(outcome, row=replace(outcome.row, sha256=sha256)) if isinstance(outcome, Pixels) else outcome
            for outcome in found
        ]
