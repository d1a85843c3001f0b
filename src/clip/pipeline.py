"""embed(job): read -> decode -> encode -> write, shard by shard. Knows nothing about the command line.

Threads read and decode ahead of the model; what they hold is bounded by a look-ahead and a budget of decoded bytes.
Each entry of the source becomes a row or a failure row, so that read = written + failed.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import warnings
from collections import Counter
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import clip
from clip.decoders import Decoding, IsolatedDecoder
from clip.encoder import Encoder, unit_vectors
from clip.engine import limit_threads
from clip.errors import ClipError, InputError, StoreError, TooManyFailuresError
from clip.items import Failure, Item, Member, Pack, Pixels, Row, Shard, utf8_path
from clip.jobs import DECODE_SECONDS, EmbedJob, EmbedReport, Listing, Progress
from clip.lock import Lock, locked
from clip.parts import FAILURE_SCHEMA, FAILURES, PART, PartWriter, read_standing
from clip.pixels import PREPROCESS_ID
from clip.plan import Plan, ids_hashed, interrupted_listing, members_of, read_plan, remove_plan, write_plan
from clip.sources import Source
from clip.store import StoreWriter, check_room
from clip.threads import ByteBudget, available_cores, map_ahead, read_ahead
from clip.update import updated_plan
from clip.whole_files import written

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Sequence


ROW_GROUP = 10_000  # rows that wait to be written; a larger shard has several such groups
READ_AHEAD_BYTES = 100_000_000  # of an archive, encoded
MAX_MESSAGE = 200  # characters of a failure that ends the run
RECORDED_VERSIONS = ("torch", "pillow", "numpy", "pyarrow")  # what a vector or its file can depend on


def embed(job: EmbedJob, progress: Callable[[Progress], None] | None = None) -> EmbedReport:
    """Turn pictures into Parquet files of vectors; `progress` is told while they are listed and after each.

    An output that holds an interrupted run of the same job is gone on with: shards that are written stay. One whose
    input has changed since is brought up to date if the job says so.

    Raises:  InputError for an input that cannot be used, StoreMismatchError for an output that holds another run and
             StoreBusyError for one where another job is at work, before any picture; what Encoder raises; StoreError
             for an output that cannot be written; TooManyFailuresError, with finished parts kept.
    """
    started = time.monotonic()
    output = Path(job.output)
    check_room(output)
    source = source_of(job)  # also refuses what is not there, before weights are read
    with limit_threads(job.threads or available_cores()), warnings.catch_warnings():
        # What Pillow has to say about a picture is in its row, or in its failure row.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        encoder = Encoder(
            job.model,
            device=job.device,
            precision=job.precision,
            batch_size=job.batch_size or "auto",
            threads=job.threads,
            untrained=job.untrained,
        )
        with written(output):
            output.mkdir(parents=True, exist_ok=True)
        with locked(output) as lock:
            store = StoreWriter(output, _manifest(job, encoder), overwrite=job.overwrite)
            plan, removed = _planned(job, source, store, lock, progress)
            resumed = _Run(job, encoder, source, plan, store, lock, progress).write()
            rows, failed = store.counts(range(plan.shards))
            if not plan.packs and job.frames == "first" and rows + failed != plan.entries:
                raise StoreError(
                    f"{output}: holds {rows:,} rows and {failed:,} failures, expected {plan.entries:,} together. "
                    "Run again with --overwrite, and report this."
                )
            lock.check()
            ignored = dict(Counter(plan.ignored) + store.ignored(range(plan.shards)))
            counts = {"read": rows + failed, "written": rows, "failed": failed, "ignored": ignored}
            store.finish({"counts": counts})
    return EmbedReport(output, rows + failed, rows, failed, ignored, time.monotonic() - started, resumed, removed)


def source_of(job: EmbedJob) -> Source:
    """What the job names as input. Raises: InputError for what is not there."""
    return Source(job.inputs, job.globs, job.column, job.id_column, job.root)


def count(job: EmbedJob) -> Listing:
    """What the job would read, and what it would pass over. Decodes nothing.

    Raises:  InputError for an input that cannot be used, StoreMismatchError for an output that is not ours.
    """
    check_room(Path(job.output))
    ignored: Counter[str] = Counter()
    told: list[Progress] = []
    for _ in _told(source_of(job).shards(job.shard_size, ignored, job.limit), ignored, told.append):
        pass
    return told[-1].listing or Listing()


def _planned(
    job: EmbedJob, source: Source, store: StoreWriter, lock: Lock, progress: Callable[[Progress], None] | None
) -> tuple[Plan, int]:
    """What is to be done, in shards, standing in the output; and how many entries an update drops."""
    standing = None if store.is_new else read_plan(store.path)
    removed = 0
    ignored: Counter[str] = Counter()
    of = json.dumps([[os.path.abspath(name) for name in job.inputs], job.globs, job.column, job.id_column, job.root])  # noqa: PTH100
    # What a listing that was killed had found is taken over only where no vector depends on it yet.
    known = interrupted_listing(store.path, of) if store.is_new and not job.overwrite else iter(())
    shards = source.shards(job.shard_size, ignored, job.limit, known, store.path)
    hashed: list[np.ndarray] = []
    plan = write_plan(store.path, ids_hashed(_told(shards, ignored, progress), hashed), ignored, of=of)
    if job.duplicate_ids == "error" and (found := plan.repeated(hashed)) is not None:
        plan.discard()
        raise InputError(
            f"{found[0].id!r}: stands for {found[0].path} and for {found[1].path}, expected one of each id. "
            "Leave one out, name an --id-column, or pass --duplicate-ids keep."
        )
    if not (job.update or store.is_of(plan.fingerprint)):
        plan.discard()
    elif standing is not None and (job.update or standing.outlines() != plan.outlines()):
        content_hash = (lambda item: _content_hash(source, item, job.max_bytes)) if job.update and job.hashes else None
        plan, removed = updated_plan(store, standing, plan, job.shard_size, retry=job.update, content_hash=content_hash)
    lock.check()
    if job.overwrite:
        remove_plan(store.path)  # first: no listing of another run may describe the parts of this one
    store.begin(plan.fingerprint, update=job.update)
    plan = plan.adopt()
    store.remove_beyond(plan.shards)
    return plan, removed


def _told(
    shards: Iterable[Shard], ignored: Counter[str], progress: Callable[[Progress], None] | None
) -> Iterator[Shard]:
    """The shards; how many pictures they have is told after each, and what they are after the last."""
    pictures = archives = 0
    example = ""
    for shard in shards:
        counts = [members_of(entry) for entry in shard.entries]
        pictures, archives = pictures + sum(filter(None, counts)), archives + counts.count(None)
        example = example or f"{shard.entries[0].id!r} ({utf8_path(shard.entries[0].path)})"
        if progress:
            progress(Progress(0, 0, 0, listing=Listing(pictures, archives)))
        yield shard
    if progress:
        progress(Progress(0, 0, 0, listing=Listing(pictures, archives, example, dict(ignored))))


def _content_hash(source: Source, item: Item, max_bytes: int) -> str | None:
    try:
        return hashlib.sha256(source.read(item, max_bytes)).hexdigest()
    except (OSError, ClipError):
        return None  # it is done again, and what is wrong with it becomes its failure row


class _Run:
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
        self._decoding = Decoding(source, encoder.settings, job.guards, job.policies, job.hashes)
        self._plan = plan
        self._store = store
        self._lock = lock
        self._progress = progress
        self._outlines = plan.outlines()

    def write(self) -> int:
        """Write them, and tell how many entries stood already."""
        done = {index for index, told in enumerate(self._outlines) if self._store.mark(index) == told.mark}
        kept = sum(told.kept for index, told in enumerate(self._outlines) if index not in done)
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
            f"{self._job.output}: more than {allowed:,} of {self._plan.total or of:,} pictures failed, expected at "
            f"most {most} to; the last was {last.id!r} ({last.message[:MAX_MESSAGE]}). Repair them, or "
            "raise --max-failures and run again: finished parts are kept."
        )

    def _outcomes(self, indices: Iterable[int]) -> Generator[Pixels | Failure | Shard | _End]:
        """Each shard, what became of each of its entries, in order, and its end.

        Threads run ahead across the borders of shards.
        """
        job = self._job
        budget = ByteBudget(job.decode_budget_bytes)
        workers = job.workers or available_cores()
        seconds = job.max_seconds or DECODE_SECONDS
        isolated = IsolatedDecoder(self._decoding, seconds, budget.reserve) if job.isolate else None

        def outcomes(entry: Item | Member | Failure | Shard | _End) -> Sequence[Pixels | Failure | Shard | _End]:
            if not isinstance(entry, (Item, Member)):
                return [entry]
            return isolated(entry) if isolated else self._decoding(entry, budget.reserve)

        stop = isolated.close if isolated else (lambda: None)
        # Of a file's frames there may be many, so no more files are ahead than are being decoded.
        ahead = workers if job.frames == "all" else 2 * self._encoder.batch_size + workers
        with closing(map_ahead(outcomes, self._entries(indices), workers=workers, ahead=ahead, stop=stop)) as found:
            for several in found:
                yield from several

    def _entries(self, indices: Iterable[int]) -> Iterator[Item | Member | Failure | Shard | _End]:
        for index in indices:
            shard = self._plan.shard(index)
            ignored: Counter[str] = Counter()
            yield shard
            for entry in shard.entries:
                if isinstance(entry, Pack):
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


def _size_of(entry: Item | Member | Failure) -> int:
    return len(entry.data) if isinstance(entry, Member) else 0


class _Part:
    """A shard on its way to be written: decoded pictures wait for a batch, their vectors for a row group."""

    def __init__(self, encoder: Encoder, job: EmbedJob, writer: PartWriter, shard: Shard) -> None:
        self.shard = shard
        self.failed = 0
        self.last_failure: Failure | None = None
        self._encoder = encoder
        self._job = job
        self._writer = writer
        self._taken = 0
        self._waiting: list[tuple[int, Pixels]] = []  # with their places in the shard
        self._clear()

    def _clear(self) -> None:
        self._rows: list[Row] = []
        self._failures: list[tuple[int, Failure]] = []  # with their places in the shard
        self._vectors = [np.empty((0, self._encoder.dim), np.float32)]

    def add(self, outcome: Pixels | Failure) -> None:
        """Take an entry's outcome; a full batch is encoded, and a full row group written."""
        if isinstance(outcome, Failure):
            self._fail(self._taken, outcome)
        else:
            self._waiting.append((self._taken, outcome))
        self._taken += 1
        if len(self._waiting) >= self._encoder.batch_size:
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
        self._writer.add(self._rows, np.concatenate(self._vectors), failures)  # (N, D)
        self._clear()

    def _encode(self) -> None:
        if not self._waiting:
            return
        features = self._encoder.encode_pixels(np.stack([pixels.array for _, pixels in self._waiting]))  # (B, D)
        with np.errstate(over="ignore"):  # what overflows is infinite, and that is looked for
            norms = np.linalg.norm(features, axis=1)  # (B,)
            stored = features if self._job.normalize else features.astype(self._job.dtype)  # (B, D)
        usable = np.isfinite(norms) & (norms > 0) & np.isfinite(stored).all(axis=1)
        for (place, pixels), norm, good in zip(self._waiting, norms, usable, strict=True):
            if good:
                self._rows.append(pixels.row)
            else:
                message = (
                    f"the model gave a vector of norm {norm}, expected one above 0 that {self._job.dtype} can hold. "
                    "Check the weights."
                )
                self._fail(place, Failure(pixels.row.id, pixels.row.path, "encode", "ValueError", message))
        features = features[usable]
        self._vectors.append(unit_vectors(features) if self._job.normalize else features)
        self._waiting = []


