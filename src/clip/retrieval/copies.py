"""drop_copies(...): of hits that are one image, by their files and pixels, leave the best alone.

What counts is what `clip duplicates` counts at level edited. Vectors only propose: photos of a burst are no copies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..images.edits import Sketch, find_edit
from ..jobs.duplicates import MIN_COSINE
from .looks import number_parts, read_looks

if TYPE_CHECKING:
    import pyarrow as pa

    from ..store.reader import Store
    from .looks import Looks


def drop_copies(
    store: Store, rows: pa.Table, ranked: list[tuple[int, float]], units: np.ndarray, *, fetch: bool
) -> list[tuple[int, float]]:
    """Return the places of rows and their scores, the best first, without those that are copies of a better one.

    `rows` are the columns of all rows of the output; `units` the vectors of the ranked ones. A crop of a better hit is
    dropped, the whole image of a better crop is not. An image that cannot be read stays.

    Shapes:  units float64 (N, D), of unit length.
    Raises:  StoreError where the run's listing is damaged; InputError where the folder of the images is gone.
    """
    places = np.array([place for place, _ in ranked], np.int64)
    if len(places) < 2:
        return ranked
    near = np.triu(units @ units.T >= MIN_COSINE["edited"], 1)
    wanted = np.flatnonzero(near.any(axis=0) | near.any(axis=1))
    if not len(wanted):
        return ranked
    slots = np.sort(places[wanted])
    looks = _look(store, rows, slots, fetch=fetch)
    sizes = rows.select(["width", "height"]).take(places).to_pylist()
    at = np.searchsorted(slots, places)  # of a place that is not wanted, not used
    dropped = np.zeros(len(places), np.bool_)
    for first, second in zip(*np.nonzero(near), strict=True):
        if not dropped[first] and not dropped[second]:
            sides = [(int(at[n]), sizes[n]["width"], sizes[n]["height"]) for n in (int(first), int(second))]
            dropped[second] = _is_copy(looks, *sides)
    return [pair for pair, gone in zip(ranked, dropped.tolist(), strict=True) if not gone]


def _look(store: Store, rows: pa.Table, slots: np.ndarray, *, fetch: bool) -> Looks:
    ids = np.array(rows.column("id").take(slots).to_pylist(), np.object_)
    numbers, counts = zip(*number_parts(store), strict=True)
    counts = np.diff(np.searchsorted(slots, np.cumsum([0, *counts]))).tolist()
    parts = [part for part in zip(numbers, counts, strict=True) if part[1]]
    return read_looks(store, ids, np.ones(len(ids), np.bool_), parts, fetch=fetch, tell=lambda _: None)


def _is_copy(looks: Looks, one: tuple[int, int, int], other: tuple[int, int, int]) -> bool:
    """Whether the other image is a copy, an edit or a part of the one. Each is its slot, width and height."""
    seen = [looks.table[slot] for slot, *_ in (one, other)]
    if not (seen[0]["seen"] and seen[1]["seen"]):
        return False
    if any((seen[0][name] == seen[1][name]).all() for name in ("bytes", "pixels")):
        return True
    sketches = [Sketch.of(looks.sketches[slot], width, height) for slot, width, height in (one, other)]
    match = find_edit(*sketches)
    return match is not None and (match.is_whole or not match.swapped)
