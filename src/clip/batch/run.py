"""Write the shards of a plan that are not written yet: read, decode, encode, write.

Threads read and decode ahead of the model; a look-ahead, a budget of encoded and one of decoded bytes bound what they
hold. Each entry of a shard becomes a row or a failure row. The reader counts entries, the writer rows, and count.py
compares the two.
"""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from ..budgets import ByteBudget, Hold
from ..encoder import Encoder
from ..errors import TooManyFailuresError
from ..jobs.embed import EmbedJob, Progress
from ..parallel import available_cores, map_ahead, read_ahead
from ..records import (
    ContainerPart,
    Failure,
    Item,
    Member,
    Pixels,
    Row,
    Shard,
    Tokens,
    add_warning,
    count_bytes,
    count_values,
)
from ..sources.remote.prefetch import prefetch
from ..store.part_writer import PartWriter
from ..store.parts import EMBEDDING, FAILURES, TEXT_EMBEDDING
from ..text.tokens import Tokenizing
from ..vectors import unit_vectors
from .decode import Decoding
from .isolate import IsolatedDecoder
from .notes import Notes

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Sequence

    from ..sources.source import Source
    from ..store.lock import Lock
    from ..store.plan import Plan
    from ..store.writer import StoreWriter

ROW_GROUP = 10_000  # rows that wait to be written; a larger shard has several such groups
ROW_GROUP_BYTES = 64_000_000  # of copied values, captions say, in rows that wait to be written
READ_AHEAD_BYTES = 100_000_000  # of images and copied values, read of an archive or a table before their turn
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
        self._plan = plan
        self._store = store
        self._lock = lock
        self._progress = progress
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
        with closing(self._outcomes(missing)) as outcomes, ExitStack() as files:
            for outcome in outcomes:
                if isinstance(outcome, Shard):
                    part = self._begin(outcome, files)
                elif part is None:
                    raise AssertionError("a shard comes before its entries")
                elif isinstance(outcome, _End):
                    part.finish(outcome)
                    self._check_failures(failed, part, read)
                    self._lock.check()
                    files.close()
                    done.add(part.shard.index)
                    failed += part.failed
                else:
                    part.add(outcome)
                    self.notes.add(outcome)
                    read += 1
                    if self._plan.total is not None:
                        self._check_failures(failed, part, self._plan.total)
                    if self._progress:
                        total, shards = self._plan.total, self._plan.shards
                        self._progress(Progress(read, total, failed + part.failed, resumed, None, len(done), shards))
        return resumed

    def _find_done(self, fingerprints: Sequence[str]) -> set[int]:
        """Return the shards whose parts are there, whole and of these fingerprints. Threads compare the parts."""
        store, workers = self._store, available_cores()
        numbered = enumerate(fingerprints)
        found = map_ahead(lambda pair: store.is_done(*pair), numbered, workers=workers, ahead=4 * workers)
        return {index for index, is_done in enumerate(found) if is_done}

    def _begin(self, shard: Shard, files: ExitStack) -> _Part:
        part = _Part(self._encoder, self._job, files.enter_context(self._store.part(shard)), shard)
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

    def _outcomes(self, indices: Iterable[int]) -> Generator[_Outcome]:
        """Yield each shard, the outcomes of its entries in order, and its end.

        Threads run ahead across the borders of shards.
        """
        job, seconds = self._job, self._job.isolated_s
        held, budget = ByteBudget(job.read_budget_bytes), ByteBudget(job.decode_budget_bytes)
        workers = job.workers or available_cores()
        isolated = None if seconds is None else IsolatedDecoder(self._decoding, seconds, budget.reserve)

        def decode(entry: Item | Member) -> Sequence[Pixels | Failure]:
            return isolated(entry) if isolated else self._decoding(entry, budget.reserve)

        def prepare(admitted: tuple[_Listed, Hold | None]) -> Sequence[_Outcome]:
            entry, hold = admitted
            if not isinstance(entry, (Item, Member)):
                return [entry]
            try:
                return prepare_entry(entry, decode, self._tokenizing)
            finally:
                if hold is not None:
                    hold.release()

        stop = isolated.close if isolated else (lambda: None)
        all_frames = job.decode.frames == "all"
        # A file may have many frames, so no more files are ahead than are being decoded.
        batch = TEXTS_AT_A_TIME if job.kind == "texts" else self._encoder.batch_size
        ahead = workers if all_frames else 2 * batch + workers
        local = self._entries(indices, held)
        entries: Generator[_Listed] = (
            local if job.kind == "texts" else prefetch(local, job.limits.max_bytes, job.readers, held)
        )
        admitted = self._admit(entries, held)
        frames = 0
        with (
            closing(entries),
            closing(held),  # before the entries are, as their threads may be waiting for it
            closing(map_ahead(prepare, admitted, workers=workers, ahead=ahead, stop=stop)) as results,
        ):
            for outcomes in results:
                for outcome in outcomes:
                    if isinstance(outcome, _End):
                        outcome.frames, frames = frames, 0
                    yield outcome
                frames += max(0, len(outcomes) - 1) if all_frames else 0

    def _admit(self, entries: Iterable[_Listed], budget: ByteBudget) -> Generator[tuple[_Listed, Hold | None]]:
        """Yield the same entries, each with what holds its bytes; of a file on this machine when they may be read."""
        max_bytes = self._job.limits.max_bytes
        for entry in entries:
            if isinstance(entry, Member):
                yield entry, entry.held
            elif isinstance(entry, Item) and self._job.kind != "texts":
                yield entry, budget.hold_passed(entry.size_bytes if entry.size_bytes <= max_bytes else 0)
            else:
                yield entry, None

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
_Outcome = Pixels | Tokens | Failure | Shard | _End


