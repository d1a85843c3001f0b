"""embed(job): what is to be done, listed; done, by running.py; and counted. Knows nothing about the command line.

Each entry of the source becomes a row or a failure row, so that read = written + failed.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import warnings
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import __version__
from ..atomic_files import translate_os_errors
from ..encoder import Encoder
from ..engine.devices import limit_threads
from ..errors import ClipError, InputError, StoreError
from ..images.transform import PREPROCESS_ID
from ..jobs.embed import EmbedJob, EmbedReport, Listing, Progress
from ..jobs.tune import TuneJob
from ..parallel import available_cores
from ..records import Item, Shard, utf8_path
from ..sources.source import Source
from ..store.lock import Lock, locked
from ..store.manifest import MANIFEST, check_room, read_calibration, read_manifest, write_calibration
from ..store.plan import Plan, ids_hashed, interrupted_listing, members_of, read_plan, remove_plan, write_plan
from ..store.update import updated_plan
from ..store.writer import StoreWriter
from .decode import Decoding
from .run import Run
from .sample import first_pixels
from .tune import summary, tune

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from ..network.records import PreprocessSettings
    from ..records import Entry, Kind


# What measuring needs to know of a job.
SHARED_FIELDS = (
    *("source", "model", "untrained", "device", "workers", "threads", "globs", "calibration", "min_cosine"),
    *("column", "root", "guards", "policies", "isolated_s"),
)
SHOWN_CHARACTERS = 60  # of a text, as an example
RECORDED_VERSIONS = ("torch", "pillow", "numpy", "pyarrow")  # what a vector or its file can depend on


def embed(job: EmbedJob, progress: Callable[[Progress], None] | None = None) -> EmbedReport:
    """Turn images into Parquet files of vectors; `progress` is told while they are listed and after each.

    An output that holds an interrupted run of the same job is gone on with: shards that are written stay. One whose
    input has changed since is brought up to date if the job says so.

    Raises:  InputError for an input that cannot be used, StoreMismatchError for an output that holds another run and
             StoreBusyError for one where another job is at work, before any image; what Encoder raises; StoreError
             for an output that cannot be written; TooManyFailuresError, with finished parts kept.
    """
    started = time.monotonic()
    output = Path(job.output)
    check_room(output)
    source = source_of(job)  # also refuses what is not there, before weights are read
    with limit_threads(job.threads or available_cores()), warnings.catch_warnings():
        # What Pillow has to say about an image is in its row, or in its failure row.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        job, tuned = _tuned(job, output, progress)
        encoder = Encoder(
            job.model,
            device=job.device,
            precision=job.precision,
            batch_size=job.batch_size or "auto",
            threads=job.threads,
            untrained=job.untrained,
            decode=job.decode,
        )
        with translate_os_errors(output):
            output.mkdir(parents=True, exist_ok=True)
        with locked(output) as lock:
            if encoder.precision == "int8":
                encoder.calibrate(_calibration(job, source, encoder.settings, output))
            store = StoreWriter(output, _manifest(job, encoder, source, tuned), overwrite=job.overwrite)
            plan, removed = _planned(job, source, store, lock, progress)
            if encoder.calibration is not None:
                write_calibration(output, encoder.calibration.pixels)
            resumed = Run(job, encoder, source, plan, store, lock, progress).write()
            rows, failed = store.counts(range(plan.shards))
            if not plan.packs and job.frames == "first" and rows + failed != plan.entries:
                raise StoreError(
                    output,
                    f"holds {rows:,} rows and {failed:,} failures",
                    f"{plan.entries:,} together",
                    "Run again with `overwrite=True`, and report this.",
                )
            lock.check()
            ignored = dict(Counter(plan.ignored) + store.ignored(range(plan.shards)))
            counts = {"read": rows + failed, "written": rows, "failed": failed, "ignored": ignored}
            store.finish({"counts": counts})
    return EmbedReport(output, rows + failed, rows, failed, ignored, time.monotonic() - started, resumed, removed)


def source_of(job: EmbedJob) -> Source:
    """What the job names as input. Raises: InputError for what is not there."""
    return Source(job.inputs, job.globs, job.columns, job.root).with_types()


def count(job: EmbedJob) -> Listing:
    """What the job would read, and what it would pass over. Decodes nothing.

    Raises:  InputError for an input that cannot be used, StoreMismatchError for an output that is not ours.
    """
    check_room(Path(job.output))
    ignored: Counter[str] = Counter()
    told: list[Progress] = []
    for _ in _told(source_of(job).shards(job.shard_size, ignored, job.limit), ignored, told.append, job.kind):
        pass
    return told[-1].listing or Listing()


def _planned(
    job: EmbedJob, source: Source, store: StoreWriter, lock: Lock, progress: Callable[[Progress], None] | None
) -> tuple[Plan, int]:
    """What is to be done, in shards, standing in the output; and how many entries an update drops."""
    standing = None if store.is_new else read_plan(store.path)
    removed = 0
    ignored: Counter[str] = Counter()
    of = json.dumps([[os.path.abspath(name) for name in job.inputs], job.globs, asdict(job.columns), job.root])  # noqa: PTH100
    # What a listing that was killed had found is taken over only where no vector depends on it yet.
    known = interrupted_listing(store.path, of) if store.is_new and not job.overwrite else iter(())
    shards = source.shards(job.shard_size, ignored, job.limit, known, store.path)
    hashed: list[np.ndarray] = []
    plan = write_plan(store.path, ids_hashed(_told(shards, ignored, progress, job.kind), hashed), ignored, of=of)
    if job.duplicate_ids == "error" and (found := plan.repeated(hashed)) is not None:
        plan.discard()
        raise InputError(
            f"{found[0].id!r}",
            f"stands for {found[0].path} and for {found[1].path}",
            "one of each id",
            'Leave one out, name an `columns.id`, or pass `duplicate_ids="keep"`.',
        )
    if not (job.update or store.is_of(plan.fingerprint)):
        plan.discard()
    elif standing is not None and (job.update or standing.summaries() != plan.summaries()):
        content_hash = (lambda item: _content_hash(source, item, job.max_bytes)) if job.update and job.hashes else None
        plan, removed = updated_plan(store, standing, plan, job.shard_size, retry=job.update, content_hash=content_hash)
    lock.check()
    if job.overwrite:
        remove_plan(store.path)  # first: no listing of another run may describe the parts of this one
    store.begin(plan.fingerprint, update=job.update)
    plan = plan.adopt()
    store.remove_beyond(plan.shards)
    return plan, removed


def _tuned(
    job: EmbedJob, output: Path, progress: Callable[[Progress], None] | None
) -> tuple[EmbedJob, dict[str, Any] | None]:
    """The job with the precision and decode that its bound allows, and what was measured for it.

    A run that stands keeps those it has: what is faster may have changed since, and its vectors have to go together.
    """
    if job.min_cosine is None:
        return job, None

    def tell(line: str) -> None:
        if progress:
            progress(Progress(0, 0, 0, told=line))

    standing = {} if job.overwrite else read_manifest(output / MANIFEST) or {}
    tuned: dict[str, Any] | None = standing.get("tuned")
    precision, decode = job.precision, job.decode
    if tuned is not None and tuned["min_cosine"] == job.min_cosine:
        precision, decode = standing["precision"], standing["decode"]
    else:
        try:
            report = tune(TuneJob(**{name: getattr(job, name) for name in SHARED_FIELDS}), tell)
        except InputError as exc:  # too few images; what else there is to say of the input, the run says
            tuned = {"min_cosine": job.min_cosine, "images": 0, "rows": [], "best": None}
            tell(f"exact, as nothing could be measured: {exc}")
        else:
            tuned = asdict(report)
            precision, decode = report.best.precision, report.best.decode
            tell(summary(report))
    calibration = job.calibration if precision == "int8" else None
    return replace(job, precision=precision, decode=decode, calibration=calibration, min_cosine=None), tuned


def _calibration(job: EmbedJob, source: Source, settings: PreprocessSettings, output: Path) -> np.ndarray:
    """The pixels to quantise by: those of the run that stands, else of the first images. Shapes: (N, R, R, 3).

    Raises:  InputError where none of them can be decoded.
    """
    standing = None if job.calibration or job.overwrite else read_calibration(output)
    if standing is not None and standing.shape[1] == settings.resolution_px:  # else the run is of another model
        return standing
    of = Source((str(job.calibration),)) if job.calibration else source
    return first_pixels(Decoding(of, settings, job.limits, job.policies), job.isolated_s)[0].pixels


def _told(
    shards: Iterable[Shard], ignored: Counter[str], progress: Callable[[Progress], None] | None, kind: Kind
) -> Iterator[Shard]:
    """The shards; how many images they have is told after each, and what they are after the last."""
    images = archives = 0
    example = ""
    for shard in shards:
        counts = [members_of(entry) for entry in shard.entries]
        images, archives = images + sum(filter(None, counts)), archives + counts.count(None)
        example = example or _example(shard.entries[0], kind)
        if progress:
            progress(Progress(0, 0, 0, listing=Listing(images, archives)))
        yield shard
    if progress:
        progress(Progress(0, 0, 0, listing=Listing(images, archives, example, dict(ignored))))


def _example(entry: Entry, kind: Kind) -> str:
    if kind == "texts" and isinstance(entry, Item):
        return f"{entry.id!r} ({(entry.values[0] or '')[:SHOWN_CHARACTERS]!r})"
    return f"{entry.id!r} ({utf8_path(entry.path)})"


def _content_hash(source: Source, item: Item, max_bytes: int) -> str | None:
    try:
        return hashlib.sha256(source.read(item, max_bytes)).hexdigest()
    except (OSError, ClipError):
        return None  # it is done again, and what is wrong with it becomes its failure row


def _manifest(job: EmbedJob, encoder: Encoder, source: Source, tuned: dict[str, Any] | None) -> dict[str, Any]:
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
        "calibration": None
        if encoder.calibration is None
        else {"images": len(encoder.calibration.pixels), "sha256": encoder.calibration.sha256},
        "tuned": tuned,
        "engine": encoder.backend,
        "decode": encoder.decode,
        "kind": job.kind,
        "policies": asdict(job.policies),
        "guards": asdict(job.limits),
        "normalised": job.normalize,
        "dtype": job.dtype,
        "hashes": job.hashes,
        "long_text": None if job.kind == "images" else job.long_text,
        "keep": source.columns.kept,  # a list, as their order counts
        "dim": encoder.dim,
        "device": str(encoder.device),
        "versions": {"clip-turbo": __version__, **versions},
        "source": list(job.inputs),
        "globs": list(job.globs),
        "column": job.column,
        "id_column": job.id_column,
        "text_column": job.text_column,
        "root": job.root,
        "duplicate_ids": job.duplicate_ids,
        "limit": job.limit,
        "shard_size": job.shard_size,
        "input_fingerprint": None,  # known when all is listed
        "counts": None,  # known when the run is over
    }
