"""Plan a run: list the input into the output, compare it with the earlier listing, update that."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING

from ..errors import ClipError, InputError
from ..jobs.embed import EmbedJob, Listing, Progress
from ..object_paths import open_place
from ..records import Entry, Item, Shard, shorten, utf8_path
from ..store.plan import Plan, collect_id_hashes, count_members, read_plan, recover_listing, remove_plan, write_plan
from ..store.renamed_containers import rename_containers
from ..store.update import count_changes, update_plan
from ..store.writer import StoreWriter, check_room
from .opening import open_source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import numpy as np

    from ..sources.source import Source
    from ..store.lock import Holding

MAX_EXAMPLE = 60  # characters of a text that a message repeats


def count(job: EmbedJob) -> Listing:
    """Count what the job would read, and what it would ignore. Decodes nothing.

    Raises:  InputError for an input that cannot be used, StoreMismatchError for an output that is not ours.
    """
    check_room(open_place(job.output))
    ignored: Counter[str] = Counter()
    reports: list[Progress] = []
    source = open_source(job)
    shards = source.shards(job.policy.shard_size, ignored, job.limit)
    for _ in _report_listing(shards, ignored, reports.append, source):
        pass
    return reports[-1].listing or Listing()


def plan_run(
    job: EmbedJob, source: Source, store: StoreWriter, lock: Holding, progress: Callable[[Progress], None] | None
) -> tuple[Plan, int, int]:
    """List the input into the output, by shards; return that, and how many entries an update drops and renames.

    Where several processes share the run, the first one lists the input, and the others take its listing.
    """
    earlier = None if store.is_new else read_plan(store.path)
    if job.share is not None and earlier is not None and store.has_input(earlier.fingerprint):
        store.join()
        return earlier, 0, 0
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
