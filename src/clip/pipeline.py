"""embed(job): read -> decode -> encode -> write, shard by shard. Knows nothing about the command line.

Threads read and decode ahead of the model; what they hold is bounded by a look-ahead and a budget of decoded bytes.
Each entry of the source becomes a row or a failure row, so that read = written + failed.
"""

from __future__ import annotations

import hashlib
import time
import warnings
from collections import Counter
from contextlib import closing
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import clip
from clip.decoders import Decoding, IsolatedDecoder
from clip.encoder import Encoder, unit_vectors
from clip.engine import limit_threads
from clip.errors import ClipError, TooManyFailuresError
from clip.items import Failure, Item, Pixels, Policies, Row, Shard
from clip.jobs import DECODE_SECONDS, EmbedJob, EmbedReport, Progress
from clip.lock import Lock, locked
from clip.pixels import PREPROCESS_ID
from clip.plan import Plan, interrupted_listing, read_plan, write_plan
from clip.sources import FolderSource
from clip.store import StoreWriter, check_room
from clip.threads import ByteBudget, available_cores, map_ahead
from clip.update import updated_plan
from clip.whole_files import written

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

    from clip.items import Entry

MAX_MESSAGE = 200  # characters of a failure that ends the run
RECORDED_VERSIONS = ("torch", "pillow", "numpy", "pyarrow")  # what a vector or its file can depend on


def embed(job: EmbedJob, progress: Callable[[Progress], None] | None = None) -> EmbedReport:
    """Turn a folder of pictures into Parquet files of vectors; `progress` is told after each picture.

    An output that holds an interrupted run of the same job is gone on with: shards that are written stay. One whose
    input has changed since is brought up to date if the job says so.

    Raises:  InputError for a source that is no folder, StoreMismatchError for an output that holds another run and
             StoreBusyError for one where another job is at work, before any work; what Encoder raises; StoreError for
             an output that cannot be written; TooManyFailuresError, with finished parts kept.
    """
    started = time.monotonic()
    output = Path(job.output)
    check_room(output)
    source = FolderSource(str(job.source), job.globs)  # also refuses what is none, before weights are read
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
            plan, removed = _planned(job, source, store, progress)
            resumed = _Run(job, encoder, source, plan, store, lock, progress).write()
            rows, failed = store.counts(range(plan.shards))
            counts = {"read": plan.entries, "written": rows, "failed": failed, "ignored": plan.ignored}
            store.finish({"counts": counts})
    seconds = time.monotonic() - started
    return EmbedReport(output, plan.entries, rows, failed, plan.ignored, seconds, resumed, removed)


def count(job: EmbedJob) -> tuple[int, dict[str, int]]:
    """How many entries the job would read, and what it would pass over, by reason. Decodes nothing.

    Raises:  InputError for a source that is no folder, StoreMismatchError for an output that is not ours.
    """
    check_room(Path(job.output))
    ignored: Counter[str] = Counter()
    shards = FolderSource(str(job.source), job.globs).shards(job.shard_size, ignored, job.limit)
    return sum(len(shard.entries) for shard in shards), dict(ignored)


def _planned(
    job: EmbedJob, source: FolderSource, store: StoreWriter, progress: Callable[[Progress], None] | None
) -> tuple[Plan, int]:
    """What is to be done, in shards, standing in the output; and how many entries an update drops."""
    standing = None if job.overwrite else read_plan(store.path)
    removed = 0
    ignored: Counter[str] = Counter()
    # What a listing that was killed had found is taken over only where no vector depends on it yet.
    known = interrupted_listing(store.path) if store.is_new else iter(())
    shards = source.shards(job.shard_size, ignored, job.limit, known, store.path)
    plan = write_plan(store.path, _told(shards, progress), ignored)
    if not (job.update or store.is_of(plan.fingerprint)):
        plan.discard()
    elif standing is not None and (job.update or standing.outlines() != plan.outlines()):
        content_hash = (lambda item: _content_hash(source, item, job.max_bytes)) if job.hashes else None
        plan, removed = updated_plan(store, standing, plan, job.shard_size, content_hash)
    store.begin(plan.fingerprint, update=job.update)
    return plan.adopt(), removed


def _told(shards: Iterable[Shard], progress: Callable[[Progress], None] | None) -> Iterator[Shard]:
    listed = 0
    for shard in shards:
        listed += len(shard.entries)
        if progress:
            progress(Progress(0, 0, 0, listed=listed))
        yield shard


