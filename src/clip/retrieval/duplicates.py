"""find_duplicates(job): the images of an output that are there several times, and which of each to keep.

The vectors propose, in one pass over all pairs (near_pairs.py); files and pixels decide (looks.py, images/edits.py),
except at level similar. Groups are the connected sets of what was found: two images may be in one group because both
are edits of a third. A crop joins the one image that it fits best. Nothing in the output or of the images is changed.
"""

from __future__ import annotations

import os
import tempfile
import time
from functools import lru_cache
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from ..errors import InputError
from ..images.edits import Sketch, find_edit
from ..jobs.duplicates import Duplicate, DuplicateGroup, DuplicatesJob, DuplicatesReport, Likeness
from .looks import Looks, number_parts, read_looks
from .near_pairs import Pairs, find_near_pairs, sample_cosines
from .scan import compute_scores
from .search import Index

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MOST_NEIGHBOURS = 256  # later rows that a row is compared with, the nearest ones
SAMPLE_PAIRS = 200_000  # for the percentile
SPOOLED = np.dtype([("first", np.uint32), ("second", np.uint32)])
READ_PAIRS = 65_536  # of the spooled ones at once
SKETCHES = 4_096  # kept in memory, 50 KB each


class _Sets:
    """Which rows belong together: union-find."""

    def __init__(self, count: int) -> None:
        self._parents = np.arange(count, dtype=np.int64)

    def find(self, row: int) -> int:
        """Return the row that stands for a row's set, the lowest one."""
        parents = self._parents
        while parents[row] != row:
            parents[row] = parents[parents[row]]
            row = int(parents[row])
        return row

    def unite(self, one: int, other: int) -> None:
        """Make one set of those of two rows."""
        low, high = sorted((self.find(one), self.find(other)))
        self._parents[high] = low

    def list_groups(self) -> Iterator[np.ndarray]:
        """Yield the rows of each set of two or more, both in ascending order."""
        roots = self._parents
        while (roots != roots[roots]).any():
            roots = roots[roots]
        members = np.flatnonzero(np.bincount(roots, minlength=len(roots))[roots] > 1)
        members = members[np.argsort(roots[members], kind="stable")]
        yield from np.split(members, np.flatnonzero(np.diff(roots[members])) + 1) if len(members) else ()


def find_duplicates(
    job: DuplicatesJob,
    each: Callable[[DuplicateGroup], None] | None = None,
    tell: Callable[[str], None] = lambda _: None,
    progress: Callable[[str, int, int], None] = lambda _what, _done, _total: None,
) -> DuplicatesReport:
    """Find the groups of duplicates in an output; with `each` it is called with each group, and none are returned.

    `progress` is called with what is counted ("rows compared", "images read", "pairs looked at"), how many are done and
    of how many. `tell` is Index's.

    Raises:  as Index; InputError for an output of texts, and where the images are gone; StoreError.
    """
    started = time.monotonic()
    index = Index(job.output, exact=True, root=job.root, tell=tell)
    if index.store.manifest.kind == "texts":
        raise InputError("`output`", f"{index.store.path} holds texts", "images", "Pass an output of images.")
    codes = index.codes
    cosines = sample_cosines(codes, SAMPLE_PAIRS)
    percentile = 100 * float(np.searchsorted(cosines, job.bound)) / max(1, len(cosines))
    sets = _Sets(len(index))
    with tempfile.TemporaryFile(prefix="clip-pairs-") as spool:
        search = _Search(job, index, sets, spool, progress)
        search.propose()
        looks = None if job.level == "similar" else search.verify()
        groups: list[DuplicateGroup] = []
        count = duplicates = 0
        for count, rows in enumerate(sets.list_groups(), 1):
            group = search.describe(count, rows, looks)
            duplicates += len(rows) - 1
            (each or groups.append)(group)
    unreadable = 0 if looks is None else int(np.count_nonzero(~looks.table["seen"]))
    seconds = time.monotonic() - started
    return DuplicatesReport(
        *(len(index), job.level, job.bound, percentile, search.proposed, tuple(groups), duplicates, count),
        *(unreadable, search.crowded, seconds),
    )


