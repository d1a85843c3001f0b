"""embed(job): read -> decode -> encode -> write, shard by shard. Knows nothing about the command line.

Threads read and decode ahead of the model; what they hold is bounded by a look-ahead and a budget of decoded bytes.
Each entry of the source becomes a row or a failure row, so that read = written + failed.
"""

from __future__ import annotations

import time
import warnings
from collections import Counter
from contextlib import closing, nullcontext
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import clip
from clip.encoder import Encoder, unit_vectors
from clip.engine import limit_threads
from clip.errors import ClipError, StoreMismatchError, TooManyFailuresError
from clip.items import Failure, Guards, Item, Pixels, PreprocessSettings, Row, Shard
from clip.jobs import EmbedJob, EmbedReport, Progress
from clip.lock import Lock, locked
from clip.pixels import PREPROCESS_ID, decode
from clip.plan import Plan, write_plan
from clip.sources import FolderSource
from clip.store import StoreWriter, check_room
from clip.threads import ByteBudget, available_cores, map_ahead
from clip.whole_files import written

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable
    from contextlib import AbstractContextManager

MAX_MESSAGE = 200  # characters of a failure that ends the run
RECORDED_VERSIONS = ("torch", "pillow", "numpy", "pyarrow")  # what a vector or its file can depend on


def embed(job: EmbedJob, progress: Callable[[Progress], None] | None = None) -> EmbedReport:
    """Turn a folder of pictures into Parquet files of vectors; `progress` is told after each picture.

    An output that holds an interrupted run of the same job is gone on with: shards that are written stay.

    Raises:  InputError for a source that is no folder, StoreMismatchError for an output that holds another run and
             StoreBusyError for one where another job is at work, before any work; what Encoder raises; StoreError for
             an output that cannot be written.
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
            ignored: Counter[str] = Counter()
            plan = write_plan(output, source.shards(job.shard_size, ignored, job.limit), ignored)
            try:
                store.begin(plan.fingerprint)
            except StoreMismatchError:
                plan.discard()
                raise
            plan = plan.adopt()
            resumed = _run(job, encoder, source, plan, store, lock, progress)
            rows, failed = store.counts(range(plan.shards))
            counts = {"read": plan.entries, "written": rows, "failed": failed, "ignored": plan.ignored}
            store.finish({"counts": counts})
    return EmbedReport(output, plan.entries, rows, failed, plan.ignored, time.monotonic() - started, resumed)


def count(job: EmbedJob) -> tuple[int, dict[str, int]]:
    """How many entries the job would read, and what it would pass over, by reason. Decodes nothing.

    Raises:  InputError for a source that is no folder, StoreMismatchError for an output that is not ours.
    """
    check_room(Path(job.output))
    ignored: Counter[str] = Counter()
    shards = FolderSource(str(job.source), job.globs).shards(job.shard_size, ignored, job.limit)
    return sum(len(shard.entries) for shard in shards), dict(ignored)


def _run(
    job: EmbedJob,
    encoder: Encoder,
    source: FolderSource,
    plan: Plan,
    store: StoreWriter,
    lock: Lock,
    progress: Callable[[Progress], None] | None,
) -> int:
    """Write the shards that are not there yet, and tell how many entries those that are there have."""
    done = store.done() & frozenset(range(plan.shards))
    earlier, failed = store.counts(done)
    read = resumed = earlier + failed
    shards = (plan.shard(index) for index in range(plan.shards) if index not in done)
    allowed = job.allowed_failures(plan.entries)
    part: _Part | None = None
    with closing(_outcomes(job, encoder, source, shards)) as outcomes:
        for shard, outcome in outcomes:
            part = part or _Part(len(shard.entries), encoder, job)
            part.add(outcome)
            read += 1
            if failed + len(part.failures) > allowed:
                raise _too_many(job, plan, part.failures[-1], allowed)
            if progress:
                progress(Progress(read, plan.entries, failed + len(part.failures), resumed))
            if part.complete:
                lock.check()
                store.commit(shard.index, part.rows, part.vectors(), part.failures)
                failed += len(part.failures)
                part = None
    return resumed


def _too_many(job: EmbedJob, plan: Plan, last: Failure, allowed: int) -> TooManyFailuresError:
    return TooManyFailuresError(
        f"{job.output}: more than {allowed:,} of {plan.entries:,} pictures failed, expected at most {job.max_failures} "
        f"to; the last was {last.id!r} ({last.message[:MAX_MESSAGE]}). Repair them, or raise --max-failures and run "
        "again: finished parts are kept."
    )


def _outcomes(
    job: EmbedJob, encoder: Encoder, source: FolderSource, shards: Iterable[Shard]
) -> Generator[tuple[Shard, Pixels | Failure]]:
    """Each entry of the shards decoded, in order, with its shard; threads run ahead across the borders of shards."""
    budget = ByteBudget(job.decode_budget_bytes)
    workers, guards = job.workers or available_cores(), job.guards

    def outcome(numbered: tuple[Shard, Item | Failure]) -> tuple[Shard, Pixels | Failure]:
        shard, entry = numbered
        if isinstance(entry, Failure):
            return shard, entry
        return shard, decode_item(source, entry, encoder.settings, guards, budget.reserve)

    entries = ((shard, entry) for shard in shards for entry in shard.entries)
    return map_ahead(outcome, entries, workers=workers, ahead=2 * encoder.batch_size + workers)


def decode_item(
    source: FolderSource,
    item: Item,
    settings: PreprocessSettings,
    guards: Guards,
    reserve: Callable[[int], AbstractContextManager[None]] = nullcontext,
) -> Pixels | Failure:
    """One entry of a source -> one model input, or the reason there is none. `reserve` is `preprocess.decode`'s."""
    try:
        data = source.read(item, guards.max_bytes)
    except (OSError, ClipError) as exc:
        return Failure(item.id, item.path, "read", type(exc).__name__, str(exc))
    return decode(item, data, settings, reserve, guards)


class _Part:
    """A shard on its way to be written: decoded pictures wait for a batch, their vectors for the shard's end."""

    def __init__(self, entries: int, encoder: Encoder, job: EmbedJob) -> None:
        self.rows: list[Row] = []
        self.failures: list[Failure] = []
        self._encoder = encoder
        self._job = job
        self._missing = entries
        self._waiting: list[Pixels] = []
        self._vectors = [np.empty((0, encoder.dim), np.float32)]

    @property
    def complete(self) -> bool:
        return self._missing == 0

    def add(self, outcome: Pixels | Failure) -> None:
        self._missing -= 1
        if isinstance(outcome, Failure):
            self.failures.append(outcome)
        else:
            self._waiting.append(outcome)
        if self._waiting and (self.complete or len(self._waiting) >= self._encoder.batch_size):
            self._encode()

    def vectors(self) -> np.ndarray:
        """The vectors of `rows`. Shapes: float32 (N, D)."""
        return np.concatenate(self._vectors)

    def _encode(self) -> None:
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
