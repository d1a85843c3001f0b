"""Write the shards of a plan that are not written yet: read, decode, encode, write.

Workers read and decode ahead of the model (feed.py); a look-ahead, a budget of encoded bytes and one of decoded bytes
bound what they hold. Each entry of a shard becomes a row or a failure row. The reader counts entries, the writer rows,
and count.py compares the two.
"""

from __future__ import annotations

import os
from collections import Counter
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from itertools import compress
from typing import TYPE_CHECKING

import numpy as np

from ..budgets import ByteBudget
from ..encoder import Encoder
from ..errors import TooManyFailuresError
from ..jobs.embed import EmbedJob, Progress
from ..parallel import available_cores, map_ahead, read_ahead
from ..records import ContainerPart, Failure, Item, Member, Row, Shard, count_bytes, count_values
from ..sources.remote.prefetch import prefetch
from ..store.part_writer import PartWriter
from ..store.parts import EMBEDDING, FAILURES, TEXT_EMBEDDING
from ..text.tokens import Tokenizing
from ..vectors import unit_vectors
from .batches import Batches
from .crops import CropRing
from .decode import Decoding
from .feed import Block, Feed, Pace
from .notes import Notes
from .prepare import Preparing
from .processes import DecoderProcesses

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Sequence

    from ..sources.source import Source
    from ..store.lock import Lock
    from ..store.plan import Plan
    from ..store.writer import StoreWriter

ROW_GROUP = 10_000  # rows that wait to be written; a larger shard has several such groups
ROW_GROUP_BYTES = 64_000_000  # of copied values, captions say, in rows that wait to be written
READ_AHEAD_BYTES = 100_000_000  # of images and copied values, read of an archive or a table before their turn
IMAGES_IN_CHUNK, TEXTS_IN_CHUNK = 16, 64
THREADS_ENOUGH = 4  # threads that Python's lock does not hold up: 16 decoded 1.6 times as much as 4, 16 processes 4.5
IMAGES_A_PROCESS = 64  # fewer are decoded in threads before a process has started
TEXTS_AT_A_TIME = 1024  # of which the engine runs those of similar lengths together
MAX_MESSAGE = 200  # characters of a failure that ends the run


