"""verify(job): read an output back and compare it with its plan, its manifest, and, for a sample, with its images.

No count of the run is trusted: ids are compared one by one with the listing, vectors are checked. Memory holds a shard,
and eight bytes for each id.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from dataclasses import replace
from itertools import accumulate, groupby
from typing import TYPE_CHECKING, cast

import numpy as np
import pyarrow as pa

from ..engine.quantize import Calibration
from ..errors import InputError, StoreError
from ..jobs.verify import Problem, VerifyJob, VerifyReport
from ..records import Failure, Pixels, Shard, id_hash, listed_id
from ..store.derived import check_derived, find_foreign
from ..store.manifest import CALIBRATION, INDEX, MANIFEST, read_calibration
from ..store.parts import EMBEDDINGS, FAILURES, PART, stack_vectors, vector_columns
from ..store.plan import Plan, read_plan
from ..store.reader import Store
from ..text.tokens import Tokenizing
from ..vectors import unit_vectors
from .count import Expected, count_shard
from .encoders import encode_batch
from .prepare import Preparing, prepare_entry
from .replay import NotAsked, load_run_encoder, open_run_source, replay_entries

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from ..jobs.options import LongText

NORM_TOLERANCE = 1e-3  # of a vector that should have length 1; float16 rounds at 5e-4
SAME_COSINE = 0.9995  # between a stored vector and one made again, in another batch, perhaps on another machine
CHANGED = "The image changed, or cannot be reached."
AGAIN = "Run the job again with overwrite."
REMOVE = "Remove the part, and run the job again."
MAX_NAMED = 5  # ids in one problem


def verify(job: VerifyJob) -> VerifyReport:
    """Read an output back, and report what is wrong with it.

    Raises:  StoreError where there is no output; for a sample what Encoder raises, and StoreMismatchError for other
             weights than those of the run.
    """
    store = Store(job.output, job.root)
    problems = [
        Problem(f"{INDEX}/{path.name}" if path.parent == store.path / INDEX else str(path), exc.reason)
        for path, exc in check_derived(store)
    ]
    if store.manifest.calibration is not None:
        pixels = read_calibration(store.path)
        if pixels is None or Calibration(pixels).sha256 != store.manifest.calibration["sha256"]:
            problems.append(Problem(CALIBRATION, f"is not as it was written. {AGAIN}"))
    try:
        plan = read_plan(store.path)
        what = "holds no complete listing. Run the job again: it lists the input, and keeps finished parts."
    except StoreError as exc:
        plan, what = None, str(exc)
    if plan is None:
        return VerifyReport(store.path, 0, 0, 0, 0, None, (*problems, Problem("_plan", what)))
    reader = _Reader(store, plan)
    problems += reader.problems()
    sampled, cosine = 0, None
    if job.sample:
        sampled, cosine, of_sample = _check_sample(job, store, plan)
        problems += of_sample
    counts = (reader.read, reader.written, reader.failed, sampled, cosine)
    return VerifyReport(store.path, *counts, tuple(problems), tuple(_list_notes(store, reader.unchecked)))


def _list_notes(store: Store, unchecked: int) -> Iterator[str]:
    if unchecked:
        yield f"{unchecked:,} files carry no checksum, as of version 0.1.0: a change of a bit in them is not found"
    if foreign := find_foreign(store.path):
        yield f"passed over, as none of ours: {_join_some(foreign)}"


def _join_some(names: list[str]) -> str:
    return ", ".join(map(repr, names[:MAX_NAMED])) + (", ..." if len(names) > MAX_NAMED else "")


class _Reader:
    """Reads all parts once, and collects the problems."""

    def __init__(self, store: Store, plan: Plan) -> None:
        self.read = self.written = self.failed = 0
        self.unchecked = 0  # files that carry no checksum
        self._store = store
        self._plan = plan
        self._missing: list[int] = []  # shards without one of their files
        self._hashes: list[np.ndarray] = []

    def problems(self) -> Iterator[Problem]:
        listed = 0
        for index in range(self._plan.shards):
            try:
                self._plan.check(index)
                shard = self._plan.shard(index)
            except StoreError as exc:
                yield Problem(f"_plan/shard-{index:05}.parquet", str(exc))
                continue
            listed += len(shard.entries)
            paths = [self._store.files.path(folder, index) for folder in (EMBEDDINGS, FAILURES)]
            if self._store.files.has(index) or any(path.is_symlink() for path in paths):
                yield from self._check_shard(shard)
            else:
                self._missing.append(index)
        if self._missing:
            yield self._name_missing()
        names = {PART.format(index) for index in range(self._plan.shards)}
        for folder in (EMBEDDINGS, FAILURES):
            for path in self._store.parts(folder):
                if path.name not in names:
                    yield Problem(f"{folder}/{path.name}", "belongs to no shard of the plan. Remove it.")
        yield from self._check_manifest(listed)
        hashes = np.concatenate([np.empty(0, np.uint64), *self._hashes])
        repeated = len(hashes) - len(np.unique(hashes))
        if repeated and self._store.manifest.duplicate_ids == "error":
            yield Problem(EMBEDDINGS, f"{repeated} ids occur twice, expected once. {AGAIN}")

    def _name_missing(self) -> Problem:
        """Say which parts are not there, and where processes share the run, which of them have to do more."""
        count, parts = len(self._missing), self._store.manifest.parts
        numbers = ", ".join(f"{index:05}" for index in self._missing[:MAX_NAMED]) + (
            ", ..." if count > MAX_NAMED else ""
        )
        what = f"{count:,} of {self._plan.shards:,} parts are not there: {numbers}."
        first, *_ = self._store.files.find_missing(self._missing[0])
        where = EMBEDDINGS if count > 1 else f"{first.parent.name}/{first.name}"
        if not parts:
            return Problem(where, f"{what} Run the job again.")
        shares = sorted({index % parts for index in self._missing})
        names = ", ".join(f"{share}/{parts}" for share in shares[:MAX_NAMED])
        more = f" and {len(shares) - MAX_NAMED:,} more of {parts:,}" if len(shares) > MAX_NAMED else ""
        return Problem(where, f"{what} Run the job again as part {names}{more}.")

    def _check_shard(self, shard: Shard) -> Iterator[Problem]:
        part = PART.format(shard.index)
        where = f"{EMBEDDINGS}/{part}"
        expected = Expected.of(shard)
        frames = self._store.manifest.decode.frames
        counted_by_plan = expected.container is None and frames == "first"
        self.read += (expected.entries or 0) if counted_by_plan else 0
        # What the checksums find is a problem by itself; the rest then says what it is about, where it can be read.
        damaged = yield from self._check_bytes(part)
        files = replace(self._store.files, run=None) if damaged else self._store.files
        try:
            rows, failures = (files.read(files.path(folder, shard.index)) for folder in (EMBEDDINGS, FAILURES))
            fingerprint = files.summarise(files.path(EMBEDDINGS, shard.index)).fingerprint
            count = count_shard(files, shard.index, expected)
        except StoreError as exc:
            if not damaged:
                yield Problem(where, str(exc))
            return
        self.written += rows.num_rows
        self.failed += failures.num_rows
        if not counted_by_plan:  # as many as were read; parts of version 0.1.0 do not say
            self.read += rows.num_rows + failures.num_rows if count.read is None else count.read
        if fingerprint != shard.fingerprint:
            yield Problem(where, "was made from another listing than _plan. Run the job again.")
        if not rows.schema.equals(self._store.schema):
            yield Problem(where, f"has other columns than the manifest says. {AGAIN}")
            return
        count = replace(count, rows=rows.num_rows, failures=failures.num_rows)  # as read, whatever the footers say
        if error := count.find_error(expected, frames):
            yield Problem(where, f"holds {error}. {REMOVE}")
        ids, failed = rows.column("id").to_pylist(), failures.column("id").to_pylist()
        self._hashes.append(np.array([id_hash(name) for name in (*ids, *failed)], np.uint64))
        if expected.container is None:
            yield from self._check_ids(part, shard, ids, failed)
        yield from self._check_vectors(part, ids, rows)

    def _check_bytes(self, part: str) -> Generator[Problem, None, bool]:
        """Compare the two files of a shard with their checksums; return whether there is a problem."""
        damaged = False
        for folder in (EMBEDDINGS, FAILURES):
            try:
                self.unchecked += not self._store.files.check(self._store.path / folder / part)
            except StoreError as exc:
                damaged = True
                yield Problem(f"{folder}/{part}", str(exc))
        return damaged

    def _check_ids(self, part: str, shard: Shard, ids: list[str], failed: list[str]) -> Iterator[Problem]:
        listed = [entry.id for entry in shard.entries]
        places = {name: place for place, name in enumerate(listed)}
        present = {listed_id(name, places) for name in (*ids, *failed)}
        yield from self._name_ids(part, "are listed and missing", [name for name in listed if name not in present])
        yield from self._name_ids(part, "are not listed", sorted(present - set(listed)))
        order = [places.get(listed_id(name, places), -1) for name in ids]
        if order != sorted(order) and self._store.manifest.duplicate_ids == "error":
            yield Problem(f"{EMBEDDINGS}/{part}", f"its rows are not in the order of the listing. {AGAIN}")

    def _name_ids(self, part: str, what: str, ids: list[str]) -> Iterator[Problem]:
        if ids:
            yield Problem(f"{EMBEDDINGS}/{part}", f"{len(ids)} ids {what}: {_join_some(ids)}. {REMOVE}")

    def _check_vectors(self, part: str, ids: list[str], rows: pa.Table) -> Iterator[Problem]:
        for name in vector_columns(self._store.schema):
            vectors = stack_vectors(rows, self._store.schema, name).astype(np.float32)
            with np.errstate(over="ignore"):
                norms = np.linalg.norm(vectors, axis=1)
            usable = np.isfinite(vectors).all(axis=1) & (norms > 0)
            if self._store.manifest.normalised:
                usable &= np.abs(norms - 1) <= NORM_TOLERANCE
            for place in np.flatnonzero(~usable)[:MAX_NAMED]:
                what = f"{ids[place]!r} has a vector of norm {norms[place]} as its {name}."
                yield Problem(f"{EMBEDDINGS}/{part}", f"{what} {REMOVE}")

    def _check_manifest(self, listed: int) -> Iterator[Problem]:
        manifest, plan = self._store.manifest, self._plan
        if manifest.input_fingerprint != plan.fingerprint:
            yield Problem(MANIFEST, "is of another input than _plan. Run the job again.")
        if listed != plan.entries:
            yield Problem("_plan", f"lists {listed} entries, expected {plan.entries}. Run the job again.")
        counts = {"read": self.read, "written": self.written, "failed": self.failed}
        if manifest.counts is None:
            yield Problem(MANIFEST, "the run is not finished. Run the job again to resume it.")
        elif {key: manifest.counts[key] for key in counts} != counts:
            yield Problem(MANIFEST, f"counts {manifest.counts}, expected {counts}. Run the job again.")
        if self.read != self.written + self.failed:
            outcomes = f"{self.written:,} rows and {self.failed:,} failures"
            yield Problem(EMBEDDINGS, f"holds {outcomes}, expected {self.read:,} together. Run the job again.")


def _check_sample(job: VerifyJob, store: Store, plan: Plan) -> tuple[int, float | None, list[Problem]]:
    """Embed some of the images again; return how many, the lowest cosine, and the problems."""
    encoder = load_run_encoder(store, job.model, job.device)
    decoding = open_run_source(store, encoder.settings)
    long_text = cast("LongText", store.manifest.long_text or "fail")
    tokenizing = Tokenizing(store.manifest.kind, encoder.context_length, long_text, encoder.tokenizer)
    preparing = Preparing(tokenizing, decoding.decode_chunk)
    files = store.files
    parts = [[files.path(folder, index) for folder in (EMBEDDINGS, FAILURES)] for index in range(plan.shards)]
    starts = [0, *accumulate(sum(files.summarise(path).rows for path in pair) for pair in parts)]
    picked = sorted(random.Random(job.seed).sample(range(starts[-1]), min(job.sample, starts[-1])))
    problems: list[Problem] = []
    cosines: list[float] = []
    for index, numbers in groupby(picked, key=lambda number: bisect_right(starts, number) - 1):
        rows = files.read(parts[index][0], ["id", *vector_columns(store.schema)])
        ids = rows.column("id").to_pylist()
        places: dict[str, list[int]] = {}  # several where a job keeps repeated ids
        for place, own_id in enumerate(ids):
            places.setdefault(own_id, []).append(place)
        ids += files.read(parts[index][1], ["id"]).column("id").to_pylist()
        wanted = {ids[number - starts[index]] for number in numbers}
        replayed = replay_entries(
            plan.shard(index), wanted, decoding, lambda entry: prepare_entry(entry, preparing), fetch=job.fetch
        )
        for again in replayed:
            if isinstance(again, NotAsked):
                remedy = "Pass `fetch=True` to ask it, or leave `sample` out."
                raise InputError("`sample`", f"{again.path} is on a server", "images on this machine", remedy)
            if isinstance(again, Failure):
                if again.id in places:
                    problems.append(Problem(again.id, f"fails now ({again.message}). {CHANGED}"))
                continue
            if again.row.id not in places:
                problems.append(Problem(again.row.id, f"failed in the run, and is decoded now. {CHANGED}"))
                continue
            crops = again.array[None] if isinstance(again, Pixels) else None
            features = encode_batch(crops, None if again.tokens is None else again.tokens[None], encoder)
            cosine = max(_cosine(rows.slice(place, 1), features, store) for place in places[again.row.id])
            cosines.append(cosine)
            if not cosine >= SAME_COSINE:
                problems.append(Problem(again.row.id, f"has cosine {cosine:.6f} to its vector made again. It changed."))
    return len(picked), min(cosines, default=None), problems


def _cosine(row: pa.Table, features: dict[str, np.ndarray], store: Store) -> float:
    """Return the cosine of a row's vector to a new one, of a pair the lower of the two. Shapes: features (1, D)."""
    return min(
        float(unit_vectors(stack_vectors(row, store.schema, name).astype(np.float32))[0] @ unit_vectors(after)[0])
        for name, after in features.items()
    )
