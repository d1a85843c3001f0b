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
from clip.encoder import Encoder, unit_vectors
from clip.engine import limit_threads
from clip.errors import ClipError
from clip.items import Failure, Item, Pixels, PreprocessSettings, Row, Shard
from clip.jobs import EmbedJob, EmbedReport, Progress
from clip.preprocess import PREPROCESS_ID, decode
from clip.sources import FolderSource
from clip.store import StoreWriter, check_room
from clip.threads import ByteBudget, available_cores, map_ahead

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

RECORDED_VERSIONS = ("torch", "pillow", "numpy", "pyarrow")  # what a vector or its file can depend on


def embed(job: EmbedJob, progress: Callable[[Progress], None] | None = None) -> EmbedReport:
    """Turn a folder of pictures into Parquet files of vectors; `progress` is told after each picture.

    Raises:  InputError for a source that is no folder and StoreMismatchError for an output that holds another run,
             before any work; what Encoder raises; StoreError for an output that cannot be written.
    """
    started = time.monotonic()
    total, _ = count(job)  # also refuses what cannot be done, before weights are read
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
        store = StoreWriter(Path(job.output), _manifest(job, encoder), overwrite=job.overwrite)
        ignored: Counter[str] = Counter()
        fingerprint = hashlib.sha256()
        read = written = failed = 0
        part: _Part | None = None
        with closing(_outcomes(job, encoder, ignored)) as outcomes:
            for shard, outcome in outcomes:
                part = part or _Part(len(shard.entries), encoder, job)
                part.add(outcome)
                read += 1
                if progress:
                    progress(Progress(read, total, failed + len(part.failures)))
                if part.complete:
                    store.commit(shard.index, part.rows, part.vectors(), part.failures)
                    written, failed = written + len(part.rows), failed + len(part.failures)
                    fingerprint.update(_identities(shard))
                    part = None
        counts = {"read": read, "written": written, "failed": failed, "ignored": dict(ignored)}
        store.finish({"input_fingerprint": fingerprint.hexdigest(), "counts": counts})
    return EmbedReport(Path(job.output), read, written, failed, dict(ignored), time.monotonic() - started)


def count(job: EmbedJob) -> tuple[int, dict[str, int]]:
    """How many entries the job would read, and what it would pass over, by reason. Decodes nothing.

    Raises:  InputError for a source that is no folder, StoreMismatchError for an output that holds another run.
    """
    check_room(Path(job.output), overwrite=job.overwrite)
    ignored: Counter[str] = Counter()
    shards = FolderSource(str(job.source), job.globs).shards(job.shard_size, ignored, job.limit)
    return sum(len(shard.entries) for shard in shards), dict(ignored)


def _outcomes(job: EmbedJob, encoder: Encoder, ignored: Counter[str]) -> Generator[tuple[Shard, Pixels | Failure]]:
    """Each entry of the source decoded, in order, with its shard; threads run ahead across the borders of shards."""
    source = FolderSource(str(job.source), job.globs)
    budget = ByteBudget(job.decode_budget_bytes)
    workers = job.workers or available_cores()

    def outcome(numbered: tuple[Shard, Item | Failure]) -> tuple[Shard, Pixels | Failure]:
        shard, entry = numbered
        return shard, entry if isinstance(entry, Failure) else _decode(source, entry, encoder.settings, budget)

    shards = source.shards(job.shard_size, ignored, job.limit)
    entries = ((shard, entry) for shard in shards for entry in shard.entries)
    return map_ahead(outcome, entries, workers=workers, ahead=2 * encoder.batch_size + workers)


def _decode(source: FolderSource, item: Item, settings: PreprocessSettings, budget: ByteBudget) -> Pixels | Failure:
    try:
        data = source.read(item)
    except (OSError, ClipError) as exc:
        return Failure(item.id, item.path, "read", type(exc).__name__, str(exc))
    return decode(item, data, settings, budget.reserve)


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


def _identities(shard: Shard) -> bytes:
    """What tells one input from another: ids and sizes, a line each."""
    sizes = ((entry.id, entry.size_bytes if isinstance(entry, Item) else -1) for entry in shard.entries)
    return "".join(f"{name}\0{size}\n" for name, size in sizes).encode()


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
        "engine": encoder.backend,
        "decode": "exact",
        "orientation": "as stored",
        "normalised": job.normalize,
        "dtype": job.dtype,
        "dim": encoder.dim,
        "device": str(encoder.device),
        "versions": {"clip-turbo": clip.__version__, **versions},
        "source": str(job.source),
        "globs": list(job.globs),
        "limit": job.limit,
        "shard_size": job.shard_size,
        "input_fingerprint": None,  # known, like the counts, when the run is over
        "counts": None,
    }
