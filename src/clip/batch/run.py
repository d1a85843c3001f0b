"""Write the shards of a plan that are not written yet: read, decode, encode, write.

Workers read and decode ahead of the model (feed.py); a look-ahead, a budget of encoded bytes and one of decoded bytes
bound what they hold. Each entry of a shard becomes a row or a failure row. The reader counts entries, the writer rows,
and count.py compares the two.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from ..budgets import ByteBudget
from ..engine.pinned import pin
from ..errors import ClipError, DeviceError, StoreBusyError, TooManyFailuresError
from ..jobs.embed import EmbedJob, Progress
from ..object_paths import MANY, ObjectPath, map_objects
from ..parallel import available_cores, map_ahead, read_ahead
from ..records import ContainerPart, Failure, Item, Member, Row, Shard, count_bytes
from ..sources.remote.prefetch import prefetch
from ..store.journal import Journal, Saved, find_journals, remove_journals
from ..store.parts import FAILURES
from ..store.update import may_pass
from ..text.tokens import Tokenizing
from .batches import Batches
from .crops import CropRing
from .decode import Decoding
from .encoders import Encoders
from .feed import Block, Feed, Pace
from .notes import Notes
from .part_in_work import PartInWork
from .prepare import Preparing
from .processes import DecoderProcesses

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Mapping, Sequence

    import torch

    from ..encoder import Encoder
    from ..sources.source import Source
    from ..store.lock import Holding
    from ..store.plan import Plan
    from ..store.writer import StoreWriter

READ_AHEAD_BYTES = 100_000_000  # of images and copied values, read of an archive or a table before their turn
IMAGES_IN_CHUNK, TEXTS_IN_CHUNK = 32, 64
THREADS_ENOUGH = 4  # threads that Python's lock does not hold up: 16 decoded 1.6 times as much as 4, 16 processes 4.5
IMAGES_A_PROCESS = 64  # fewer are decoded in threads before a process has started
# Of all images that wait for the model, where its device resizes them: 0.6 MB each for ViT-B/32 on an H200. A JPEG of
# 500 x 375 px takes 0.4. What does not fit is resized where it is decoded.
WINDOW_BYTES = 1_500_000_000
TEXTS_AT_A_TIME = 1024  # of which the engine runs those of similar lengths together
MAX_MESSAGE = 200  # characters of a failure that ends the run


class Run:
    """Writes the shards of a plan that are not written yet."""

    def __init__(
        self,
        job: EmbedJob,
        encoders: Encoders,
        source: Source,
        plan: Plan,
        store: StoreWriter,
        lock: Holding,
        progress: Callable[[Progress], None] | None,
        clock: Callable[[], float] = time.monotonic,
        indices: Sequence[int] | None = None,
    ) -> None:
        """Write the shards of these numbers; by default all, or those of the job's part."""
        self._job = job
        self._encoders, encoder = encoders, encoders.first
        self._decoding = Decoding(source, encoder.settings, job.limits, job.decode, job.policy.hashes)
        self._tokenizing = Tokenizing(job.kind, encoder.context_length, job.long_text, encoder.tokenizer)
        self._workers = job.workers or available_cores()
        self._in_processes = _choose_processes(job, self._workers, plan.total, encoder.device.type)
        texts, batch = job.kind == "texts", TEXTS_AT_A_TIME if job.kind == "texts" else encoder.batch_size
        most = 1 if job.isolate else TEXTS_IN_CHUNK if texts else IMAGES_IN_CHUNK
        many_frames = job.decode.frames == "all"
        self._pace = Pace.of(
            batch, self._workers, most=most, many_frames=many_frames, under_way=0 if texts else encoders.ahead
        )
        self._ring = None if texts else self._make_ring(encoder)
        self._waiting = Batches(self._ring, self._pace.most_held)  # empty between shards
        self._plan = plan
        self._shares = job.share is not None or indices is not None  # with processes that write other shards
        own = range(plan.shards) if job.share is None else job.share.choose(plan.shards)
        self.indices = own if indices is None else indices
        self._total = None if self._shares else plan.total
        self.missing: list[int] = []  # shards, once they are looked for
        self._done: set[int] = set()
        self._failed = 0  # in shards that are done
        self.resumed = 0  # entries that earlier runs had written
        self._store = store
        self._lock = lock
        self._progress = progress
        self._clock = clock
        self._saved_at = clock()
        self._journals: dict[int, Journal] = {}  # of shards that an earlier run had begun
        self._bytes = 0  # of the images that were read
        self.notes = Notes()

    def _make_ring(self, encoder: Encoder) -> CropRing:
        """Make the memory that decoders write into: for crops, or where the device resizes for the images' windows."""
        side, shared = encoder.resolution_px, self._in_processes
        if not _resizes_on_device(self._job, encoder.device):
            return CropRing(self._pace.ring, side, shared=shared)
        places = self._pace.window_ring
        return CropRing(places, side, shared=shared, window_bytes=max(side**2 * 3, WINDOW_BYTES // places))

    def find_missing(self) -> bool:
        """Find which shards are missing, and how far the one is that a killed run was writing; return whether any is.

        Raises:  StoreError for a part that is not as it was written.
        """
        store = self._store
        read = map_objects(self._plan.summary, self.indices, store.path)
        summaries = dict(zip(self.indices, read, strict=True))
        self._done = self._find_done({index: summary.fingerprint for index, summary in summaries.items()})
        self.missing = [index for index in self.indices if index not in self._done]
        if self._shares:
            store.remove_temporaries(self.indices)
        begun = find_journals(store.path).intersection(self.indices)
        remove_journals(store.path, begun.difference(self.missing))
        for index in sorted(begun.intersection(self.missing)):
            self._journals[index] = journal = store.journal(self._plan.shard(index))
            if self._job.policy.update:
                journal.remove_failures(may_pass)
        rows, self._failed = store.counts(self._done)
        self.resumed = rows + self._failed + sum(summaries[index].carried_over for index in self.missing)
        self.resumed += sum(journal.saved.outcomes for journal in self._journals.values())
        if self._shares and not self._plan.containers:
            self._total = sum(summary.entries for summary in summaries.values())
        return bool(self.missing)

    def write(self) -> None:
        """Write the missing shards."""
        state = _State(self.resumed, self._failed, self._done, self.resumed)
        with ExitStack() as all_files, closing(self._blocks(self.missing)) as blocks, ExitStack() as files:
            all_files.callback(self.close)  # after the processes that write into the ring
            if self._ring is not None:
                all_files.enter_context(pin(self._ring.crops, self._encoders.first.device))
                if self.missing:
                    self._encoders.prepare(self._plan.total or self._pace.batch)
            all_files.callback(self._encoders.close)
            try:
                for block in blocks:
                    self._take(block, state, files)
                    if not isinstance(block, Shard):
                        self._report(state)
            except BaseException as exc:
                self._save_last(state, exc)
                self._report(state)
                raise

    def close(self) -> None:
        """Close what a run holds that writes nothing; `write` does so itself."""
        if self._ring is not None:
            self._ring.close()

    def _take(self, block: Block | Shard | _End, state: _State, files: ExitStack) -> None:
        """Take what comes next: the begin of a shard, what became of some entries, or its end."""
        if isinstance(block, Shard):
            state.part, state.journal = self._begin(block, files)
            return
        part, journal = state.part, state.journal
        if part is None or journal is None:
            raise AssertionError("a shard comes before its entries")
        if isinstance(block, _End):
            part.finish(block.read, block.ignored, block.frames)
            self._check_failures(state, state.read)
            self._lock.check()
            files.close()
            journal.remove()
            state.part = state.journal = None
            state.done.add(part.shard.index)
            state.failed += part.failed
            state.kept = state.read
            self._saved_at = self._clock()
            return
        state.read += part.add(block)
        self.notes.add(block)
        self._bytes += sum(outcome.size_bytes for outcome in block.outcomes if isinstance(outcome, Row))
        if self._total is not None:
            self._check_failures(state, self._total)
        if part.is_full or self._clock() - self._saved_at >= self._job.policy.save_seconds:
            self._lock.check()
            part.save()
            state.kept = state.read - part.unsaved
            self._saved_at = self._clock()

    def _save_last(self, state: _State, exc: BaseException) -> None:
        """Save what is under way, as far as it can be, before an error or a signal ends the run."""
        part, journal = state.part, state.journal
        if part is None or journal is None or isinstance(exc, StoreBusyError):
            return
        with suppress(ClipError, OSError):  # the error that ends the run says more
            self._lock.check()
            if isinstance(exc, TooManyFailuresError):
                journal.remove_failures()  # as their images may be repaired
            else:
                part.save()
        state.kept = state.read - part.unsaved

    def _report(self, state: _State) -> None:
        """Report how many entries have a vector or a failure; those that wait for the model do not count."""
        if self._progress:
            failed = state.failed + (state.part.failed if state.part else 0)
            finished = state.read - self._waiting.pending
            counts = (finished, self._total, failed, self.resumed, None, len(state.done), len(self.indices))
            self._progress(Progress(*counts, kept=state.kept, bytes=self._bytes))

    def _find_done(self, fingerprints: Mapping[int, str]) -> set[int]:
        """Return the shards whose parts are there, whole and of these fingerprints. Threads compare the parts."""
        store, workers = self._store, available_cores()
        workers = MANY if isinstance(store.path, ObjectPath) else workers
        found = map_ahead(lambda pair: store.is_done(*pair), fingerprints.items(), workers=workers, ahead=4 * workers)
        return {index for index, is_done in zip(fingerprints, found, strict=True) if is_done}

    def _begin(self, shard: Shard, files: ExitStack) -> tuple[PartInWork, Journal]:
        journal = self._journals.get(shard.index) or Journal(self._store.parts, shard)
        writer = files.enter_context(self._store.part(shard))
        batch = TEXTS_AT_A_TIME if self._job.kind == "texts" else self._encoders.first.batch_size
        part = PartInWork(self._encoders, self._job.policy, writer, journal, shard, self._waiting, batch)
        if shard.carried_over:
            path = self._store.parts.path(FAILURES, shard.index)
            ids = self._store.parts.read_or_empty(path, ["id"])["id"].to_pylist()
            earlier = {shard.renamed.get(own_id, own_id) for own_id in shard.carried_over}
            part.failed += sum(own_id in earlier for own_id in ids)
        return part, journal

    def _check_failures(self, state: _State, total: int) -> None:
        """Raise TooManyFailuresError where more entries failed than the job allows."""
        total = self._total or total
        allowed = self._job.allowed_failures(total)
        part = state.part
        last = part.last_failure if part else None
        if part is None or last is None or state.failed + part.failed <= allowed:
            return
        raise make_limit_error(self._job, allowed, total, f"the last was {last.id!r} ({last.message[:MAX_MESSAGE]})")

    def _blocks(self, indices: Iterable[int]) -> Generator[Block | Shard | _End]:
        """Yield each shard, what became of its entries in order, and its end.

        Workers run ahead across the borders of shards.
        """
        job = self._job
        held, budget = ByteBudget(job.read_budget_bytes), ByteBudget(job.decode_budget_bytes)
        processes = None
        if self._in_processes and self._ring is not None:
            processes = DecoderProcesses(
                self._decoding,
                self._ring,
                workers=self._workers,
                budget_bytes=job.decode_budget_bytes,
                max_seconds=job.isolated_s,
            )
        threads = partial(self._decoding.decode_chunk, reserve=budget.reserve)
        preparing = Preparing(self._tokenizing, processes or threads)
        local = self._entries(indices, held)
        entries: Generator[_Listed] = (
            local if job.kind == "texts" else prefetch(local, job.limits.max_bytes, job.readers, held)
        )
        feed = Feed(self._pace, self._ring, self._workers, held, job.limits.max_bytes)
        stop = processes.close if processes else (lambda: None)
        frames = 0
        with (
            closing(entries),
            closing(held),  # before the entries are, as their threads may be waiting for it
            closing(feed.blocks(entries, preparing, stop)) as blocks,
        ):
            for block in blocks:
                if isinstance(block, _End):
                    block.frames, frames = block.skipped_frames + frames, 0
                elif isinstance(block, Block):
                    frames += block.frames
                yield block

    def _entries(self, indices: Iterable[int], budget: ByteBudget) -> Generator[_Listed]:
        """Yield each shard, its entries as the source gives them, and its end, with the reader's count."""
        for index in indices:
            saved = self._journals[index].saved if index in self._journals else Saved()
            shard, end = self._plan.shard(index), _End(skip=saved.entries, skipped_frames=saved.frames)
            yield shard
            for entry in shard.entries:
                if isinstance(entry, ContainerPart):
                    members = self._decoding.source.members(entry, self._job.limits.max_bytes, end.ignored, budget)
                    with closing(read_ahead(end.count(members), count_bytes, READ_AHEAD_BYTES, budget)) as stream:
                        yield from end.pass_over(stream)
                elif entry.id not in shard.carried_over:
                    yield from end.pass_over(end.count([entry]))
            yield end


@dataclass
class _End:
    """The end of a shard's entries, and how many there were; entries that an update carries over do not count."""

    read: int = 0
    frames: int = 0  # beyond the first of their file
    ignored: Counter[str] = field(default_factory=Counter[str])  # members of containers, by reason
    skip: int = 0  # entries that the journal has, of those that come next
    skipped_frames: int = 0  # which these have

    def count(self, entries: Iterable[_Entry]) -> Generator[_Entry]:
        """Yield the same entries, and count them before anything else sees them."""
        for entry in entries:
            self.read += 1
            yield entry

    def pass_over(self, entries: Iterable[_Entry]) -> Generator[_Entry]:
        """Yield the entries but those that the journal has."""
        for entry in entries:
            if self.skip:
                self.skip -= 1
                if isinstance(entry, Member):
                    entry.release()
                continue
            yield entry


@dataclass
class _State:
    """How far a run is."""

    read: int  # outcomes, of earlier runs too
    failed: int  # in shards that are done
    done: set[int]  # shards
    kept: int  # outcomes that are on the disk
    part: PartInWork | None = None  # the one that is being written
    journal: Journal | None = None


_Entry = Item | Member | Failure
_Listed = _Entry | Shard | _End


def _resizes_on_device(job: EmbedJob, device: torch.device) -> bool:
    """Decide whether images are resized where the model runs. Raises: DeviceError for a device without doubles."""
    if job.resize == "device" and device.type == "mps":
        remedy = "Leave out `resize`."
        raise DeviceError(f"device {str(device)!r}", "computes no doubles", "one that does, to resize on", remedy)
    exact = job.decode.pixels == "exact" and job.decode.frames == "first"
    return job.resize == "device" or (job.resize == "auto" and exact and device.type == "cuda")


def make_limit_error(job: EmbedJob, allowed: int, total: int, last: str = "") -> TooManyFailuresError:
    """Return the error for more failures than a job allows; `last` tells of one."""
    found = f"more than {allowed:,} of {total:,} {job.kind} failed{'; ' if last else ''}{last}"
    expected = f"at most {job.max_failures or '0'}"  # with on_failure="stop" there is no number
    remedy = "Repair them, or raise `max_failures` and run again: finished parts are kept."
    return TooManyFailuresError(job.output, found, expected, remedy)


def _choose_processes(job: EmbedJob, workers: int, images: int | None, device: str) -> bool:
    """Decide whether processes decode, not threads."""
    if job.kind == "texts" or (job.decoders != "auto" and not job.isolate):
        return job.decoders == "processes" and job.kind != "texts"
    starved = workers > THREADS_ENOUGH or device == "cuda"
    many = images is None or images >= IMAGES_A_PROCESS * workers
    return job.isolate or (starved and many and os.name != "nt")
