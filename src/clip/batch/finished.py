"""Recognise a run that has nothing left to do without loading a model, which takes a second and more.

Only where nothing is in doubt: the run is over, by the same model and options; the same images are listed, of the same
sizes and times; every part is there, and as it was written. Anything else is left to `embed`.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ClipError
from ..jobs.embed import EmbedReport
from ..object_paths import open_place
from ..records import STDIN
from ..sources.remote.client import is_remote
from ..store.lock import LOCK
from ..store.manifest import MANIFEST, Manifest, read_manifest
from ..store.plan import read_plan, write_plan
from ..store.update import has_passing_failure
from ..store.writer import StoreWriter
from ..weights.locate import SKETCH, SKETCH_FILE, URLS, file_sha256
from ..weights.releases import RELEASES
from ..weights.spellings import find_spelled
from .notes import Notes, advise
from .opening import open_source
from .recorded import record_base, record_options

if TYPE_CHECKING:
    from ..jobs.embed import EmbedJob
    from ..jobs.options import ModelOptions
    from ..store.plan import Plan


def find_finished(job: EmbedJob) -> EmbedReport | None:
    """Return the report of a run that `embed` would find finished; None where that is not certain.

    Raises:  nothing of a damaged output, which `embed` reports; InputError for an input that is not there.
    """
    started = time.monotonic()
    output = open_place(job.output)
    policy = job.policy
    compares_contents = policy.update and policy.hashes
    if policy.overwrite or compares_contents or job.calibration or job.part or any(map(_is_elsewhere, job.inputs)):
        return None
    if (output / LOCK).exists():  # of a job that is at work, or was killed as it ended: `embed` takes it away
        return None
    try:
        manifest = read_manifest(output / MANIFEST)
        if manifest is None or manifest.counts is None or not _is_of_job(manifest, job):
            return None
        plan = read_plan(output)
        if plan is None or plan.fingerprint != manifest.input_fingerprint:
            return None
        if not _is_same_input(manifest, plan, job) or not _is_whole(manifest, plan, job):
            return None
    except (ClipError, OSError):
        return None
    counts = dict(manifest.counts)
    ignored: dict[str, int] = counts.pop("ignored", {})
    unread = Notes().count_unread(ignored)
    return EmbedReport(
        output,
        **counts,
        ignored=ignored,
        seconds=time.monotonic() - started,
        resumed=counts["read"],
        unread=unread,
        advice=advise(unread, 0),
    )


def _is_elsewhere(name: str) -> bool:
    return name == STDIN or is_remote(name)


def _is_of_job(manifest: Manifest, job: EmbedJob) -> bool:
    """Whether a run had the model and the options of a job."""
    precision, pixels = job.model_options.precision, job.decode.pixels
    if job.min_cosine is not None:
        if manifest.tuned is None or manifest.tuned["min_cosine"] != job.min_cosine:
            return False
        precision, pixels = manifest.precision, manifest.decode.pixels
    options = record_options(job) | {"decode": replace(job.decode, pixels=pixels)}
    asked = replace(manifest, precision=precision, **options)
    return asked == manifest and _is_model(manifest, job.model_options)


def _is_model(manifest: Manifest, options: ModelOptions) -> bool:
    """Whether a run had the weights that these options name, on a device that they name."""
    if options.device not in ("auto", manifest.device):
        return False
    if options.untrained is not None or manifest.untrained is not None:
        return options.untrained == manifest.untrained and options.name == manifest.model
    if options.name == SKETCH:
        return file_sha256(SKETCH_FILE) == manifest.weights_sha256
    released = options.name if options.name in URLS else find_spelled(options.name, URLS)
    path = Path(options.name)
    if released is not None and (released == options.name or not path.exists()):
        return RELEASES[released].sha256 == manifest.weights_sha256
    return path.is_file() and file_sha256(path) == manifest.weights_sha256


def _is_same_input(manifest: Manifest, plan: Plan, job: EmbedJob) -> bool:
    """Whether the input is where it was, and lists the same entries."""
    source = open_source(job)
    if source.base is None or (source.base, source.list_places()) != (manifest.base, manifest.source):
        return False
    if source.columns != manifest.columns or source.root != manifest.root:
        return False
    if manifest.base_from_output != record_base(source.base, job.output):
        return False  # the output was moved, and says so from now on
    ignored: Counter[str] = Counter()
    shards = source.shards(job.policy.shard_size, ignored, job.limit, iter(()), open_place(job.output))
    with tempfile.TemporaryDirectory() as folder:
        listed = write_plan(Path(folder), shards, ignored, has_base=True)
    # A video that is new is no entry, but counts.
    return (listed.fingerprint, listed.ignored) == (plan.fingerprint, plan.ignored)


def _is_whole(manifest: Manifest, plan: Plan, job: EmbedJob) -> bool:
    """Whether every shard of a run is there as it was written, and no failure is to be tried again."""
    store = StoreWriter(open_place(job.output), manifest)
    if not all(store.is_done(index, summary.fingerprint) for index, summary in enumerate(plan.summaries())):
        return False
    return not job.policy.update or not any(has_passing_failure(store, index) for index in range(plan.shards))
