"""Feed the model: entries in, blocks of what they became out, in the entries' order.

Entries travel by the chunk, so that the thread which feeds the model does almost nothing for each image. Workers,
threads or processes, write their crops into a ring of memory where the model reads them.
"""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from ..parallel import map_ahead
from ..records import Failure, Item, Member
from .decode import NO_CROPS, Answer, Chunk

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable

    import numpy as np

    from ..budgets import ByteBudget, Hold
    from ..records import Row
    from .crops import CropRing

Mark = TypeVar("Mark")  # what passes between entries, as the begin and the end of a shard do
CHUNK_BYTES = 4_000_000  # of encoded images: a chunk of large ones is short


@dataclass(frozen=True, slots=True)
class Block:
    """What a chunk became: its rows and failures in order, the crops and the tokens of the rows."""

    outcomes: list[Row | Failure]
    frames: int  # beyond the first of their file
    crops: np.ndarray | None  # uint8 (N, R, R, 3); None for texts
    tokens: np.ndarray | None  # int32 (N, L); None for images without texts
    start: int | None = None  # the first crop's place in the ring; None where they are elsewhere
    taken: int = 0  # crops of the ring that the block holds until they are given back
    warned: int = 0  # rows with a warning
    stored_turned: int = 0  # rows of images that are stored turned


@dataclass(frozen=True)
class Pace:
    """How many entries a worker takes together, and how far workers are ahead of the model."""

    batch: int  # rows that the model reads together
    chunk: int  # entries
    ahead: int  # chunks in work, or waiting to be taken

    @classmethod
    def of(cls, batch: int, workers: int, *, most: int, many_frames: bool = False) -> Pace:
        """Choose chunks of up to `most` entries that make up a batch; of one where a file may have many frames."""
        if many_frames:  # no more files are ahead than are being decoded
            return cls(batch, 1, workers)
        even = max(1, min(most, batch // (2 * workers)))
        chunk = max(size for size in range(1, even + 1) if batch % size == 0)
        return cls(batch, chunk, math.ceil(2 * batch / chunk) + workers)

    @property
    def most_held(self) -> int:
        """Crops of the ring that rows may hold while they wait for a full batch: the first and the last block's too."""
        return self.batch + 2 * self.chunk

    @property
    def ring(self) -> int:
        """Crops that are enough, in whole batches, as one that the ring's end cuts has to be copied.

        Beside the chunks ahead there are the one that is handed over, the one that is added to those that wait, what is
        left over at the ring's end, and what is skipped there and at the end of a shard.
        """
        return math.ceil(((self.ahead + 3) * self.chunk + self.most_held) / self.batch + 2) * self.batch


class Feed:
    """Workers that turn chunks of entries into blocks."""

    def __init__(self, pace: Pace, ring: CropRing | None, workers: int, budget: ByteBudget) -> None:
        """Write crops into `ring`, of at least `pace.ring`; None for texts. Bytes of entries are held in `budget`."""
        self._pace = pace
        self._ring = ring
        self._workers = workers
        self._budget = budget

    def blocks(
        self,
        entries: Iterable[tuple[Item | Member | Failure | Mark, Hold | None]],
        work: Callable[[Chunk], Answer],
        stop: Callable[[], None] = lambda: None,
    ) -> Generator[Block | Mark]:
        """Yield a block for each chunk of the entries, and the marks at their places.

        An entry comes with what holds its bytes, which is released when its chunk is decoded. Whoever takes a block
        gives its crops back to the ring, in the order of the blocks. Closing the generator ends the workers; `stop` is
        called first, to shorten that.
        """

        def process(chunk: Chunk | Mark) -> Block | Mark:
            if not isinstance(chunk, Chunk):
                return chunk
            try:
                return _make_block(chunk, work(chunk))
            finally:
                for hold in chunk.holds:
                    hold.release()

        ahead = map_ahead(process, self._chunks(entries), workers=self._workers, ahead=self._pace.ahead, stop=stop)
        with closing(ahead) as blocks:
            yield from blocks

    def _chunks(self, entries: Iterable[tuple[Item | Member | Failure | Mark, Hold | None]]) -> Generator[Chunk | Mark]:
        waiting: list[Item | Member | Failure] = []
        holds: list[Hold] = []
        for entry, hold in entries:
            is_mark = not isinstance(entry, (Item, Member, Failure))
            if not is_mark:
                waiting.append(entry)
                holds += [hold] if hold is not None else []
            if waiting and (is_mark or len(waiting) == self._pace.chunk or self._is_enough(holds)):
                yield self._make_chunk(waiting, holds)
                waiting, holds = [], []
            if is_mark:
                if self._ring is not None:
                    self._ring.align(self._pace.batch)
                yield entry
        if waiting:
            yield self._make_chunk(waiting, holds)

    def _is_enough(self, holds: list[Hold]) -> bool:
        """Whether so many bytes wait that they are to be decoded, however few images they are."""
        return self._budget.is_over() or sum(hold.size_bytes for hold in holds) > CHUNK_BYTES

    def _make_chunk(self, entries: list[Item | Member | Failure], holds: list[Hold]) -> Chunk:
        for hold in holds:
            hold.pass_on()
        if self._ring is None:
            return Chunk(entries, NO_CROPS, holds=holds)
        start = self._ring.take(len(entries))
        return Chunk(entries, self._ring.crops[start : start + len(entries)], start, holds)


def _make_block(chunk: Chunk, answer: Answer) -> Block:
    frames = sum(max(0, count - 1) for count in answer.counts)
    if chunk.crops is NO_CROPS:
        return Block(answer.outcomes, frames, None, answer.tokens)
    rows = sum(not isinstance(outcome, Failure) for outcome in answer.outcomes)
    crops, start = (chunk.crops[:rows], chunk.start) if answer.overflow is None else (answer.overflow, None)
    return Block(
        answer.outcomes,
        frames,
        crops,
        answer.tokens,
        start,
        len(chunk.entries),
        warned=answer.warned,
        stored_turned=answer.stored_turned,
    )
