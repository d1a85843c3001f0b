"""Gather the rows of blocks into full batches; crops that lie in one piece are not moved."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, cast

import numpy as np

from ..images.windows import Windows, join_windows
from ..records import Failure

if TYPE_CHECKING:
    from ..records import Row
    from .crops import CropRing
    from .feed import Block


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows that the model reads together."""

    rows: list[Row]
    places: list[int]  # of each in its shard
    crops: np.ndarray | Windows | None  # uint8 (B, R, R, 3), until `Batches.give_back`; None for texts
    tokens: np.ndarray | None  # int32 (B, L); None for images without texts


@dataclass(slots=True)
class _Piece:
    """Rows of one block that are in no batch yet."""

    rows: int
    crops: np.ndarray | Windows | None
    tokens: np.ndarray | None
    start: int | None  # the first crop's place in the ring; None where they are elsewhere
    taken: int  # crops of the ring to give back after the last row

    def cut(self, rows: int) -> _Piece:
        """Take the first rows away, and return them."""
        crops, tokens, start = self.crops, self.tokens, self.start
        first = _Piece(
            rows, None if crops is None else crops[:rows], None if tokens is None else tokens[:rows], start, 0
        )
        self.rows -= rows
        self.crops = None if crops is None else crops[rows:]
        self.tokens = None if tokens is None else tokens[rows:]
        self.start = None if start is None else start + rows
        return first


@dataclass(frozen=True, slots=True)
class _UnderWay:
    """A batch that a model is reading."""

    rows: int
    done: list[int]  # crops of the ring to give back after it: of pieces whose last row is in it, or that have none


class Batches:
    """Rows that wait until there are enough for a batch."""

    def __init__(self, ring: CropRing | None, most_held: int) -> None:
        """Hold at most so many crops of the ring; beyond that, those that wait are moved out of it."""
        self._ring = ring
        self._most_held = most_held
        self._rows: list[Row] = []
        self._places: list[int] = []
        self._pieces: deque[_Piece] = deque()
        self._held = 0  # crops of the ring
        self._done: list[int] = []  # those of pieces that have no row, since the last batch was taken
        self._under_way: deque[_UnderWay] = deque()

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def pending(self) -> int:
        """Rows that no model has read: those that wait, and those of batches that are not given back."""
        return len(self._rows) + sum(batch.rows for batch in self._under_way)

    @property
    def is_crowded(self) -> bool:
        """Whether more crops of the ring are held than may be: most are of failures."""
        return self._held > self._most_held

    def add(self, block: Block, place: int) -> None:
        """Take the rows of a block, whose first outcome has this place in its shard."""
        before = len(self._rows)
        if block.has_failures:
            for number, outcome in enumerate(block.outcomes, place):
                if not isinstance(outcome, Failure):
                    self._rows.append(outcome)
                    self._places.append(number)
        else:
            self._rows += cast("list[Row]", block.outcomes)
            self._places += range(place, place + len(block.outcomes))
        self._pieces.append(_Piece(len(self._rows) - before, block.crops, block.tokens, block.start, block.taken))
        self._held += block.taken
        self._drop_empty()
        if self.is_crowded and not self._under_way:
            self.move_out()

    def take(self, most: int) -> Batch:
        """Return the first rows, at most so many."""
        pieces: list[_Piece] = []
        missing = count = min(most, len(self._rows))
        while missing:
            pieces.append(self._pieces[0].cut(min(missing, self._pieces[0].rows)))
            missing -= pieces[-1].rows
            self._drop_empty()
        tokens = [piece.tokens for piece in pieces if piece.tokens is not None]
        batch = Batch(
            self._rows[:count], self._places[:count], self._join(pieces), np.concatenate(tokens) if tokens else None
        )
        del self._rows[:count], self._places[:count]
        self._under_way.append(_UnderWay(count, self._done))
        self._done = []
        return batch

    def give_back(self) -> None:
        """Say that the model has read the oldest batch that was taken: its crops may be overwritten."""
        done = self._under_way.popleft().done if self._under_way else []
        if not self._under_way:  # else a crop of an earlier place is still to be read
            done, self._done = done + self._done, []
        for taken in filter(None, done):
            self._held -= taken
            if self._ring is not None:
                self._ring.give_back()

    def move_out(self) -> None:
        """Copy the crops that wait, and give their room back once all batches are."""
        for piece in self._pieces:
            self._done.append(piece.taken)
            piece.crops = None if piece.crops is None else piece.crops.copy()
            piece.start, piece.taken = None, 0
        if not self._under_way:
            self.give_back()

    def _drop_empty(self) -> None:
        while self._pieces and not self._pieces[0].rows:
            self._done.append(self._pieces.popleft().taken)

    def _join(self, pieces: list[_Piece]) -> np.ndarray | Windows | None:
        """Return the crops of pieces: as they lie where that is one piece of the ring, else copied together."""
        windows = [piece.crops for piece in pieces if isinstance(piece.crops, Windows)]
        if windows:
            return join_windows(windows)
        crops = [piece.crops for piece in pieces if isinstance(piece.crops, np.ndarray)]
        if len(crops) < 2:
            return crops[0] if crops else None
        in_one = all(one.start is not None and one.start + one.rows == other.start for one, other in pairwise(pieces))
        first = pieces[0].start
        if in_one and first is not None and self._ring is not None:
            return self._ring.crops[first : first + sum(piece.rows for piece in pieces)]
        return np.concatenate(crops)
