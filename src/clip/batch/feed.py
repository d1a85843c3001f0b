"""Feed the model: entries in, blocks of what they became out, in the entries' order.

Entries travel by the chunk, so that the thread which feeds the model does almost nothing for each image. Workers,
threads or processes, write their crops into a ring of memory where the model reads them.
"""

from __future__ import annotations

import math
import sys
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from ..images.windows import Windows
from ..parallel import map_ahead
from ..records import Failure, Item, Member
from .decode import NO_CROPS, Answer, Chunk

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable

    import numpy as np

    from ..budgets import ByteBudget
    from ..records import Row
    from .crops import CropRing

Mark = TypeVar("Mark")  # what passes between entries, as the begin and the end of a shard do
CHUNK_ENTRIES = 8  # at least, however many workers there are: handing over a chunk takes a third of a millisecond
CHUNK_BYTES = 4_000_000  # of encoded images: a chunk of large ones is short, and of less where the budget is small


@dataclass(frozen=True, slots=True)
class Block:
    """What a chunk became: its rows and failures in order, the crops and the tokens of the rows."""

    outcomes: list[Row | Failure]
    frames: int  # beyond the first of their file
    crops: np.ndarray | Windows | None  # uint8 (N, R, R, 3), or not resized yet; None for texts
    tokens: np.ndarray | None  # int32 (N, L); None for images without texts
    start: int | None = None  # the first crop's place in the ring; None where they are elsewhere
    taken: int = 0  # crops of the ring that the block holds until they are given back
    warned: int = 0  # rows with a warning
    stored_turned: int = 0  # rows of images that are stored turned

    @property
    def has_failures(self) -> bool:
        """Whether not all outcomes are rows."""
        return Failure in map(type, self.outcomes)


@dataclass(frozen=True)
class Pace:
    """How many entries a worker takes together, and how far workers are ahead of the model."""

    batch: int  # rows that the model reads together
    chunk: int  # entries
    ahead: int  # chunks in work, or waiting to be taken
    under_way: int = 0  # batches that models read while others wait to be full

    @classmethod
    def of(cls, batch: int, workers: int, *, most: int, many_frames: bool = False, under_way: int = 0) -> Pace:
        """Choose chunks of up to `most` entries that make up a batch; of one where a file may have many frames."""
        if many_frames:  # no more files are ahead than are being decoded
            return cls(batch, 1, workers, under_way)
        even = min(most, max(CHUNK_ENTRIES, batch // (2 * workers)))
        chunk = max(size for size in range(1, even + 1) if batch % size == 0)
        return cls(batch, chunk, math.ceil((2 + under_way) * batch / chunk) + workers, under_way)

    @property
    def most_held(self) -> int:
        """Crops of the ring that rows may hold until a model has read them: the first and the last block's too."""
        return (1 + self.under_way) * self.batch + 2 * self.chunk

    @property
    def spare(self) -> int:
        """Crops of the ring that may be idle so that batches begin where one can be read in one piece."""
        return 2 * self.batch

    @property
    def ring(self) -> int:
        """Crops that are enough, in whole batches, as one that the ring's end cuts has to be copied."""
        return math.ceil((self.window_ring + self.spare) / self.batch) * self.batch

    @property
    def window_ring(self) -> int:
        """Places that are enough for windows, which nobody reads in one piece.

        Beside the chunks ahead there are the one that is handed over, the one that is added to those that wait, and
        what is left over at the ring's end.
        """
        return (self.ahead + 4) * self.chunk + self.most_held


class Feed:
    """Workers that turn chunks of entries into blocks."""

    def __init__(
        self, pace: Pace, ring: CropRing | None, workers: int, budget: ByteBudget, max_bytes: int = sys.maxsize
    ) -> None:
        """Write crops into `ring`, of at least `pace.ring`; None for texts. Bytes of entries are held in `budget`.

        Files of more than `max_bytes` are not read.
        """
        self._pace = pace
        self._max_bytes = max_bytes
        self._chunk_bytes = min(CHUNK_BYTES, budget.limit_bytes // (2 * workers))
        self._ring = ring
        self._workers = workers
        self._budget = budget

    def blocks(
        self,
        entries: Iterable[Item | Member | Failure | Mark],
        work: Callable[[Chunk], Answer],
        stop: Callable[[], None] = lambda: None,
    ) -> Generator[Block | Mark]:
        """Yield a block for each chunk of the entries, and the marks at their places.

        The bytes of a chunk are held in the budget until it is decoded: a member's came with it, those of files are
        waited for. Whoever takes a block gives its crops back to the ring, in the order of the blocks. Closing the
        generator ends the workers; `stop` is called first, to shorten that.
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

    def _chunks(self, entries: Iterable[Item | Member | Failure | Mark]) -> Generator[Chunk | Mark]:
        waiting: list[Item | Member | Failure] = []
        size_bytes = 0
        for entry in entries:
            is_mark = not isinstance(entry, (Item, Member, Failure))
            more_bytes = 0 if is_mark else self._count_bytes(entry)
            is_alone = isinstance(entry, Item) and size_bytes + more_bytes > self._chunk_bytes  # a large file is
            if waiting and (is_mark or is_alone):
                yield self._make_chunk(waiting)
                waiting, size_bytes = [], 0
            if is_mark:
                if self._ring is not None and not self._ring.holds_windows:
                    self._ring.align(self._pace.batch, self._pace.spare)
                yield entry
                continue
            waiting.append(entry)
            size_bytes += more_bytes
            is_full = len(waiting) == self._pace.chunk or size_bytes > self._chunk_bytes
            if is_full or self._budget.is_over():  # so many bytes are to be decoded, however few images they are
                yield self._make_chunk(waiting)
                waiting, size_bytes = [], 0
        if waiting:
            yield self._make_chunk(waiting)

    def _count_bytes(self, entry: Item | Member | Failure) -> int:
        """Return how many bytes an entry holds, or will hold once it is read."""
        if isinstance(entry, Member):
            return len(entry.data)
        if isinstance(entry, Failure) or self._ring is None or entry.size_bytes > self._max_bytes:
            return 0
        return entry.size_bytes

    def _make_chunk(self, entries: list[Item | Member | Failure]) -> Chunk:
        file_bytes = sum(self._count_bytes(entry) for entry in entries if isinstance(entry, Item))
        holds = [self._budget.hold_waited(file_bytes)] if file_bytes else []
        holds += [entry.held for entry in entries if isinstance(entry, Member) and entry.held is not None]
        for hold in holds:  # now, as the budget grants what is waited for once decoders hold nothing
            hold.pass_on()
        if self._ring is None:
            return Chunk(entries, NO_CROPS, holds=holds)
        start = self._ring.take(len(entries))
        return Chunk(entries, self._ring.crops[start : start + len(entries)], start, holds)


def _make_block(chunk: Chunk, answer: Answer) -> Block:
    frames = sum(answer.counts) - len(answer.counts)
    if chunk.crops is NO_CROPS:
        return Block(answer.outcomes, frames, None, answer.tokens, warned=answer.warned)
    rows = len(answer.outcomes) - list(map(type, answer.outcomes)).count(Failure)
    crops, start = (chunk.crops[:rows], chunk.start) if answer.overflow is None else (answer.overflow, None)
    if answer.windows is not None:
        crops, start = Windows((chunk.crops.reshape(-1),), answer.windows), None
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
