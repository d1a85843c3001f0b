"""verify(job): an output read back and compared with its plan, its manifest, and, for a sample, with its pictures.

Nothing that the run counted is believed: ids are compared one by one with the listing, vectors are looked at. Memory
holds a shard, and eight bytes for each id. Knows nothing about the command line.
"""

from __future__ import annotations

import hashlib
import random
from bisect import bisect_right
from itertools import accumulate, groupby
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from clip.decoders import Decoding
from clip.encoder import Encoder, unit_vectors
from clip.errors import StoreError
from clip.items import Failure, Guards, Pixels, Policies
from clip.jobs import Problem, VerifyReport
from clip.plan import read_plan
from clip.sources import FolderSource
from clip.store import EMBEDDINGS, FAILURES, PART, read_mark, read_part
from clip.stored import Store, matrix

if TYPE_CHECKING:
    from collections.abc import Iterator

    from clip.items import Item, Shard
    from clip.jobs import VerifyJob
    from clip.plan import Plan

NORM_TOLERANCE = 1e-3  # of a vector that should have length 1; float16 rounds at 5e-4
SAME_COSINE = (
    0.9995  # between a vector that stands and the one made again, in another batch, perhaps on another machine
)
MAX_NAMED = 5  # ids in one problem


def verify(job: VerifyJob) -> VerifyReport:
    """Read an output back, and say what is not as it should be.

    Raises:  StoreError where there is no output; for a sample what Encoder raises, and StoreError where its weights are
             not those of the run.
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
    return VerifyReport(store.path, plan.entries, reader.written, reader.failed, sampled, cosine, tuple(problems))


class _Reader:
    """Reads all parts once."""

    def __init__(self, store: Store, plan: Plan) -> None:
        self.written = self.failed = 0
        self._store = store
        self._plan = plan
        self._hashes: list[np.ndarray] = []

    def problems(self) -> Iterator[Problem]:
        listed = 0
        for index in range(self._plan.shards):
            try:
                shard = self._plan.shard(index)
            except (OSError, pa.ArrowException) as exc:
                yield Problem(f"_plan/shard-{index:05}.parquet", f"cannot be read ({exc}). Run the job again.")
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
        if repeated:
            yield Problem(EMBEDDINGS, f"{repeated} ids stand twice, expected each once. Run with --overwrite.")

    def _of_shard(self, shard: Shard) -> Iterator[Problem]:
        part = PART.format(shard.index)
        try:
            rows = read_part(self._store.path / EMBEDDINGS / part)
            failures = read_part(self._store.path / FAILURES / part)
            mark = read_mark(self._store.path / EMBEDDINGS / part)
        except StoreError as exc:
            yield Problem(f"{EMBEDDINGS}/{part}", str(exc))
            return
        self.written += rows.num_rows
        self.failed += failures.num_rows
        if mark != self._plan.outline(shard.index).mark:
            yield Problem(f"{EMBEDDINGS}/{part}", "of another listing than _plan. Run the job again.")
        if not rows.schema.equals(self._store.schema):
            yield Problem(f"{EMBEDDINGS}/{part}", "its columns are not those of the manifest. Run with --overwrite.")
            return
        ids, failed = rows.column("id").to_pylist(), failures.column("id").to_pylist()
        self._hashes.append(np.array([hash_of(name) for name in (*ids, *failed)], np.uint64))
        listed = [entry.id for entry in shard.entries]
        found = set(ids) | set(failed)
        yield from self._differing(part, "listed and not there", [name for name in listed if name not in found])
        yield from self._differing(part, "there and not listed", sorted(found - set(listed)))
        places = {name: place for place, name in enumerate(listed)}
        order = [places.get(name, -1) for name in ids]
        if order != sorted(order):
            yield Problem(f"{EMBEDDINGS}/{part}", "not in the order of the listing. Run with --overwrite.")
        yield from self._of_vectors(part, ids, rows)

    def _differing(self, part: str, what: str, ids: list[str]) -> Iterator[Problem]:
        if ids:
            some = ", ".join(map(repr, ids[:MAX_NAMED])) + (", ..." if len(ids) > MAX_NAMED else "")
            yield Problem(f"{EMBEDDINGS}/{part}", f"{len(ids)} ids {what}: {some}. Remove the part, and run again.")

    def _of_vectors(self, part: str, ids: list[str], rows: pa.Table) -> Iterator[Problem]:
        vectors = matrix(rows, self._store.schema).astype(np.float32)
        with np.errstate(over="ignore"):
            norms = np.linalg.norm(vectors, axis=1)
        usable = np.isfinite(vectors).all(axis=1) & (norms > 0)
        if self._store.manifest["normalised"]:
            usable &= np.abs(norms - 1) <= NORM_TOLERANCE
        for place in np.flatnonzero(~usable)[:MAX_NAMED]:
            yield Problem(
                f"{EMBEDDINGS}/{part}",
                f"{ids[place]!r} has a vector of norm {norms[place]}. Remove the part, run again.",
            )

    def _of_manifest(self, listed: int) -> Iterator[Problem]:
        manifest, plan = self._store.manifest, self._plan
        if manifest["input_fingerprint"] != plan.fingerprint:
            yield Problem("manifest.json", "its input is not that of _plan. Run the job again.")
        if listed != plan.entries:
            yield Problem("_plan", f"lists {listed} entries, expected {plan.entries}. Run the job again.")
        found = {"read": plan.entries, "written": self.written, "failed": self.failed}
        counts = manifest["counts"]
        if counts is None:
            yield Problem("manifest.json", "the run is not over. Run the job again: it goes on.")
        elif {key: counts[key] for key in found} != found:
            yield Problem("manifest.json", f"counts {counts}, expected {found}. Run the job again.")
        if self.written + self.failed != plan.entries:
            what = (
                f"{self.written} written and {self.failed} failed, expected {plan.entries} together. Run the job again."
            )
            yield Problem(EMBEDDINGS, what)


def hash_of(name: str) -> int:
    """Eight bytes of an id, the same in every process."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def _sample(job: VerifyJob, store: Store, plan: Plan) -> tuple[int, float | None, list[Problem]]:
    """Embed some of the pictures again: how many, the least cosine, and what differs."""
    encoder = _encoder_of(job, store)
    source = FolderSource(str(store.manifest["source"]))
    picked = sorted(random.Random(job.seed).sample(range(plan.entries), min(job.sample, plan.entries)))
    problems: list[Problem] = []
    cosines: list[float] = []
    decoding = Decoding(source, encoder.settings, Guards(**store.manifest["guards"]), Policies())
    starts = [0, *accumulate(told.entries for told in plan.outlines())]
    for index, numbers in groupby(picked, key=lambda number: bisect_right(starts, number) - 1):
        entries = plan.shard(index).entries
        rows = read_part(store.path / EMBEDDINGS / PART.format(index), ["id", "embedding"])
        standing = dict(zip(rows.column("id").to_pylist(), matrix(rows, store.schema).astype(np.float32), strict=True))
        for entry in (entries[number - starts[index]] for number in numbers):
            again = entry if isinstance(entry, Failure) else _its_own(entry, decoding(entry))
            before = standing.get(entry.id)
            if before is None or isinstance(again, Failure):
                if (before is None) != isinstance(again, Failure):
                    what = (
                        f"fails now ({again.message})"
                        if isinstance(again, Failure)
                        else "failed in the run, decodes now"
                    )
                    problems.append(Problem(entry.id, f"{what}. The picture changed, or could not be reached."))
                continue
            after = encoder.encode_pixels(again.array[None])
            cosine = float(unit_vectors(before[None])[0] @ unit_vectors(after)[0])
            cosines.append(cosine)
            if not cosine >= SAME_COSINE:
                problems.append(
                    Problem(entry.id, f"cosine {cosine:.6f} to its vector made again. The picture changed.")
                )
    return len(picked), min(cosines, default=None), problems


def _its_own(entry: Item, found: list[Pixels | Failure]) -> Pixels | Failure:
    """Of what a file gives, that of this entry's id."""
    for outcome in found:
        if (outcome.row.id if isinstance(outcome, Pixels) else outcome.id) == entry.id:
            return outcome
    return Failure(entry.id, entry.path, "decode", "ImageError", "the file has no such frame")


def _encoder_of(job: VerifyJob, store: Store) -> Encoder:
    """The model that the run had. Raises: StoreError where the weights found are others."""
    manifest = store.manifest
    kind, _, seed = manifest["weights_source"].partition("untrained:")
    untrained = int(seed) if seed and not kind else None
    encoder = Encoder(
        job.model or manifest["model"], device=job.device, precision=manifest["precision"], untrained=untrained
    )
    if encoder.weights_sha256 != manifest["weights_sha256"]:
        raise StoreError(
            f"{store.path}: weights of {encoder.model_name} have sha256 {encoder.weights_sha256}, expected "
            f"{manifest['weights_sha256']}. Pass the run's weights with -m."
        )
    return encoder
