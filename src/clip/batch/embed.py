"""embed(job): list the input, write the shards that are missing (run.py), check the counts.

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
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from .. import __version__
from ..atomic_files import translate_os_errors
from ..encoder import Encoder
from ..engine.devices import limit_threads
from ..errors import ClipError, InputError, StoreError
from ..images.transform import PREPROCESS_ID
from ..jobs.embed import EmbedJob, EmbedReport, Listing, Progress
from ..jobs.options import CALIBRATED_PRECISIONS, Columns, Frames, Precision
from ..jobs.tune import TuneJob
from ..parallel import available_cores
from ..records import Entry, Item, Shard, shorten, utf8_path
from ..sources.source import Source
from ..store.lock import Lock, hold_lock
from ..store.manifest import MANIFEST, Manifest, read_calibration, read_manifest, write_calibration
from ..store.parts import EMBEDDINGS, Parts
from ..store.plan import Plan, collect_id_hashes, count_members, read_plan, recover_listing, remove_plan, write_plan
from ..store.renamed_containers import rename_containers
from ..store.update import count_changes, update_plan
from ..store.writer import StoreWriter, check_room
from .count import count_expected, count_shard
from .decode import Decoding
from .encoders import load_encoder
from .given_columns import check_ids, find_empty
from .notes import advise
from .opening import open_source
from .run import Run
from .sample import draw_calibration
from .tune import summarise, tune

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from ..network.records import PreprocessSettings


MAX_EXAMPLE = 60  # characters of a text that a message repeats
RECORDED_VERSIONS = ("torch", "pillow", "numpy", "pyarrow")  # what a vector or its file can depend on


def embed(job: EmbedJob, progress: Callable[[Progress], None] | None = None) -> EmbedReport:
    """Turn images into Parquet files of vectors; call `progress` while they are listed, and by the chunk after that.

    An interrupted run of the same job in the output is resumed: shards that are written stay. Where the input has
    changed since, the output is brought up to date if the job says so.

    Raises:  InputError for an input that cannot be used, StoreMismatchError for an output that holds another run and
             StoreBusyError for one where another job is at work, before any image is read; what Encoder raises;
             StoreError for an output that cannot be written; TooManyFailuresError, with finished parts kept.
    """
    started = time.monotonic()
    output = Path(job.output)
    check_room(output)
    source = open_source(job)  # first, as it refuses an input that is not there before weights are read
    with limit_threads(job.model_options.threads or available_cores()), warnings.catch_warnings():
        # What Pillow warns of is in the image's row or failure row.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        job, tuned = _tune(job, output, progress)
        if progress:
            progress(Progress(0, 0, 0, loading=job.model_options.name))
        encoder = load_encoder(job.model_options, job.decode.pixels)
        with translate_os_errors(output):
            output.mkdir(parents=True, exist_ok=True)
        with hold_lock(output) as lock:
            if encoder.needs_calibration:
                encoder.calibrate(_choose_calibration(job, source, encoder.settings, output))
            store = StoreWriter(output, _describe_run(job, encoder, source, tuned), overwrite=job.policy.overwrite)
            plan, removed, renamed = _plan_run(job, source, store, lock, progress)
            if encoder.calibration is not None:
                write_calibration(output, encoder.calibration.pixels)
            run = Run(job, encoder, source, plan, store, lock, progress)
            resumed = run.write()
            counts = _check_counts(store.parts, plan, job.decode.frames)
            if job.columns.id and plan.containers and job.duplicate_ids == "error":
                check_ids(store.parts, plan.shards)  # those of lists and folders were compared when they were listed
            empty = find_empty(store.parts, plan.shards, source.columns)
            lock.check()
            ignored = dict(Counter(plan.ignored) + store.ignored(range(plan.shards)))
            store.finish({**counts, "ignored": ignored})
    seconds = time.monotonic() - started
    notes, unread = run.notes, run.notes.count_unread(ignored)
    return EmbedReport(
        output,
        **counts,
        ignored=ignored,
        seconds=seconds,
        resumed=resumed,
        removed=removed,
        renamed=renamed,
        warned=notes.warned,
        stored_turned=notes.stored_turned,
        unread=unread,
        advice=advise(unread, notes.stored_turned, empty),
    )


def _check_counts(parts: Parts, plan: Plan, frames: Frames) -> dict[str, int]:
    """Count what the parts hold, and compare it with the plan. Raises: StoreError where an entry is missing."""
    read = written = failed = 0
    for index in range(plan.shards):
        expected = count_expected(plan, index)
        count = count_shard(parts, index, expected)
        if error := count.find_error(expected, frames):
            remedy = "Run again with `overwrite=True`, and report this."
            raise StoreError(parts.path(EMBEDDINGS, index), f"holds {error}", remedy=remedy)
        written, failed = written + count.rows, failed + count.failures
        read += count.rows + count.failures if count.read is None else count.read
    return {"read": read, "written": written, "failed": failed}


def count(job: EmbedJob) -> Listing:
    """Count what the job would read, and what it would ignore. Decodes nothing.

    Raises:  InputError for an input that cannot be used, StoreMismatchError for an output that is not ours.
    """
    check_room(Path(job.output))
    ignored: Counter[str] = Counter()
    reports: list[Progress] = []
    source = open_source(job)
    shards = source.shards(job.policy.shard_size, ignored, job.limit)
    for _ in _report_listing(shards, ignored, reports.append, source):
        pass
    return reports[-1].listing or Listing()


def _plan_run(
    job: EmbedJob, source: Source, store: StoreWriter, lock: Lock, progress: Callable[[Progress], None] | None
) -> tuple[Plan, int, int]:
    """List the input into the output, by shards; return that, and how many entries an update drops and renames."""
    earlier = None if store.is_new else read_plan(store.path)
    removed = renamed = 0
    ignored: Counter[str] = Counter()
    paths = [os.path.abspath(name) for name in job.inputs]  # noqa: PTH100  of URLs too, as names
    inputs = json.dumps([paths, job.globs, asdict(job.columns), job.root])
    # Only a first run takes over the entries of a listing that was killed: in an update a size or time from before the
    # kill could make an image that changed since pass for unchanged.
    known = recover_listing(store.path, inputs) if store.is_new and not job.policy.overwrite else iter(())
    shards = source.shards(job.policy.shard_size, ignored, job.limit, known, store.path)
    hashed: list[np.ndarray] = []
    shards = _report_listing(shards, ignored, progress, source)
    has_base = source.base is not None
    plan = write_plan(store.path, collect_id_hashes(shards, hashed), ignored, inputs=inputs, has_base=has_base)
    if job.duplicate_ids == "error" and (pair := plan.find_repeated(hashed)) is not None:
        plan.discard()
        paths = [utf8_path(source.locate(entry.path)) for entry in pair]
        found = f"found as the id of {paths[0]} and of {paths[1]}"
        remedy = 'Leave one out, name a column of ids with `columns.id`, or pass `duplicate_ids="keep"`.'
        raise InputError(f"{pair[0].id!r}", found, "one entry for each id", remedy)
    if not (job.policy.update or store.has_input(plan.fingerprint)):
        changes = "" if earlier is None else str(count_changes(earlier, plan, has_base=has_base))
        plan.discard()
        raise store.make_input_error(changes)
    if earlier is not None and (job.policy.update or earlier.summaries() != plan.summaries()):
        content_hash = (
            (lambda item: _hash_content(source, item, job.limits.max_bytes))
            if job.policy.update and job.policy.hashes
            else None
        )
        plan, removed, renamed = update_plan(
            store, earlier, plan, job.policy.shard_size, retry=job.policy.update, content_hash=content_hash
        )
    lock.check()
    if job.policy.overwrite:
        remove_plan(store.path)  # first, as no listing of another run may describe the parts of this one
    store.begin(plan.fingerprint, update=job.policy.update)
    plan = plan.adopt()
    rename_containers(store, plan)
    store.remove_beyond(plan.shards)
    return plan, removed, renamed


def _tune(
    job: EmbedJob, output: Path, progress: Callable[[Progress], None] | None
) -> tuple[EmbedJob, dict[str, Any] | None]:
    """Return the job with the precision and pixels that its bound allows, and the measurements.

    A run that is resumed keeps those it has: another setting may be the fastest by now, but vectors of one run belong
    together.
    """
    if job.min_cosine is None:
        return job, None

    def report(message: str) -> None:
        if progress:
            progress(Progress(0, 0, 0, message=message))

    earlier = None if job.policy.overwrite else read_manifest(output / MANIFEST)
    tuned = earlier.tuned if earlier else None
    precision, pixels = job.model_options.precision, job.decode.pixels
    if earlier and tuned and tuned["min_cosine"] == job.min_cosine:
        precision, pixels = cast("Precision", earlier.precision), earlier.decode.pixels
    else:
        try:
            measured = tune(_make_tune_job(job, job.min_cosine), report)
        except InputError as exc:  # too few images; the run itself reports anything else about the input
            tuned = {"min_cosine": job.min_cosine, "pictures": 0, "rows": [], "best": None}
            report(f"exact, as nothing could be measured: {exc}")
        else:
            renamed = {"images": "pictures"}  # as in version 0.1.0
            tuned = {renamed.get(key, key): value for key, value in asdict(measured).items()}
            precision, pixels = measured.best.precision, measured.best.decode
            report(summarise(measured))
    calibration = job.calibration if precision in CALIBRATED_PRECISIONS else None
    model, decode = replace(job.model_options, precision=precision), replace(job.decode, pixels=pixels)
    return replace(job, model=model, decode=decode, calibration=calibration, min_cosine=None), tuned


def _make_tune_job(job: EmbedJob, min_cosine: float) -> TuneJob:
    """Return the job that measures the settings of another."""
    return TuneJob(
        source=job.source,
        model=job.model,
        decode=job.decode,
        limits=job.limits,
        columns=Columns(job.columns.entry, delimiter=job.columns.delimiter, quoting=job.columns.quoting),
        globs=job.globs,
        root=job.root,
        workers=job.workers,
        calibration=job.calibration,
        min_cosine=min_cosine,
        isolated_s=job.isolated_s,
    )


def _choose_calibration(job: EmbedJob, source: Source, settings: PreprocessSettings, output: Path) -> np.ndarray:
    """Return the pixels to quantise by: those of the run to resume, else of the first images. Shapes: (N, R, R, 3).

    Raises:  InputError where none of these can be decoded.
    """
    earlier = None if job.calibration or job.policy.overwrite else read_calibration(output)
    if earlier is not None and earlier.shape[1] == settings.resolution_px:  # else the run is of another model
        return earlier
    images = Source((str(job.calibration),)) if job.calibration else source
    decoding = Decoding(images, settings, job.limits, replace(job.decode, pixels="exact"))
    return draw_calibration(decoding, job.isolated_s)[0].pixels


def _report_listing(
    shards: Iterable[Shard], ignored: Counter[str], progress: Callable[[Progress], None] | None, source: Source
) -> Iterator[Shard]:
    """Yield the same shards; report how many images there are after each, and an example after the last."""
    images = archives = 0
    example = ""
    for shard in shards:
        counts = [count_members(entry) for entry in shard.entries]
        images, archives = images + sum(filter(None, counts)), archives + counts.count(None)
        example = example or _describe_entry(shard.entries[0], source)
        if progress:
            progress(Progress(0, 0, 0, listing=Listing(images, archives)))
        yield shard
    if progress:
        progress(Progress(0, 0, 0, listing=Listing(images, archives, example, dict(ignored))))


def _describe_entry(entry: Entry, source: Source) -> str:
    if source.columns.kind == "texts" and isinstance(entry, Item):
        return f"{entry.id!r} ({(entry.values[0] or '')[:MAX_EXAMPLE]!r})"
    return f"{entry.id!r} ({utf8_path(shorten(source.locate(entry.path)))})"


def _hash_content(source: Source, item: Item, max_bytes: int) -> str | None:
    try:
        return hashlib.sha256(source.read(item, max_bytes)).hexdigest()
    except (OSError, ClipError):
        return None  # it is embedded again, and the error becomes its failure row


def _make_relative(base: str, output: str | Path) -> str:
    """Return where a folder is from an output; empty where it is on another drive."""
    try:
        return os.path.relpath(base, os.path.abspath(output))  # noqa: PTH100
    except ValueError:
        return ""


def _describe_run(job: EmbedJob, encoder: Encoder, source: Source, tuned: dict[str, Any] | None) -> Manifest:
    """Return the manifest: all that a vector depends on, and where it came from."""
    versions = {name: metadata.version(name) for name in RECORDED_VERSIONS}
    with suppress(metadata.PackageNotFoundError):
        versions["pi-heif"] = metadata.version("pi-heif")  # which reads HEIC files where it is installed
    calibration = encoder.calibration
    return Manifest(
        model=encoder.model_name,
        weights_sha256=encoder.weights_sha256,
        weights_source=encoder.source,
        architecture=encoder.architecture,
        stated_architecture=job.model_options.architecture,
        preprocess=f"{PREPROCESS_ID}/pillow-{versions['pillow']}",
        preprocess_settings=asdict(encoder.settings),
        precision=encoder.precision,
        computed_in=encoder.computed_in,
        calibration=calibration and {"pictures": len(calibration.pixels), "sha256": calibration.sha256},
        tuned=tuned,
        engine=encoder.backend,
        decode=job.decode,
        limits=job.limits,
        columns=source.columns,
        normalised=job.policy.normalize,
        dtype=job.policy.dtype,
        hashes=job.policy.hashes,
        long_text=None if job.kind == "images" else job.long_text,
        text_warnings=job.kind == "texts" and job.long_text == "cut",
        dim=encoder.dim,
        device=str(encoder.device),
        versions={"clip-turbo": __version__, **versions},
        source=job.inputs if source.base is None else source.list_places(),
        globs=job.globs,
        root=job.root if source.base is None else source.root,
        base=source.base,
        base_from_output=_make_relative(source.base, job.output) if source.base else "",
        duplicate_ids=job.duplicate_ids,
        limit=job.limit,
        shard_size=job.policy.shard_size,
    )
