"""What a run has to say at its end beside its counts: warnings, images stored turned, files of other kinds."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..images.kinds import REMEDIES, get_unread_kind
from ..records import Failure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .feed import Block


@dataclass
class Notes:
    """Counts what the outcomes of a run have in common with many others."""

    warned: int = 0
    stored_turned: int = 0
    unread: Counter[str] = field(default_factory=Counter[str])  # failures that are HEIC, RAW or videos, by kind

    def add(self, block: Block) -> None:
        """Count the outcomes of a block."""
        self.warned += block.warned
        self.stored_turned += block.stored_turned
        for outcome in block.outcomes if block.has_failures else ():
            if isinstance(outcome, Failure) and outcome.stage == "open":
                kind = get_unread_kind(outcome.id) or get_unread_kind(outcome.path)
                if kind is not None:
                    self.unread[kind] += 1

    def count_unread(self, ignored: dict[str, int]) -> dict[str, int]:
        """Return the files of each kind that is not read, those passed over in folders and archives included."""
        counts = {kind: self.unread[kind] + ignored.get(kind, 0) for kind in REMEDIES}
        return {kind: count for kind, count in counts.items() if count}


def advise(unread: dict[str, int], stored_turned: int, empty: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the sentences that help; text in backticks is an argument as Python spells it.

    `empty` are copied columns without any value.
    """
    lines = [f"{count:,} {kind}: {REMEDIES[kind]}" for kind, count in unread.items()]
    if stored_turned:
        are = "image is" if stored_turned == 1 else "images are"
        lines.append(f'{stored_turned:,} {are} stored turned; `decode.orient="exif"` turns them')
    lines += [f"no row has a value in column {name!r} of `columns.keep`; check its name" for name in empty]
    return tuple(lines)