class Run:
    """Writes the shards of a plan that are not written yet."""

    def __init__(
        self,
        job: EmbedJob,
        encoder: Encoder,
        source: Source,
        plan: Plan,
        store: StoreWriter,
        lock: Lock,
        progress: Callable[[Progress], None] | None,
    ) -> None:
        self._job = job
        self._encoder = encoder
        self._decoding = Decoding(source, encoder.settings, job.limits, job.decode, job.policy.hashes)
        self._tokenizing = Tokenizing(job.kind, encoder.context_length, job.long_text, encoder.tokenizer)
        self._workers = job.workers or available_cores()
        self._in_processes = _choose_processes(job, self._workers, plan.total, encoder.device.type)
        texts, batch = job.kind == "texts", TEXTS_AT_A_TIME if job.kind == "texts" else encoder.batch_size
        most = 1 if job.isolate else TEXTS_IN_CHUNK if texts else IMAGES_IN_CHUNK
        self._pace = Pace.of(batch, self._workers, most=most, many_frames=job.decode.frames == "all")
        self._ring = None if texts else CropRing(self._pace.ring, encoder.resolution_px, shared=self._in_processes)
        self._waiting = Batches(self._ring, self._pace.most_held)  # empty between shards
        self._plan = plan
        self._store = store
        self._lock = lock
        self._progress = progress
        self._bytes = 0  # of the images that were read
        self.notes = Notes()

    def write(self) -> int:
        """Write the missing shards, and return how many entries earlier runs had written."""
        summaries = self._plan.summaries()
        done = self._find_done([summary.fingerprint for summary in summaries])
        missing = [index for index in range(self._plan.shards) if index not in done]
        rows, failed = self._store.counts(done)
        read = resumed = rows + failed + sum(summaries[index].carried_over for index in missing)
        if missing:
            self._store.reopen()
        part: _Part | None = None
        with ExitStack() as all_files, closing(self._blocks(missing)) as blocks, ExitStack() as files:
            if self._ring is not None:
                all_files.callback(self._ring.close)  # after the processes that write into it
            for block in blocks:
                if isinstance(block, Shard):
                    part = self._begin(block, files)
                elif part is None:
                    raise AssertionError("a shard comes before its entries")
                elif isinstance(block, _End):
                    part.finish(block)
                    self._check_failures(failed, part, read)
                    self._lock.check()
                    files.close()
                    done.add(part.shard.index)
                    failed += part.failed
                    self._report(read, failed, resumed, len(done))
                else:
                    part.add(block)
                    self.notes.add(block)
                    read += len(block.outcomes)
                    self._bytes += sum(outcome.size_bytes for outcome in block.outcomes if isinstance(outcome, Row))
                    if self._plan.total is not None:
                        self._check_failures(failed, part, self._plan.total)
                    self._report(read - len(self._waiting), failed + part.failed, resumed, len(done))
        return resumed

    def _report(self, finished: int, failed: int, resumed: int, shards: int) -> None:
        """Report how many entries have a vector or a failure; those that wait for the model do not count."""
        if self._progress:
            total = self._plan.total
            self._progress(
                Progress(finished, total, failed, resumed, None, shards, self._plan.shards, bytes=self._bytes)
            )

    def _find_done(self, fingerprints: Sequence[str]) -> set[int]:
        """Return the shards whose parts are there, whole and of these fingerprints. Threads compare the parts."""
        store, workers = self._store, available_cores()
        numbered = enumerate(fingerprints)
        found = map_ahead(lambda pair: store.is_done(*pair), numbered, workers=workers, ahead=4 * workers)
        return {index for index, is_done in enumerate(found) if is_done}

    def _begin(self, shard: Shard, files: ExitStack) -> _Part:
        part = _Part(self._encoder, self._job, files.enter_context(self._store.part(shard)), shard, self._waiting)
        if shard.carried_over:
            path = self._store.parts.path(FAILURES, shard.index)
            ids = self._store.parts.read_or_empty(path, ["id"])["id"].to_pylist()
            earlier = {shard.renamed.get(own_id, own_id) for own_id in shard.carried_over}
            part.failed = sum(own_id in earlier for own_id in ids)
        return part

    def _check_failures(self, failed: int, part: _Part, total: int) -> None:
        """Raise TooManyFailuresError where more entries failed than the job allows."""
        total = self._plan.total or total
        allowed = self._job.allowed_failures(total)
        last = part.last_failure
        if failed + part.failed <= allowed or last is None:
            return
        raise TooManyFailuresError(
            self._job.output,
            f"more than {allowed:,} of {total:,} {self._job.kind} failed; "
            f"the last was {last.id!r} ({last.message[:MAX_MESSAGE]})",
            f"at most {self._job.max_failures or '0'}",  # with on_failure="stop" there is no number
            "Repair them, or raise `max_failures` and run again: finished parts are kept.",
        )

    def _blocks(self, indices: Iterable[int]) -> Generator[Block | Shard | _End]:
        """Yield each shard, what became of its entries in order, and its end.

        Workers run ahead across the borders of shards.
        """
        job = self._job
        held, budget = ByteBudget(job.read_budget_bytes), ByteBudget(job.decode_budget_bytes)
        processes = None
        if self._in_processes and self._ring is not None:
            processes = DecoderProcesses(
                self._decoding,
                self._ring,
                workers=self._workers,
                budget_bytes=job.decode_budget_bytes,
                max_seconds=job.isolated_s,
            )
        threads = partial(self._decoding.decode_chunk, reserve=budget.reserve)
        preparing = Preparing(self._tokenizing, processes or threads)
        local = self._entries(indices, held)
        entries: Generator[_Listed] = (
            local if job.kind == "texts" else prefetch(local, job.limits.max_bytes, job.readers, held)
        )
        feed = Feed(self._pace, self._ring, self._workers, held, job.limits.max_bytes)
        stop = processes.close if processes else (lambda: None)
        frames = 0
        with (
            closing(entries),
            closing(held),  # before the entries are, as their threads may be waiting for it
            closing(feed.blocks(entries, preparing, stop)) as blocks,
        ):
            for block in blocks:
                if isinstance(block, _End):
                    block.frames, frames = frames, 0
                elif isinstance(block, Block):
                    frames += block.frames
                yield block

    def _entries(self, indices: Iterable[int], budget: ByteBudget) -> Generator[_Listed]:
        """Yield each shard, its entries as the source gives them, and its end, with the reader's count."""
        for index in indices:
            shard, end = self._plan.shard(index), _End()
            yield shard
            for entry in shard.entries:
                if isinstance(entry, ContainerPart):
                    members = self._decoding.source.members(entry, self._job.limits.max_bytes, end.ignored, budget)
                    with closing(read_ahead(end.count(members), count_bytes, READ_AHEAD_BYTES, budget)) as stream:
                        yield from stream
                elif entry.id not in shard.carried_over:
                    yield from end.count([entry])
            yield end


@dataclass
class _End:
    """The end of a shard's entries, and how many there were; entries that an update carries over do not count."""

    read: int = 0
    frames: int = 0  # beyond the first of their file
    ignored: Counter[str] = field(default_factory=Counter[str])  # members of containers, by reason

    def count(self, entries: Iterable[_Entry]) -> Generator[_Entry]:
        """Yield the same entries, and count them before anything else sees them."""
        for entry in entries:
            self.read += 1
            yield entry


_Entry = Item | Member | Failure
_Listed = _Entry | Shard | _End