def _manifest(job: EmbedJob, encoder: Encoder) -> dict[str, Any]:
    """All that a vector depends on, and where it came from."""
    versions = {name: metadata.version(name) for name in RECORDED_VERSIONS}
    with suppress(metadata.PackageNotFoundError):
        versions["pi-heif"] = metadata.version("pi-heif")  # which reads HEIC files where it is installed
    return {
        "model": encoder.model_name,
        "weights_sha256": encoder.weights_sha256,
        "weights_source": encoder.source,
        "architecture": encoder.architecture,
        "preprocess": f"{PREPROCESS_ID}/pillow-{versions['pillow']}",
        "preprocess_settings": asdict(encoder.settings),
        "precision": encoder.precision,
        "computed_in": encoder.computed_in,
        "engine": encoder.backend,
        "decode": "exact",
        "policies": asdict(job.policies),
        "guards": asdict(job.guards),
        "normalised": job.normalize,
        "dtype": job.dtype,
        "hashes": job.hashes,
        "dim": encoder.dim,
        "device": str(encoder.device),
        "versions": {"clip-turbo": clip.__version__, **versions},
        "source": list(job.inputs),
        "globs": list(job.globs),
        "column": job.column,
        "id_column": job.id_column,
        "root": job.root,
        "duplicate_ids": job.duplicate_ids,
        "limit": job.limit,
        "shard_size": job.shard_size,
        "input_fingerprint": None,  # known when all is listed
        "counts": None,  # known when the run is over
    }