class _Search:
    """One search for duplicates, step by step."""

    def __init__(
        self, job: DuplicatesJob, index: Index, sets: _Sets, spool: BinaryIO, progress: Callable[[str, int, int], None]
    ) -> None:
        self._job, self._index, self._sets, self._spool, self._progress = job, index, sets, spool, progress
        names = ("width", "height", "size_bytes")
        self._sizes = np.stack([index.rows.column(name).to_numpy() for name in names], axis=1).astype(np.int64)
        self._slots = np.empty(0, np.int64)  # rows that have looks, in ascending order
        self.proposed = self.crowded = 0

    def propose(self) -> None:
        """Find the pairs that may be duplicates: unite them at level similar, else write them to the spool."""
        rows = len(self._index)
        codes = self._index.codes
        tell = lambda done: self._progress("rows compared", done, rows)  # noqa: E731
        for pairs in find_near_pairs(codes, self._job.bound, most=MOST_NEIGHBOURS, tell=tell):
            self.crowded += pairs.crowded
            first, second = self._keep_near(pairs)
            if self._job.level == "same":
                alike = (self._sizes[first, :2] == self._sizes[second, :2]).all(axis=1)
                first, second = first[alike], second[alike]
            self.proposed += len(first)
            if self._job.level == "similar":
                for one, other in zip(first.tolist(), second.tolist(), strict=True):
                    self._sets.unite(one, other)
            else:
                block = np.empty(len(first), SPOOLED)
                block["first"], block["second"] = first, second
                self._spool.write(block.tobytes())

    def _keep_near(self, pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
        """Leave out the pairs whose cosine is below the bound by the vectors as they are stored."""
        sure = pairs.cosine >= self._job.bound + 2e-3  # far above what rounding explains
        near = sure.copy()
        for place in np.flatnonzero(~sure).tolist():
            near[place] = self._score(int(pairs.first[place]), int(pairs.second[place])) >= self._job.bound
        return pairs.first[near], pairs.second[near]

    def _score(self, one: int, other: int) -> float:
        vectors = (self._index.read_vector(row) for row in (one, other))
        return float(compute_scores(next(vectors)[None], next(vectors))[0])

    def _read_spool(self) -> Iterator[np.ndarray]:
        self._spool.seek(0)
        while data := self._spool.read(READ_PAIRS * SPOOLED.itemsize):
            yield np.frombuffer(data, SPOOLED)

    def verify(self) -> Looks:
        """Unite the pairs whose files, pixels or sketches say that they are duplicates; return the looks."""
        rows = len(self._index)
        wanted, exact = np.zeros(rows, np.bool_), np.zeros(rows, np.bool_)
        for block in self._read_spool():
            first, second = block["first"], block["second"]
            alike = (self._sizes[first, :2] == self._sizes[second, :2]).all(axis=1)
            for side in (first, second):
                wanted[side] = True
                exact[side[alike]] = True
        self._slots = np.flatnonzero(wanted)
        ids = np.array(self._index.rows.column("id").take(self._slots).to_pylist(), np.object_)
        numbers, counts = zip(*number_parts(self._index.store), strict=True)
        counts = np.diff(np.searchsorted(self._slots, np.cumsum([0, *counts]))).tolist()
        parts = [part for part in zip(numbers, counts, strict=True) if part[1]]
        tell = lambda done: self._progress("images read", done, len(ids))  # noqa: E731
        looks = read_looks(self._index.store, ids, exact[self._slots], parts, fetch=self._job.fetch, tell=tell)
        self._compare(looks)
        return looks

    def _compare(self, looks: Looks) -> None:
        """Unite the pairs that are duplicates by their looks, equal ones first: they need no comparison."""
        seen = looks.table["seen"]
        for block, one, other in self._read_pairs():
            equal = seen[one] & seen[other]
            equal &= _are_equal(looks.table["bytes"], one, other) | _are_equal(looks.table["pixels"], one, other)
            for pair in block[equal].tolist():
                self._sets.unite(*pair)
        if self._job.level != "edited":
            return

        @lru_cache(SKETCHES)
        def sketch(slot: int) -> Sketch:
            width, height, _ = self._sizes[self._slots[slot]].tolist()
            return Sketch.of(looks.sketches[slot], width, height)

        parents: dict[int, tuple[float, int]] = {}  # of a crop: how well it fits into which other image
        done = 0
        for block, one, other in self._read_pairs():
            for (first, second), a, b in zip(block.tolist(), one.tolist(), other.tolist(), strict=True):
                done += 1
                if not (seen[a] and seen[b]) or self._sets.find(first) == self._sets.find(second):
                    continue
                match = find_edit(sketch(a), sketch(b))
                if match is not None and match.is_whole:
                    self._sets.unite(first, second)
                elif match is not None:
                    part, whole = (first, second) if match.swapped else (second, first)
                    parents[part] = max(parents.get(part, (0.0, 0)), (match.correlation, whole))
                self._progress("pairs looked at", done, self.proposed)
        self._add_crops(parents)

    def _add_crops(self, parents: dict[int, tuple[float, int]]) -> None:
        """Unite each set of crops with the one image that they fit best.

        With one alone, as what two photos of a burst share is a crop of both.
        """
        best: dict[int, tuple[float, int]] = {}
        for part, parent in parents.items():
            root = self._sets.find(part)
            if root != self._sets.find(parent[1]):
                best[root] = max(best.get(root, (0.0, 0)), parent)
        for root, (_, whole) in best.items():
            self._sets.unite(root, whole)

    def _read_pairs(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yield the proposed pairs, and the places of the looks of their first and second rows."""
        for block in self._read_spool():
            yield block, np.searchsorted(self._slots, block["first"]), np.searchsorted(self._slots, block["second"])

    def describe(self, number: int, rows: np.ndarray, looks: Looks | None) -> DuplicateGroup:
        """Return a group: the one to keep, then the others."""
        taken = self._index.rows.select(["id", "path"]).take(rows)
        ids = taken.column("id").to_pylist()
        paths = [self._index.store.locate(path) for path in taken.column("path").to_pylist()]
        found = None if looks is None else looks.table[np.searchsorted(self._slots, rows)]
        times = [0] * len(rows) if found is None else found["modified_ns"].tolist()
        sizes = self._sizes[rows].tolist()
        keys = [(-width * height, -size, times[n], ids[n]) for n, (width, height, size) in enumerate(sizes)]
        best = min(range(len(rows)), key=keys.__getitem__)
        vector = self._index.read_vector(int(rows[best]))

        def make(n: int) -> Duplicate:
            cosine = 1.0 if n == best else float(compute_scores(self._index.read_vector(int(rows[n]))[None], vector)[0])
            like: Likeness = "similar"
            removable = False
            if found is not None:
                like = _name_likeness(found[best], found[n])
                removable = n != best and bool(found[n]["own"]) and _is_other_file(paths[n], paths[best])
            width, height, size = sizes[n]
            return Duplicate(ids[n], paths[n], n == best, like, cosine, width, height, size, removable)

        return DuplicateGroup(number, tuple(make(n) for n in (best, *(n for n in range(len(rows)) if n != best))))


def _name_likeness(kept: np.void, other: np.void) -> Likeness:
    """Return how an image is like the one to keep."""
    if (kept["bytes"] == other["bytes"]).all():
        return "bytes"
    return "pixels" if kept["pixels"].any() and (kept["pixels"] == other["pixels"]).all() else "edited"


def _is_other_file(path: str, kept: str) -> bool:
    """Whether a path leads to another file than that of a path to keep, whose content is there without it."""
    try:
        status, status_kept = os.stat(path), os.stat(kept)  # noqa: PTH116  of texts, as elsewhere
    except OSError:
        return False  # gone, or its name is not UTF-8 and is spelt otherwise in OUT
    same = os.path.samestat(status, status_kept)
    return os.path.realpath(path) != os.path.realpath(kept) and (not same or status.st_nlink > 1)


def _are_equal(digests: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return which pairs have the same digest, of those that have one. Shapes: (N, 16), (M,), (M,) -> bool (M,)."""
    return (digests[one] == digests[other]).all(axis=1) & digests[one].any(axis=1)
