"""embed(job): list the input, write the shards that are missing (run.py), check the counts.

Each entry of the source becomes a row or a failure row, so that read = written + failed.
"""

from __future__ import annotations

import time
import warnings
from collections import Counter
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from .. import __version__
from ..atomic_files import translate_os_errors
from ..encoder import Encoder
from ..engine.devices import limit_threads
from ..errors import InputError, StoreError
from ..jobs.embed import EmbedJob, EmbedReport, Progress
from ..jobs.options import CALIBRATED_PRECISIONS, Columns, Frames, Precision
from ..jobs.tune import TuneJob
from ..memory import set_aside_objects
from ..object_paths import map_objects, open_place
from ..parallel import available_cores
from ..sources.source import Source
from ..store.lock import Holding, hold_lock, hold_plan_lock
from ..store.manifest import MANIFEST, Manifest, read_calibration, read_manifest, write_calibration
from ..store.parts import EMBEDDINGS, Parts
from ..store.plan import Plan, read_plan
from ..store.writer import StoreWriter, check_room
from ..tokenizer_file import TokenizerFile
from .count import Count, Expected, count_expected, count_ignored, count_shard, find_unfinished
from .decode import Decoding
from .encoders import Encoders, load_encoder, load_encoders
from .given_columns import check_ids, find_empty
from .notes import advise
from .opening import open_source
from .planning import plan_run
from .recorded import record_base, record_options
from .run import Run
from .sample import draw_calibration
from .tune import summarise, tune

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np

    from ..network.records import PreprocessSettings


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
    output = open_place(job.output)
    check_room(output)
    source = open_source(job)  # first, as it refuses an input that is not there before weights are read
    with limit_threads(job.model_options.threads or available_cores()), warnings.catch_warnings():
        # What Pillow warns of is in the image's row or failure row.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        job, tuned = _tune(job, output, progress)
        if progress:
            progress(Progress(0, 0, 0, loading=job.model_options.name))
        encoders = load_encoders(job.model_options, job.decode.pixels, job.devices, load_encoder)
        encoder = encoders[0]
        if job.devices:  # of "all", which these are
            job = replace(job, devices=",".join(str(one.device) for one in encoders))
        with translate_os_errors(output):
            output.mkdir(parents=True, exist_ok=True)
        with hold_lock(output, job.share) as lock:
            # What one process does for all that share the run is done under a lock of its own.
            alone = partial(hold_plan_lock, output) if job.share else nullcontext
            with alone():
                opened = begin_run(job, encoder, source, tuned, lock, progress)
                for other in encoders[1:]:
                    if encoder.calibration is not None:
                        other.calibrate(encoder.calibration.pixels)
                opened = replace(opened, others=tuple(encoders[1:]))
            run = opened.make_run(lock, progress)
            if run.find_missing():
                with alone():
                    opened.store.reopen()
            with set_aside_objects():
                run.write()
            counts, ignored = opened.count(run.indices)
            lock.check()
            with alone():
                unfinished, empty = opened.finish(counts | {"ignored": ignored})
    seconds = time.monotonic() - started
    notes, unread = run.notes, run.notes.count_unread(ignored)
    return EmbedReport(
        output,
        **counts,
        ignored=ignored,
        seconds=seconds,
        resumed=run.resumed,
        removed=opened.removed,
        renamed=opened.renamed,
        warned=notes.warned,
        stored_turned=notes.stored_turned,
        unread=unread,
        part=str(job.share or ""),
        unfinished=unfinished,
        advice=advise(unread, notes.stored_turned, empty),
    )


@dataclass(frozen=True)
class OpenedRun:
    """A run whose model is loaded and whose input is listed: all that a process needs to write shards of it."""

    job: EmbedJob
    encoder: Encoder
    source: Source
    store: StoreWriter
    plan: Plan
    removed: int = 0  # entries that an update drops
    renamed: int = 0  # and those that it keeps under another id
    others: tuple[Encoder, ...] = ()  # on further devices of this process

    def make_run(
        self, lock: Holding, progress: Callable[[Progress], None] | None, indices: Sequence[int] | None = None
    ) -> Run:
        """Return what writes these shards, or all that are the job's."""
        encoders = Encoders((self.encoder, *self.others))
        return Run(self.job, encoders, self.source, self.plan, self.store, lock, progress, indices=indices)

    def count(self, indices: Sequence[int]) -> tuple[dict[str, int], dict[str, int]]:
        """Count what the parts of some shards hold, and what was passed over, by reason.

        Raises:  StoreError where an entry is missing.
        """
        counts = _check_counts(self.store.parts, self.plan, self.job.decode.frames, indices)
        ignored = count_ignored(self.store.parts, indices)
        return counts, dict(ignored if self.job.share else Counter(self.plan.ignored) + ignored)

    def finish(self, counts: dict[str, Any]) -> tuple[tuple[str, ...], list[str]]:
        """Write the counts into the manifest, if all shards are written; return parts that are not, and empty columns.

        Raises:  StoreError where an entry is missing, InputError for an id that occurs twice.
        """
        job, parts, shards = self.job, self.store.parts, self.plan.shards
        if job.share is not None:
            unfinished = find_unfinished(parts, self.plan, job.share.count)
            if unfinished:
                return tuple(f"{index}/{job.share.count}" for index in unfinished), []
            of_all, ignored = replace(self, job=replace(job, part=None)).count(range(shards))
            counts = of_all | {"ignored": ignored}
        if job.columns.id and self.plan.containers and job.duplicate_ids == "error":
            check_ids(parts, shards)  # those of lists and folders were compared when they were listed
        empty = find_empty(parts, shards, self.source.columns)
        self.store.finish(counts)
        return (), empty


