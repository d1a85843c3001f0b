"""A shard that is being written: decoded images wait for a full batch, rows for the next save or a full row group."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from itertools import compress
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from ..jobs.options import OutputPolicy
from ..records import Failure, Item, Row, Shard, count_values
from ..store.parts import EMBEDDINGS, FAILURES, vector_columns
from ..vectors import unit_vectors

if TYPE_CHECKING:
    from collections.abc import Mapping
    from concurrent.futures import Future

    from ..store.journal import Journal
    from ..store.part_writer import PartWriter
    from .batches import Batch, Batches
    from .encoders import Encoders, Features
    from .feed import Block

ROW_GROUP = 10_000  # rows, or failures, that are written together; a larger shard has several such groups
ROW_GROUP_BYTES = 64_000_000  # of copied values, captions say, in rows that wait to be written


@dataclass(frozen=True, slots=True)
class _Mark:
    """Where in its shard a block begins, and what it holds."""

    place: int
    entries: int  # before it
    frames: int  # before it, beyond one for each entry
    outcomes: int
    new_frames: int


class PartInWork:
    """Takes what became of a shard's entries, in their order, and writes the part.

    What is written does not depend on when rows are saved: a save ends at a batch, the next run begins there, and row
    groups are cut by their number of rows alone.
    """

    def __init__(
        self,
        encoders: Encoders,
        policy: OutputPolicy,
        writer: PartWriter,
        journal: Journal,
        shard: Shard,
        waiting: Batches,
        batch_size: int,
    ) -> None:
        """Begin with what the journal holds. Raises: StoreError where it cannot be read."""
        self.shard = shard
        self.failed = journal.saved.failed
        self.last_failure: Failure | None = None
        self._encoders = encoders
        self._policy = policy
        self._writer = writer
        self._journal = journal
        self._waiting = waiting
        self._batch_size = batch_size
        self._taken = journal.saved.entries + journal.saved.frames  # the place of the next outcome in the shard
        self._repeated = journal.saved.repeated  # of the next outcomes, those that the journal has
        self._marks = deque([_Mark(self._taken, journal.saved.entries, journal.saved.frames, 0, 0)])
        # Not saved yet: failures with their places, and batches with theirs, each put here by one call, as Ctrl-C may
        # come at any line.
        self._failures: list[tuple[int, Failure]] = []
        self._encoded: list[tuple[list[int], list[Row], dict[str, np.ndarray]]] = []
        self._under_way: deque[tuple[Batch, Future[Features]]] = deque()
        self._value_bytes = 0  # of rows that are not saved, and of what waits to become one
        self._tables: dict[str, list[pa.Table]] = {EMBEDDINGS: [], FAILURES: []}  # saved, not in a row group yet
        for tables in journal.read():
            self._keep(tables)

    @property
    def unsaved(self) -> int:
        """How many outcomes the journal does not have."""
        return max(0, self._taken - self._journal.saved.outcomes)

    def add(self, block: Block) -> int:
        """Take what became of a chunk, encode full batches; return how many of the outcomes are new."""
        last = self._marks[-1]
        entries = last.entries + last.outcomes - last.new_frames
        frames, count = last.frames + last.new_frames, len(block.outcomes)
        self._marks.append(_Mark(self._taken, entries, frames, count, block.frames))
        repeated = min(self._repeated, count)
        if repeated:
            block = _cut_block(block, repeated)
        first = block.outcomes[0] if block.outcomes else None
        are_plain = isinstance(first, Row) and not first.values and not block.has_failures  # if one has values, all do
        for place, outcome in enumerate(() if are_plain else block.outcomes, self._taken + repeated):
            if isinstance(outcome, Failure):
                self._fail(place, outcome)
            else:
                self._value_bytes += count_values(outcome.values)
        self._waiting.add(block, self._taken + repeated)
        while self._under_way and self._waiting.is_crowded:
            self._take_oldest()
        if self._waiting.is_crowded:
            self._waiting.move_out()
        self._taken += count
        self._repeated -= repeated
        while len(self._waiting) >= self._batch_size:
            self._encode()
        return count - repeated

    @property
    def is_full(self) -> bool:
        """Whether more rows wait than a row group has, so that they have to be saved."""
        # Rows that an update carries over are put in their places at the end.
        return not self.shard.carried_over and (self.unsaved > ROW_GROUP or self._value_bytes > ROW_GROUP_BYTES)

    def save(self) -> None:
        """Write what is encoded into the journal, up to the first row that waits for its batch. Raises: StoreError."""
        until, tables = self._collect()
        if until == self._journal.saved.outcomes:
            return
        self._journal.write(tables, *self._find_resume_point(until))
        self._forget(until)
        self._keep(tables)

    def finish(self, read: int, ignored: Mapping[str, int], frames: int) -> None:
        """Encode and write what waits, and note the reader's counts in the part."""
        while len(self._waiting):
            self._encode()
        while self._under_way:
            self._take_oldest()
        self._waiting.give_back()
        self._keep(self._collect()[1])
        self._write({name: pa.concat_tables(kept) for name, kept in self._tables.items()})
        self._writer.note(read, ignored, frames)

    def _fail(self, place: int, failure: Failure) -> None:
        self._failures.append((place, failure))
        self.failed += 1
        self.last_failure = failure

    def _collect(self) -> tuple[int, dict[str, pa.Table]]:
        """Return the rows and failures that follow what is saved without a gap, and the place where they end."""
        start = self._journal.saved.outcomes
        failures = {place: failure for place, failure in self._failures if place >= start}
        places = {place for batch, _, _ in self._encoded for place in batch if place >= start} | failures.keys()
        until = next(place for place in range(start, start + len(places) + 1) if place not in places)
        rows: list[Row] = []
        names = vector_columns(self._writer.schema)
        vectors = {name: [np.empty((0, self._encoders.first.dim), np.float32)] for name in names}
        for batch, of_batch, features in self._encoded:
            chosen = [start <= place < until for place in batch]
            rows += compress(of_batch, chosen)
            for name, block in features.items():
                vectors[name].append(block if all(chosen) else block[chosen])
        stacked = {name: np.concatenate(blocks) for name, blocks in vectors.items()}  # (N, D) each
        failed = [failures[place] for place in sorted(failures) if place < until]
        return until, self._writer.make_tables(rows, stacked, failed)

    def _find_resume_point(self, until: int) -> tuple[int, int]:
        """Return how many entries lie before a place, and how many frames they have beyond one for each."""
        mark = next(mark for mark in reversed(self._marks) if mark.place <= until)
        if mark.new_frames and until < mark.place + mark.outcomes:
            return mark.entries, mark.frames  # the file is read again for the rest of its frames
        return mark.entries + until - mark.place - mark.new_frames, mark.frames + mark.new_frames

    def _forget(self, until: int) -> None:
        """Drop what lies before a place."""
        self._encoded = [batch for batch in self._encoded if batch[0] and batch[0][-1] >= until]
        self._failures = [one for one in self._failures if one[0] >= until]
        self._value_bytes = 0
        while len(self._marks) > 1 and self._marks[1].place <= until:
            self._marks.popleft()

    def _keep(self, tables: Mapping[str, pa.Table]) -> None:
        """Hold saved rows until there are enough for a row group."""
        for name, table in tables.items():
            self._tables[name].append(table)
        if self.shard.carried_over:
            return
        while any(sum(table.num_rows for table in kept) > ROW_GROUP for kept in self._tables.values()):
            self._write({name: self._take_rows(name, ROW_GROUP) for name in self._tables})
        held = sum(table.drop_columns(vector_columns(table.schema)).nbytes for table in self._tables[EMBEDDINGS])
        if held > ROW_GROUP_BYTES:
            self._write({name: self._take_rows(name, ROW_GROUP) for name in self._tables})

    def _take_rows(self, name: str, count: int) -> pa.Table:
        whole = pa.concat_tables(self._tables[name])
        self._tables[name] = [whole.slice(count)]
        return whole.slice(0, count)

    def _write(self, tables: Mapping[str, pa.Table]) -> None:
        self._writer.add_tables({name: table.combine_chunks() for name, table in tables.items()})

    def _encode(self) -> None:
        """Have the next batch encoded, and take the oldest ones that are under way if there are enough after them."""
        batch = self._waiting.take(self._batch_size)
        self._under_way.append((batch, self._encoders.encode(batch.crops, batch.tokens)))
        while len(self._under_way) > self._encoders.ahead:
            self._take_oldest()

    def _take_oldest(self) -> None:
        """Wait for the oldest batch under way, and keep its vectors."""
        batch, encoding = self._under_way.popleft()
        features = encoding.result()  # (B, D) each
        self._waiting.give_back()
        usable = np.ones(len(batch.rows), np.bool_)
        norms: dict[str, np.ndarray] = {}
        for name, block in features.items():
            with np.errstate(over="ignore"):  # an overflow gives an infinity, which the next line finds
                norms[name] = np.linalg.norm(block, axis=1)  # (B,)
                stored = block if self._policy.normalize else block.astype(self._policy.dtype)  # (B, D)
            usable &= np.isfinite(norms[name]) & (norms[name] > 0) & np.isfinite(stored).all(axis=1)
        for number in np.flatnonzero(~usable).tolist():
            norm = " and ".join(str(values[number]) for values in norms.values())
            expected = f"expected one above 0 that {self._policy.dtype} can hold"
            error = ValueError(f"the model gave a vector of norm {norm}, {expected}. Check the weights.")
            row = batch.rows[number]
            self._fail(batch.places[number], Failure.of(Item(row.id, row.path, 0), "encode", error))
        normalize = self._policy.normalize
        vectors = {
            name: unit_vectors(block[usable]) if normalize else block[usable] for name, block in features.items()
        }
        self._encoded.append((list(compress(batch.places, usable)), list(compress(batch.rows, usable)), vectors))


def _cut_block(block: Block, count: int) -> Block:
    """Return a block without its first outcomes."""
    rows = count - list(map(type, block.outcomes[:count])).count(Failure)
    arrays: dict[str, Any] = {
        name: None if array is None else array[rows:]
        for name, array in (("crops", block.crops), ("tokens", block.tokens))
    }
    start = None if block.start is None else block.start + rows
    return replace(block, outcomes=block.outcomes[count:], start=start, **arrays)