def _content_hash(source: FolderSource, item: Item, max_bytes: int) -> str | None:
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
        source: FolderSource,
        plan: Plan,
        store: StoreWriter,
        lock: Lock,
        progress: Callable[[Progress], None] | None,
    ) -> None:
        self._job = job
        self._encoder = encoder
        self._decoding = Decoding(source, encoder.settings, job.guards, Policies(), job.hashes)
        self._plan = plan
        self._store = store
        self._lock = lock
        self._progress = progress
        self._outlines = plan.outlines()

    def write(self) -> int:
        """Write them, and tell how many entries stood already."""
        done = {index for index, told in enumerate(self._outlines) if self._store.mark(index) == told.mark}
        resumed = sum(told.entries if index in done else told.kept for index, told in enumerate(self._outlines))
        failed = self._store.counts(done)[1]
        read = resumed
        allowed = self._job.allowed_failures(self._plan.entries)
        part = _Part(self._encoder, self._job)
        with closing(self._outcomes(index for index in range(self._plan.shards) if index not in done)) as outcomes:
            for outcome in outcomes:
                if isinstance(outcome, Shard):  # its last entry has come
                    part.encode()
                    self._check_failures(failed, part, allowed)
                    self._lock.check()
                    self._store.commit(outcome, part.rows, part.vectors(), part.failures)
                    failed += len(part.failures)
                    part = _Part(self._encoder, self._job)
                else:
                    part.add(outcome)
                    read += 1
                    self._check_failures(failed, part, allowed)
                    if self._progress:
                        self._progress(Progress(read, self._plan.entries, failed + len(part.failures), resumed))
        return resumed

    def _check_failures(self, failed: int, part: _Part, allowed: int) -> None:
        if failed + len(part.failures) <= allowed or not part.failures:
            return
        last = part.failures[-1]
        raise TooManyFailuresError(
            f"{self._job.output}: more than {allowed:,} of {self._plan.entries:,} pictures failed, expected at most "
            f"{self._job.max_failures} to; the last was {last.id!r} ({last.message[:MAX_MESSAGE]}). Repair them, or "
            "raise --max-failures and run again: finished parts are kept."
        )

    def _outcomes(self, indices: Iterable[int]) -> Generator[Pixels | Failure | Shard]:
        """Each entry of the shards decoded, in order, and behind the last one the shard itself.

        Threads run ahead across the borders of shards.
        """
        job = self._job
        budget = ByteBudget(job.decode_budget_bytes)
        workers = job.workers or available_cores()
        seconds = job.max_seconds or DECODE_SECONDS
        isolated = IsolatedDecoder(self._decoding, seconds, budget.reserve) if job.isolate else None

        def outcomes(entry: Entry | Shard) -> Sequence[Pixels | Failure | Shard]:
            if not isinstance(entry, Item):
                return [entry]
            return isolated(entry) if isolated else self._decoding(entry, budget.reserve)

        stop = isolated.close if isolated else (lambda: None)
        ahead = 2 * self._encoder.batch_size + workers
        with closing(map_ahead(outcomes, self._entries(indices), workers=workers, ahead=ahead, stop=stop)) as found:
            for several in found:
                yield from several

    def _entries(self, indices: Iterable[int]) -> Iterator[Entry | Shard]:
        for index in indices:
            shard = self._plan.shard(index)
            yield from (entry for entry in shard.entries if entry.id not in shard.kept)
            yield shard


class _Part:
    """A shard on its way to be written: decoded pictures wait for a batch, their vectors for the shard's end."""

    def __init__(self, encoder: Encoder, job: EmbedJob) -> None:
        self.rows: list[Row] = []
        self.failures: list[Failure] = []
        self._encoder = encoder
        self._job = job
        self._waiting: list[Pixels] = []
        self._vectors = [np.empty((0, encoder.dim), np.float32)]

    def add(self, outcome: Pixels | Failure) -> None:
        """Take an entry's outcome; a full batch is encoded."""
        if isinstance(outcome, Failure):
            self.failures.append(outcome)
            return
        self._waiting.append(outcome)
        if len(self._waiting) >= self._encoder.batch_size:
            self.encode()

    def vectors(self) -> np.ndarray:
        """The vectors of `rows`. Shapes: float32 (N, D)."""
        return np.concatenate(self._vectors)

    def encode(self) -> None:
        """Encode what waits."""
        if not self._waiting:
            return
        features = self._encoder.encode_pixels(np.stack([pixels.array for pixels in self._waiting]))  # (B, D)
        with np.errstate(over="ignore"):  # what overflows is infinite, and that is looked for
            norms = np.linalg.norm(features, axis=1)  # (B,)
            stored = features if self._job.normalize else features.astype(self._job.dtype)  # (B, D)
        usable = np.isfinite(norms) & (norms > 0) & np.isfinite(stored).all(axis=1)
        for pixels, norm, good in zip(self._waiting, norms, usable, strict=True):
            if good:
                self.rows.append(pixels.row)
            else:
                message = (
                    f"the model gave a vector of norm {norm}, expected one above 0 that {self._job.dtype} can hold. "
                    "Check the weights."
                )
                self.failures.append(Failure(pixels.row.id, pixels.row.path, "encode", "ValueError", message))
        features = features[usable]
        self._vectors.append(unit_vectors(features) if self._job.normalize else features)
        self._waiting = []


def _manifest(job: EmbedJob, encoder: Encoder) -> dict[str, Any]:
    """All that a vector depends on, and where it came from."""
    versions = {name: metadata.version(name) for name in RECORDED_VERSIONS}
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
        "orientation": "as stored",
        "guards": asdict(job.guards),
        "normalised": job.normalize,
        "dtype": job.dtype,
        "hashes": job.hashes,
        "dim": encoder.dim,
        "device": str(encoder.device),
        "versions": {"clip-turbo": clip.__version__, **versions},
        "source": str(job.source),
        "globs": list(job.globs),
        "limit": job.limit,
        "shard_size": job.shard_size,
        "input_fingerprint": None,  # known when all is listed
        "counts": None,  # known when the run is over
    }
