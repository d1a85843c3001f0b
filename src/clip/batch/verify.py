"""verify(job): an output read back and compared with its plan, its manifest, and, for a sample, with its images.

Nothing that the run counted is believed: ids are compared one by one with the listing, vectors are looked at. Memory
holds a shard, and eight bytes for each id. Knows nothing about the command line.
"""

from __future__ import annotations

import json
import random
from bisect import bisect_right
from itertools import accumulate, groupby
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from ..encoder import unit_vectors
from ..errors import StoreError
from ..jobs.verify import Problem, VerifyReport
from ..records import ContainerPart, Failure, id_hash, listed_id
from ..store.parts import (
    EMBEDDINGS,
    FAILURES,
    IGNORED,
    PART,
    count_rows,
    read_fingerprint,
    read_metadata,
    read_part,
    vector_columns,
)
from ..store.plan import members_of, read_plan
from ..store.reader import Store, matrix
from ..text.tokens import Tokenizing
from .replay import decoding_of, encoder_of, entries_again
from .run import features_of, prepared

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..jobs.verify import VerifyJob
    from ..records import Shard
    from ..store.plan import Plan

NORM_TOLERANCE = 1e-3  # of a vector that should have length 1; float16 rounds at 5e-4
SAME_COSINE = (
    0.9995  # between a vector that stands and the one made again, in another batch, perhaps on another machine
)
CHANGED = "The image changed, or could not be reached."
MAX_NAMED = 5  # ids in one problem


def verify(job: VerifyJob) -> VerifyReport:
    """Read an output back, and say what is not as it should be.

    Raises:  StoreError where there is no output; for a sample what Encoder raises, and StoreMismatchError where its
             weights are not those of the run.
    """
    store = Store(job.output)
    plan = read_plan(store.path)
    if plan is None:
        problem = Problem(
            "_plan", "no whole listing, expected one. Run the job again: it lists, and keeps what is done."
        )
        return VerifyReport(store.path, 0, 0, 0, 0, None, (problem,))
    reader = _Reader(store, plan)
    problems = list(reader.problems())
    sampled, cosine = 0, None
    if job.sample:
        sampled, cosine, differing = _sample(job, store, plan)
        problems += differing
    return VerifyReport(store.path, reader.read, reader.written, reader.failed, sampled, cosine, tuple(problems))


class _Reader:
    """Reads all parts once."""

    def __init__(self, store: Store, plan: Plan) -> None:
        self.read = self.written = self.failed = 0
        self._store = store
        self._plan = plan
        self._hashes: list[np.ndarray] = []

    def problems(self) -> Iterator[Problem]:
        listed = 0
        for index in range(self._plan.shards):
            try:
                shard = self._plan.shard(index)
            except StoreError as exc:
                yield Problem(f"_plan/shard-{index:05}.parquet", str(exc))
                continue
            listed += len(shard.entries)
            yield from self._of_shard(shard)
        expected = {PART.format(index) for index in range(self._plan.shards)}
        for folder in (EMBEDDINGS, FAILURES):
            for path in self._store.parts(folder):
                if path.name not in expected:
                    yield Problem(f"{folder}/{path.name}", "no shard of the plan, expected none such. Remove it.")
        yield from self._of_manifest(listed)
        hashes = np.concatenate([np.empty(0, np.uint64), *self._hashes])
        repeated = len(hashes) - len(np.unique(hashes))
        if repeated and self._store.manifest["duplicate_ids"] == "error":
            yield Problem(EMBEDDINGS, f"{repeated} ids stand twice, expected each once. Run with --overwrite.")

    def _of_shard(self, shard: Shard) -> Iterator[Problem]:
        part = PART.format(shard.index)
        pack = shard.entries[0] if shard.entries and isinstance(shard.entries[0], ContainerPart) else None
        if pack is None and self._store.manifest["policies"]["frames"] == "first":
            self.read += len(shard.entries)
        try:
            rows = read_part(self._store.path / EMBEDDINGS / part)
            failures = read_part(self._store.path / FAILURES / part)
            fingerprint = read_fingerprint(self._store.path / EMBEDDINGS / part)
        except StoreError as exc:
            yield Problem(f"{EMBEDDINGS}/{part}", str(exc))
            return
        self.written += rows.num_rows
        self.failed += failures.num_rows
        if pack is None and self._store.manifest["policies"]["frames"] == "all":
            self.read += rows.num_rows + failures.num_rows  # how many frames there are is known only now
        if fingerprint != shard.fingerprint:
            yield Problem(f"{EMBEDDINGS}/{part}", "of another listing than _plan. Run the job again.")
        if not rows.schema.equals(self._store.schema):
            yield Problem(f"{EMBEDDINGS}/{part}", "its columns are not those of the manifest. Run with --overwrite.")
            return
        ids, failed = rows.column("id").to_pylist(), failures.column("id").to_pylist()
        self._hashes.append(np.array([id_hash(name) for name in (*ids, *failed)], np.uint64))
        if pack is not None:
            yield from self._of_pack(part, pack, len(ids) + len(failed))
            yield from self._of_vectors(part, ids, rows)
            return
        listed = [entry.id for entry in shard.entries]
        places = {name: place for place, name in enumerate(listed)}
        found = {listed_id(name, places) for name in (*ids, *failed)}
        yield from self._differing(part, "listed and not there", [name for name in listed if name not in found])
        yield from self._differing(part, "there and not listed", sorted(found - set(listed)))
        order = [places.get(listed_id(name, places), -1) for name in ids]
        if order != sorted(order) and self._store.manifest["duplicate_ids"] == "error":
            yield Problem(f"{EMBEDDINGS}/{part}", "not in the order of the listing. Run with --overwrite.")
        yield from self._of_vectors(part, ids, rows)

    def _of_pack(self, part: str, pack: ContainerPart, found: int) -> Iterator[Problem]:
        """What an archive or table held is known only where it tells; the ids are its own."""
        self.read += found
        ignored = sum(json.loads(read_metadata(self._store.path / EMBEDDINGS / part).get(IGNORED, b"{}")).values())
        expected = members_of(pack)
        if expected is not None and found + ignored < expected:
            what = f"{found} rows and failures of {pack.id!r} and {ignored} ignored, expected {expected} together."
            yield Problem(f"{EMBEDDINGS}/{part}", f"{what} Remove the part, and run again.")

    def _differing(self, part: str, what: str, ids: list[str]) -> Iterator[Problem]:
        if ids:
            some = ", ".join(map(repr, ids[:MAX_NAMED])) + (", ..." if len(ids) > MAX_NAMED else "")
            yield Problem(f"{EMBEDDINGS}/{part}", f"{len(ids)} ids {what}: {some}. Remove the part, and run again.")

    def _of_vectors(self, part: str, ids: list[str], rows: pa.Table) -> Iterator[Problem]:
        for name in vector_columns(self._store.schema):
            vectors = matrix(rows, self._store.schema, name).astype(np.float32)
            with np.errstate(over="ignore"):
                norms = np.linalg.norm(vectors, axis=1)
            usable = np.isfinite(vectors).all(axis=1) & (norms > 0)
            if self._store.manifest["normalised"]:
                usable &= np.abs(norms - 1) <= NORM_TOLERANCE
            for place in np.flatnonzero(~usable)[:MAX_NAMED]:
                told = f"{ids[place]!r} has a vector of norm {norms[place]} as its {name}."
                yield Problem(f"{EMBEDDINGS}/{part}", f"{told} Remove the part, run again.")

    def _of_manifest(self, listed: int) -> Iterator[Problem]:
        manifest, plan = self._store.manifest, self._plan
        if manifest["input_fingerprint"] != plan.fingerprint:
            yield Problem("manifest.json", "its input is not that of _plan. Run the job again.")
        if listed != plan.entries:
            yield Problem("_plan", f"lists {listed} entries, expected {plan.entries}. Run the job again.")
        found = {"read": self.read, "written": self.written, "failed": self.failed}
        counts = manifest["counts"]
        if counts is None:
            yield Problem("manifest.json", "the run is not over. Run the job again: it goes on.")
        elif {key: counts[key] for key in found} != found:
            yield Problem("manifest.json", f"counts {counts}, expected {found}. Run the job again.")
        if self.written + self.failed != self.read:
            what = f"{self.written} written and {self.failed} failed, expected {self.read} together. Run the job again."
            yield Problem(EMBEDDINGS, what)