class _Part:
    """A shard that is being written: decoded images wait for a full batch, vectors for a full row group."""

    def __init__(self, encoder: Encoder, job: EmbedJob, writer: PartWriter, shard: Shard, waiting: Batches) -> None:
        self.shard = shard
        self.failed = 0
        self.last_failure: Failure | None = None
        self._encoder = encoder
        self._job = job
        self._writer = writer
        self._taken = 0
        self._batch_size = TEXTS_AT_A_TIME if job.kind == "texts" else encoder.batch_size
        self._waiting = waiting
        self._clear()

    def _clear(self) -> None:
        self._rows: list[Row] = []
        self._failures: list[tuple[int, Failure]] = []  # with their places in the shard
        self._value_bytes = 0  # of the rows, and of what waits to become one
        names = [EMBEDDING, TEXT_EMBEDDING] if self._job.kind == "pairs" else [EMBEDDING]
        self._vectors = {name: [np.empty((0, self._encoder.dim), np.float32)] for name in names}

    def add(self, block: Block) -> None:
        """Take what became of a chunk; encode a full batch, write a full row group."""
        first = block.outcomes[0] if block.outcomes else None
        are_plain = isinstance(first, Row) and not first.values and not block.has_failures  # if one has values, all do
        for place, outcome in enumerate(() if are_plain else block.outcomes, self._taken):
            if isinstance(outcome, Failure):
                self._fail(place, outcome)
            else:
                self._value_bytes += count_values(outcome.values)
        self._waiting.add(block, self._taken)
        self._taken += len(block.outcomes)
        while len(self._waiting) >= self._batch_size:
            self._encode()
        # Rows that an update carries over are put in their places at the end.
        is_full = len(self._rows) + len(self._failures) >= ROW_GROUP or self._value_bytes > ROW_GROUP_BYTES
        if is_full and not self.shard.carried_over:
            self._write()

    def finish(self, end: _End) -> None:
        """Encode and write what waits, and note the reader's count in the part."""
        self._write()
        self._writer.note(end.read, end.ignored, end.frames)

    def _fail(self, place: int, failure: Failure) -> None:
        self._failures.append((place, failure))
        self.failed += 1
        self.last_failure = failure

    def _write(self) -> None:
        while len(self._waiting):
            self._encode()
        self._waiting.give_back()
        failures = [failure for _, failure in sorted(self._failures, key=lambda placed: placed[0])]
        vectors = {name: np.concatenate(blocks) for name, blocks in self._vectors.items()}  # (N, D) each
        self._writer.add(self._rows, vectors, failures)
        self._clear()

    def _encode(self) -> None:
        batch = self._waiting.take(self._batch_size)
        features = encode_batch(batch.crops, batch.tokens, self._encoder)  # (B, D) each
        self._waiting.give_back()
        usable = np.ones(len(batch.rows), np.bool_)
        norms: dict[str, np.ndarray] = {}
        for name, block in features.items():
            with np.errstate(over="ignore"):  # an overflow gives an infinity, which the next line finds
                norms[name] = np.linalg.norm(block, axis=1)  # (B,)
                stored = block if self._job.policy.normalize else block.astype(self._job.policy.dtype)  # (B, D)
            usable &= np.isfinite(norms[name]) & (norms[name] > 0) & np.isfinite(stored).all(axis=1)
        for number in np.flatnonzero(~usable).tolist():
            norm = " and ".join(str(values[number]) for values in norms.values())
            expected = f"expected one above 0 that {self._job.policy.dtype} can hold"
            error = ValueError(f"the model gave a vector of norm {norm}, {expected}. Check the weights.")
            row = batch.rows[number]
            self._fail(batch.places[number], Failure.of(Item(row.id, row.path, 0), "encode", error))
        self._rows += compress(batch.rows, usable)
        for name, block in features.items():
            self._vectors[name].append(unit_vectors(block[usable]) if self._job.policy.normalize else block[usable])


def _choose_processes(job: EmbedJob, workers: int, images: int | None, device: str) -> bool:
    """Decide whether processes decode, not threads."""
    if job.kind == "texts" or (job.decoders != "auto" and not job.isolate):
        return job.decoders == "processes" and job.kind != "texts"
    starved = workers > THREADS_ENOUGH or device == "cuda"
    many = images is None or images >= IMAGES_A_PROCESS * workers
    return job.isolate or (starved and many and os.name != "nt")


def encode_batch(crops: np.ndarray | None, tokens: np.ndarray | None, encoder: Encoder) -> dict[str, np.ndarray]:
    """Encode a batch. Shapes: uint8 (B, R, R, 3), int32 (B, L) -> float32 (B, D) for each column of vectors."""
    features: dict[str, np.ndarray] = {}
    if crops is not None:
        features[EMBEDDING] = encoder.encode_pixels(crops)
    if tokens is not None:
        features[EMBEDDING if crops is None else TEXT_EMBEDDING] = encoder.encode_tokens(tokens)
    return features
