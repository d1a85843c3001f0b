"""The shards of a plan that are not there yet: read -> decode -> encode -> write. Knows nothing about listing.

Threads read and decode ahead of the model; what they hold is bounded by a look-ahead and a budget of decoded bytes.
Each entry of a shard becomes a row or a failure row.
"""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ..encoder import Encoder, unit_vectors
from ..errors import TooManyFailuresError
from ..jobs.embed import EmbedJob, Progress
from ..jobs.options import DECODE_SECONDS
from ..parallel import ByteBudget, available_cores, map_ahead, read_ahead
from ..records import ContainerPart, Failure, Item, Member, Pixels, Row, Shard, Tokens
from ..sources.remote.prefetch import prefetch
from ..store.parts import EMBEDDING, FAILURE_SCHEMA, FAILURES, PART, TEXT_EMBEDDING, PartWriter, read_standing
from ..text.tokens import Tokenizing
from .decode import Decoding
from .isolate import IsolatedDecoder

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Sequence

    from ..sources.source import Source
    from ..store.lock import Lock
    from ..store.plan import Plan
    from ..store.writer import StoreWriter

ROW_GROUP = 10_000  # rows that wait to be written; a larger shard has several such groups
READ_AHEAD_BYTES = 100_000_000  # of an archive, encoded
TEXTS_AT_A_TIME = 1024  # of which the engine runs those of like lengths together
MAX_MESSAGE = 200  # characters of a failure that ends the run


class Run:
    """The shards of a plan that are not there yet, on their way to be."""

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
        self._decoding = Decoding(source, encoder.settings, job.limits, job.policies, job.hashes, encoder.decode)
        self._tokenizing = Tokenizing(job.kind, encoder.context_length, job.long_text, encoder.tokenizer)
        self._plan = plan
        self._store = store
        self._lock = lock
        self._progress = progress
        self._summaries = plan.summaries()

    def write(self) -> int:
        """Write them, and tell how many entries stood already."""
        done = {
            index
            for index, summary in enumerate(self._summaries)
            if self._store.fingerprint(index) == summary.fingerprint
        }
        kept = sum(summary.kept for index, summary in enumerate(self._summaries) if index not in done)
        written_rows, failed = self._store.counts(done)
        read = resumed = written_rows + failed + kept
        todo = [index for index in range(self._plan.shards) if index not in done]
        if todo:
            self._store.reopen()
        part: _Part | None = None
        with closing(self._outcomes(todo)) as outcomes, ExitStack() as files:
            for outcome in outcomes:
                if isinstance(outcome, Shard):
                    part = _Part(self._encoder, self._job, files.enter_context(self._store.part(outcome)), outcome)
                    if outcome.kept:
                        path = self._store.path / FAILURES / PART.format(outcome.index)
                        standing = read_standing(path, FAILURE_SCHEMA, ["id"])
                        part.failed = sum(own_id in outcome.kept for own_id in standing["id"].to_pylist())
                elif part is None:
                    raise AssertionError("a shard comes before its entries")
                elif isinstance(outcome, _End):
                    part.finish(outcome.ignored)
                    self._check_failures(failed, part, read)
                    self._lock.check()
                    files.close()
                    done.add(part.shard.index)
                    failed += part.failed
                else:
                    part.add(outcome)
                    read += 1
                    if self._plan.total is not None:
                        self._check_failures(failed, part, self._plan.total)
                    if self._progress:
                        total, shards = self._plan.total, self._plan.shards
                        self._progress(Progress(read, total, failed + part.failed, resumed, None, len(done), shards))
        return resumed

    def _check_failures(self, failed: int, part: _Part, of: int) -> None:
        """Raise TooManyFailuresError where more failed than the job allows of so many."""
        allowed = self._job.allowed_failures(self._plan.total or of)
        most = self._job.max_failures or "0"  # as with on_failure="stop"
        if failed + part.failed <= allowed or part.last_failure is None:
            return
        last = part.last_failure
        raise TooManyFailuresError(
            self._job.output,
            f"more than {allowed:,} of {self._plan.total or of:,} {self._job.kind} failed",
            f"at most {most} to; the last was {last.id!r} ({last.message[:MAX_MESSAGE]})",
            "Repair them, or raise `max_failures` and run again: finished parts are kept.",
        )

    def _outcomes(self, indices: Iterable[int]) -> Generator[_Outcome]:
        """Each shard, what became of each of its entries, in order, and its end.

        Threads run ahead across the borders of shards.
        """
        job = self._job
        budget = ByteBudget(job.decode_budget_bytes)
        workers = job.workers or available_cores()
        seconds = job.max_seconds or DECODE_SECONDS
        isolated = IsolatedDecoder(self._decoding, seconds, budget.reserve) if job.isolate else None

        def decoded(entry: Item | Member) -> Sequence[Pixels | Failure]:
            return isolated(entry) if isolated else self._decoding(entry, budget.reserve)

        def outcomes(entry: Item | Member | Failure | Shard | _End) -> Sequence[_Outcome]:
            return prepared(entry, decoded, self._tokenizing) if isinstance(entry, (Item, Member)) else [entry]

        stop = isolated.close if isolated else (lambda: None)
        # Of a file's frames there may be many, so no more files are ahead than are being decoded.
        batch = TEXTS_AT_A_TIME if job.kind == "texts" else self._encoder.batch_size
        ahead = workers if job.frames == "all" else 2 * batch + workers
        listed = self._entries(indices)
        entries: Generator[Item | Member | Failure | Shard | _End] = (
            listed if job.kind == "texts" else prefetch(listed, job.max_bytes, job.readers)
        )
        with closing(entries), closing(map_ahead(outcomes, entries, workers=workers, ahead=ahead, stop=stop)) as found:
            for several in found:
                yield from several

    def _entries(self, indices: Iterable[int]) -> Generator[Item | Member | Failure | Shard | _End]:
        for index in indices:
            shard = self._plan.shard(index)
            ignored: Counter[str] = Counter()
            yield shard
            for entry in shard.entries:
                if isinstance(entry, ContainerPart):
                    members = self._decoding.source.members(entry, self._job.max_bytes, ignored)
                    with closing(read_ahead(members, _size_of, READ_AHEAD_BYTES)) as stream:
                        yield from stream
                elif entry.id not in shard.kept:
                    yield entry
            yield _End(ignored)