def begin_run(
    job: EmbedJob,
    encoder: Encoder,
    source: Source,
    tuned: dict[str, Any] | None,
    lock: Holding,
    progress: Callable[[Progress], None] | None,
) -> OpenedRun:
    """List the input into the output, or find the run there that it goes on with. Raises: as `embed`."""
    output = open_place(job.output)
    if encoder.needs_calibration:
        encoder.calibrate(_choose_calibration(job, source, encoder.settings, output))
    store = StoreWriter(output, _describe_run(job, encoder, source, tuned), overwrite=job.policy.overwrite)
    plan, removed, renamed = plan_run(job, source, store, lock, progress)
    if encoder.calibration is not None:
        write_calibration(output, encoder.calibration.pixels)
    return OpenedRun(job, encoder, source, store, plan, removed, renamed)


def join_run(job: EmbedJob, encoder: Encoder, source: Source) -> OpenedRun:
    """Take part in the run that another process has begun in the output.

    Raises:  StoreMismatchError where this process would write other vectors; StoreError for a damaged output.
    """
    output = open_place(job.output)
    job = replace(job, policy=replace(job.policy, overwrite=False, update=False))
    if encoder.needs_calibration:
        encoder.calibrate(_choose_calibration(job, source, encoder.settings, output))
    store, plan = StoreWriter(output, _describe_run(job, encoder, source, None)), read_plan(output)
    if plan is None:
        raise StoreError(output, "holds no listing of its run", remedy="Run again.")
    store.join()
    return OpenedRun(job, encoder, source, store, plan)


def _check_counts(parts: Parts, plan: Plan, frames: Frames, indices: Sequence[int]) -> dict[str, int]:
    """Count what the parts hold, and compare it with the plan. Raises: StoreError where an entry is missing."""
    read = written = failed = 0

    def count_one(index: int) -> tuple[Expected, Count]:
        expected = count_expected(plan, index)
        return expected, count_shard(parts, index, expected)

    for index, (expected, count) in zip(indices, map_objects(count_one, indices, parts.output), strict=True):
        if error := count.find_error(expected, frames):
            remedy = "Run again with `overwrite=True`, and report this."
            raise StoreError(parts.path(EMBEDDINGS, index), f"holds {error}", remedy=remedy)
        written, failed = written + count.rows, failed + count.failures
        read += count.rows + count.failures if count.read is None else count.read
    return {"read": read, "written": written, "failed": failed}


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


def _describe_run(job: EmbedJob, encoder: Encoder, source: Source, tuned: dict[str, Any] | None) -> Manifest:
    """Return the manifest: all that a vector depends on, and where it came from."""
    versions = {name: metadata.version(name) for name in RECORDED_VERSIONS}
    for name in ("pi-heif", *(["tokenizers"] if isinstance(encoder.tokenizer, TokenizerFile) else [])):
        with suppress(metadata.PackageNotFoundError):  # HEIC files and these vocabularies are read where it is there
            versions[name] = metadata.version(name)
    calibration = encoder.calibration
    return Manifest(
        **record_options(job),
        model=encoder.model_name,
        weights_sha256=encoder.weights_sha256,
        weights_source=encoder.source,
        architecture=encoder.architecture,
        preprocess_settings=asdict(encoder.settings),
        precision=encoder.precision,
        computed_in=encoder.computed_in,
        calibration=calibration and {"pictures": len(calibration.pixels), "sha256": calibration.sha256},
        tuned=tuned,
        engine=encoder.backend,
        columns=source.columns,
        text_warnings=job.kind == "texts" and job.long_text == "cut",
        dim=encoder.dim,
        device=job.devices or str(encoder.device),
        versions={"clip-turbo": __version__, **versions},
        source=job.inputs if source.base is None else source.list_places(),
        root=job.root if source.base is None else source.root,
        base=source.base,
        base_from_output=record_base(source.base, job.output) if source.base else "",
        parts=job.share.count if job.share else 0,
    )