def _sample(job: VerifyJob, store: Store, plan: Plan) -> tuple[int, float | None, list[Problem]]:
    """Embed some of the images again: how many, the least cosine, and what differs."""
    encoder, manifest = encoder_of(store, job.model, job.device), store.manifest
    decoding = decoding_of(store, encoder.settings)
    long_text = manifest["long_text"] or "fail"
    tokenizing = Tokenizing(manifest["kind"], encoder.context_length, long_text, encoder.tokenizer)
    parts = [
        [store.path / folder / PART.format(index) for folder in (EMBEDDINGS, FAILURES)] for index in range(plan.shards)
    ]
    starts = [0, *accumulate(sum(map(count_rows, pair)) for pair in parts)]
    picked = sorted(random.Random(job.seed).sample(range(starts[-1]), min(job.sample, starts[-1])))
    problems: list[Problem] = []
    cosines: list[float] = []
    for index, numbers in groupby(picked, key=lambda number: bisect_right(starts, number) - 1):
        rows = read_part(parts[index][0], ["id", *vector_columns(store.schema)])
        ids = rows.column("id").to_pylist()
        places: dict[str, list[int]] = {}  # several where a job keeps repeated ids
        for place, own_id in enumerate(ids):
            places.setdefault(own_id, []).append(place)
        ids += read_part(parts[index][1], ["id"]).column("id").to_pylist()
        wanted = {ids[number - starts[index]] for number in numbers}
        made = entries_again(plan.shard(index), wanted, decoding, lambda entry: prepared(entry, decoding, tokenizing))
        for again in made:
            if isinstance(again, Failure):
                if again.id in places:
                    problems.append(Problem(again.id, f"fails now ({again.message}). {CHANGED}"))
                continue
            if again.row.id not in places:
                problems.append(Problem(again.row.id, f"failed in the run, decodes now. {CHANGED}"))
                continue
            features = features_of([again], encoder)
            cosine = max(_cosine(rows.slice(place, 1), features, store) for place in places[again.row.id])
            cosines.append(cosine)
            if not cosine >= SAME_COSINE:
                problems.append(Problem(again.row.id, f"cosine {cosine:.6f} to its vector made again. It changed."))
    return len(picked), min(cosines, default=None), problems


def _cosine(row: pa.Table, features: dict[str, np.ndarray], store: Store) -> float:
    """Between what stands in a row and what is made now, the lower one of a pair's two. Shapes: features (1, D)."""
    return min(
        float(unit_vectors(matrix(row, store.schema, name).astype(np.float32))[0] @ unit_vectors(after)[0])
        for name, after in features.items()
    )