@dataclass(frozen=True)
class _End:
    """What comes behind the last entry of a shard."""

    ignored: Counter[str]  # what was passed over in it


_Outcome = Pixels | Tokens | Failure | Shard | _End


def _size_of(entry: Item | Member | Failure) -> int:
    return len(entry.data) if isinstance(entry, Member) else 0


class _Part:
    """A shard on its way to be written: what is decoded waits for a batch, its vectors for a row group."""

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
        names = [EMBEDDING, TEXT_EMBEDDING] if self._job.kind == "pairs" else [EMBEDDING]
        self._vectors = {name: [np.empty((0, self._encoder.dim), np.float32)] for name in names}

    def add(self, outcome: Pixels | Tokens | Failure) -> None:
        """Take an entry's outcome; a full batch is encoded, and a full row group written."""
        if isinstance(outcome, Failure):
            self._fail(self._taken, outcome)
        else:
            self._waiting.append((self._taken, outcome))
        self._taken += 1
        if len(self._waiting) >= (TEXTS_AT_A_TIME if self._job.kind == "texts" else self._encoder.batch_size):
            self._encode()
        # What an update keeps is put in its place at the end.
        if len(self._rows) + len(self._failures) >= ROW_GROUP and not self.shard.kept:
            self._write()

    def finish(self, ignored: Counter[str]) -> None:
        """Encode and write what waits."""
        self._write()
        if ignored:
            self._writer.ignored(ignored)

    def _fail(self, place: int, failure: Failure) -> None:
        self._failures.append((place, failure))
        self.failed += 1
        self.last_failure = failure

    def _write(self) -> None:
        self._encode()
        failures = [failure for _, failure in sorted(self._failures, key=lambda found: found[0])]
        vectors = {name: np.concatenate(blocks) for name, blocks in self._vectors.items()}  # (N, D) each
        self._writer.add(self._rows, vectors, failures)
        self._clear()

    def _encode(self) -> None:
        if not self._waiting:
            return
        features = features_of([outcome for _, outcome in self._waiting], self._encoder)  # (B, D) each
        usable = np.ones(len(self._waiting), np.bool_)
        norms: dict[str, np.ndarray] = {}
        for name, block in features.items():
            with np.errstate(over="ignore"):  # what overflows is infinite, and that is looked for
                norms[name] = np.linalg.norm(block, axis=1)  # (B,)
                stored = block if self._job.normalize else block.astype(self._job.dtype)  # (B, D)
            usable &= np.isfinite(norms[name]) & (norms[name] > 0) & np.isfinite(stored).all(axis=1)
        for number, (place, outcome) in enumerate(self._waiting):
            row = outcome.row
            if usable[number]:
                self._rows.append(row)
            else:
                found = " and ".join(str(of[number]) for of in norms.values())
                message = (
                    f"the model gave a vector of norm {found}, expected one above 0 that {self._job.dtype} can hold. "
                    "Check the weights."
                )
                self._fail(place, Failure(row.id, row.path, "encode", "ValueError", message))
        for name, block in features.items():
            self._vectors[name].append(unit_vectors(block[usable]) if self._job.normalize else block[usable])
        self._waiting = []


def prepared(
    entry: Item | Member, decoded: Callable[[Item | Member], Sequence[Pixels | Failure]], tokenizing: Tokenizing
) -> Sequence[Pixels | Tokens | Failure]:
    """What the model reads of an entry: of its image, of its text, or of both; or the reason why there is nothing."""
    if tokenizing.kind == "images":
        return decoded(entry)
    item = entry.item if isinstance(entry, Member) else entry
    tokens = tokenizing(item)
    if isinstance(tokens, Failure):
        return [tokens]
    if tokenizing.kind == "texts":
        return [Tokens(Row(item.id, item.path, 0, 0, "", item.size_bytes, values=item.values), tokens)]
    return [replace(one, tokens=tokens) if isinstance(one, Pixels) else one for one in decoded(entry)]


def features_of(outcomes: Sequence[Pixels | Tokens], encoder: Encoder) -> dict[str, np.ndarray]:
    """What the model makes of a batch, by the columns it is for. Shapes: float32 (B, D) each."""
    pixels = [outcome.array for outcome in outcomes if isinstance(outcome, Pixels)]
    tokens = [outcome.tokens for outcome in outcomes if outcome.tokens is not None]
    found: dict[str, np.ndarray] = {}
    if pixels:
        found[EMBEDDING] = encoder.encode_pixels(np.stack(pixels))
    if tokens:
        found[TEXT_EMBEDDING if pixels else EMBEDDING] = encoder.encode_tokens(np.stack(tokens))
    return found