class _Part:
    """A shard that is being written: decoded images wait for a full batch, vectors for a full row group."""

    def __init__(self, encoder: Encoder, job: EmbedJob, writer: PartWriter, shard: Shard) -> None:
        self.shard = shard
        self.failed = 0
        self.last_failure: Failure | None = None
        self._encoder = encoder
        self._job = job
        self._writer = writer
        self._taken = 0
        self._waiting: list[tuple[int, Pixels | Tokens]] = []  # with their places in the shard
        self._clear()

    def _clear(self) -> None:
        self._rows: list[Row] = []
        self._failures: list[tuple[int, Failure]] = []  # with their places in the shard
        self._value_bytes = 0  # of the rows, and of what waits to become one
        names = [EMBEDDING, TEXT_EMBEDDING] if self._job.kind == "pairs" else [EMBEDDING]
        self._vectors = {name: [np.empty((0, self._encoder.dim), np.float32)] for name in names}

    def add(self, outcome: Pixels | Tokens | Failure) -> None:
        """Take the outcome of an entry; encode a full batch, write a full row group."""
        if isinstance(outcome, Failure):
            self._fail(self._taken, outcome)
        else:
            self._waiting.append((self._taken, outcome))
            self._value_bytes += count_values(outcome.row.values)
        self._taken += 1
        if len(self._waiting) >= (TEXTS_AT_A_TIME if self._job.kind == "texts" else self._encoder.batch_size):
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
        self._encode()
        failures = [failure for _, failure in sorted(self._failures, key=lambda placed: placed[0])]
        vectors = {name: np.concatenate(blocks) for name, blocks in self._vectors.items()}  # (N, D) each
        self._writer.add(self._rows, vectors, failures)
        self._clear()

    def _encode(self) -> None:
        if not self._waiting:
            return
        features = encode_outcomes([outcome for _, outcome in self._waiting], self._encoder)  # (B, D) each
        usable = np.ones(len(self._waiting), np.bool_)
        norms: dict[str, np.ndarray] = {}
        for name, block in features.items():
            with np.errstate(over="ignore"):  # an overflow gives an infinity, which the next line finds
                norms[name] = np.linalg.norm(block, axis=1)  # (B,)
                stored = block if self._job.policy.normalize else block.astype(self._job.policy.dtype)  # (B, D)
            usable &= np.isfinite(norms[name]) & (norms[name] > 0) & np.isfinite(stored).all(axis=1)
        for number, (place, outcome) in enumerate(self._waiting):
            if usable[number]:
                self._rows.append(outcome.row)
            else:
                norm = " and ".join(str(values[number]) for values in norms.values())
                expected = f"expected one above 0 that {self._job.policy.dtype} can hold"
                error = ValueError(f"the model gave a vector of norm {norm}, {expected}. Check the weights.")
                self._fail(place, Failure.of(Item(outcome.row.id, outcome.row.path, 0), "encode", error))
        for name, block in features.items():
            self._vectors[name].append(unit_vectors(block[usable]) if self._job.policy.normalize else block[usable])
        self._waiting = []


def prepare_entry(
    entry: Item | Member, decode: Callable[[Item | Member], Sequence[Pixels | Failure]], tokenizing: Tokenizing
) -> Sequence[Pixels | Tokens | Failure]:
    """Return what the model reads of an entry: its image, its text, or both; or the reason why there is nothing."""
    if tokenizing.kind == "images":
        return decode(entry)
    item = entry.item if isinstance(entry, Member) else entry
    tokens = tokenizing(item)
    if isinstance(tokens, Failure):
        return [tokens]
    if tokenizing.kind == "texts":
        row = Row(item.id, item.path, 0, 0, "", item.size_bytes, warning=tokens.warning, values=item.values)
        return [Tokens(row, tokens.ids)]
    return [
        replace(outcome, row=add_warning(outcome.row, tokens.warning), tokens=tokens.ids)
        if isinstance(outcome, Pixels)
        else outcome
        for outcome in decode(entry)
    ]


def encode_outcomes(outcomes: Sequence[Pixels | Tokens], encoder: Encoder) -> dict[str, np.ndarray]:
    """Encode a batch. Shapes: float32 (B, D) for each column of vectors."""
    pixels = [outcome.array for outcome in outcomes if isinstance(outcome, Pixels)]
    tokens = [outcome.tokens for outcome in outcomes if outcome.tokens is not None]
    features: dict[str, np.ndarray] = {}
    if pixels:
        features[EMBEDDING] = encoder.encode_pixels(np.stack(pixels))
    if tokens:
        features[TEXT_EMBEDDING if pixels else EMBEDDING] = encoder.encode_tokens(np.stack(tokens))
    return features
