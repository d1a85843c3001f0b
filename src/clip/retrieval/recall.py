"""Measure what an IVF index finds of the true nearest rows, and choose how much a search reads.

Queries are 200 rows of the output, each searched without itself, and 200 texts: apart, as a model puts texts elsewhere
than images, so that the rows near a text are spread over more lists. The truth is the exact search's: a product with
all vectors as they are stored.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..vectors import unit_vectors
from .ivf_file import MEASURED_HITS, Effort, IvfIndex
from .scan import compute_scores

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..store.rows_file import RowsFile

    Tell = Callable[[str, int, int], None]

TEXTS = Path(__file__).with_name("text_queries.txt")
QUERIES = 200
SEED = 2
BLOCK_ROWS = 8_192  # of vectors that are multiplied at once: 17 MB for 512 numbers
EXTRA_ROWS = 22  # beyond the ten nearest and the row itself, so that rounding to fp32 loses none
WAITING_PAIRS = 2**20  # of query and row, before the nearest are kept
MARGIN = 0.2  # of the misses that a target allows; what is chosen by some queries does a little worse with others
STEP = 1.25  # from one number of lists to the next that is tried
MOST_AGAIN = 4_096
AGAIN = (
    *(10, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128, 160, 192, 256, 320, 384, 512, 640, 768, 1_024, 1_280, 1_536),
    *(2_048, 3_072, MOST_AGAIN),
)
UNMEASURED_LISTS = 4  # times as many for texts as for rows, where no model is at hand


@dataclass(frozen=True)
class Truth:
    """A query, and the rows that are truly nearest to it."""

    query: np.ndarray  # float64 (D,), of unit length
    own: int  # the row that it is, which is left out; -1 for none
    places: np.ndarray  # int64 (M,), where M is 10, more with ties, fewer in a small output
    lowest: float  # score of the tenth

    def count_found(self, places: np.ndarray, scores: np.ndarray) -> float:
        """Return the share of the ten nearest that are among some rows, 0..1."""
        return _share(np.count_nonzero((scores >= self.lowest) & (places != self.own)), len(self.places))


def read_text_queries() -> list[str]:
    """Return 200 texts as people search for."""
    return TEXTS.read_text("utf-8").splitlines()


def measure(index: IvfIndex, texts: np.ndarray | None, target: float, tell: Tell) -> dict[str, dict[str, Any]]:
    """Return what an index finds, by "rows" and "texts", with how much a search has to read for it.

    Shapes:  texts float (T, D), of unit length; None where no model is at hand.
    Raises:  StoreError for a damaged index.
    """
    rows = index.rows
    own = np.sort(np.random.default_rng(SEED).choice(len(rows), min(QUERIES, len(rows)), replace=False))
    queries = unit_vectors(rows.read_vectors(own).astype(np.float64))
    kinds = {"rows": [*zip(queries, own.tolist(), strict=True)] if len(rows) > 1 else []}
    kinds["texts"] = [] if texts is None else [(query.astype(np.float64), -1) for query in texts]
    truths = iter(find_truth(rows, [pair for some in kinds.values() for pair in some], tell))
    every = Effort(len(index.centroids), MOST_AGAIN)
    found: dict[str, dict[str, Any]] = {}
    for name, some in kinds.items():
        mine = [next(truths) for _ in some]
        if mine:
            found[name] = _describe(index, mine, _choose(index, mine, target), tell)
        else:
            like = found.get("rows")
            lists = every.lists if like is None else min(every.lists, UNMEASURED_LISTS * like["lists"])
            found[name] = {
                **{"count": 0, "recall": 0.0, "lists": lists, "again": every.again if like is None else like["again"]},
                **{"share": lists / every.lists, "milliseconds": 0.0},
            }
    return found


def find_truth(rows: RowsFile, queries: Sequence[tuple[np.ndarray, int]], tell: Tell) -> list[Truth]:
    """Return the truth of queries, each with the row that it is, or -1: exact, in one pass over all vectors.

    Shapes:  queries float64 (D,), of unit length.
    """
    if not queries:
        return []
    wide = np.stack([query for query, _ in queries])
    narrow = wide.astype(np.float32)
    nearest = _Nearest(len(queries), MEASURED_HITS + 1 + EXTRA_ROWS)
    for start in range(0, len(rows), BLOCK_ROWS):
        block = unit_vectors(rows.read_span(start, min(start + BLOCK_ROWS, len(rows))).astype(np.float32))
        nearest.add(narrow @ block.T, start)
        tell("rows compared with queries", start + len(block), len(rows))
    return [
        _rank(rows, query, own, places) for (query, own), places in zip(queries, nearest.list_places(), strict=True)
    ]


def _rank(rows: RowsFile, query: np.ndarray, own: int, places: np.ndarray) -> Truth:
    places = np.sort(places[places != own])
    scores = compute_scores(rows.read_vectors(places), query)
    k = min(MEASURED_HITS, len(scores))
    lowest = float(np.sort(scores)[-k])
    return Truth(query, own, places[scores >= lowest], lowest)


class _Nearest:
    """The rows nearest to each of several queries, of blocks that come one by one."""

    def __init__(self, queries: int, keep: int) -> None:
        self._keep = keep
        self._bound = np.full((queries, 1), -np.inf, np.float32)
        self._queries, self._places = np.empty(0, np.int64), np.empty(0, np.int64)
        self._values = np.empty(0, np.float32)
        self._waiting: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def add(self, products: np.ndarray, start: int) -> None:
        """Take the products of all queries with rows from `start` on. Shapes: float32 (Q, n)."""
        query, place = np.nonzero(products > self._bound)
        self._waiting.append((query, place + start, products[query, place]))
        if sum(len(some) for some, *_ in self._waiting) > WAITING_PAIRS or not start:
            self._compress()

    def list_places(self) -> list[np.ndarray]:
        """Return the nearest rows of each query. Shapes: int64 (M,) each, M <= keep."""
        self._compress()
        return [self._places[self._queries == query] for query in range(len(self._bound))]

    def _compress(self) -> None:
        own = (self._queries, self._places, self._values)
        query, place, value = (np.concatenate(some) for some in zip(own, *self._waiting, strict=True))
        order = np.lexsort((place, -value, query))
        query, place, value = query[order], place[order], value[order]
        begins = np.searchsorted(query, np.arange(len(self._bound)))
        kept = np.arange(len(query)) - begins[query] < self._keep
        last = np.arange(len(query)) - begins[query] == self._keep - 1
        self._bound[query[last], 0] = value[last]
        self._queries, self._places, self._values = query[kept], place[kept], value[kept]
        self._waiting = []


def _share(found: int | np.integer[Any], there: int) -> float:
    """Return the share of the ten nearest rows; of equal ones with the tenth it does not matter which are found."""
    wanted = min(MEASURED_HITS, there)
    return min(wanted, int(found)) / wanted


def _choose(index: IvfIndex, truths: Sequence[Truth], target: float) -> Effort:
    """Return the least that finds the target's share of the truth: lists first, then rows to compare again."""
    goal = target + MARGIN * (1 - target)
    ranks = _rank_lists(index, truths)  # of the list of each true row: how many lists are nearer
    every = len(index.centroids)
    wanted = np.sort(np.concatenate([np.sort(some)[:MEASURED_HITS] for some in ranks]))
    lists = int(wanted[min(len(wanted) - 1, int(np.ceil(goal * len(wanted))))]) + 1
    while True:
        places = [_place_in_scan(index, truth, lists) for truth in truths]
        for again in AGAIN:
            if np.mean([_share(np.count_nonzero(place < again), len(place)) for place in places]) >= goal:
                return Effort(lists, again)
        if lists >= every:
            return Effort(every, MOST_AGAIN)
        lists = min(every, int(lists * STEP) + 1)


def _rank_lists(index: IvfIndex, truths: Sequence[Truth]) -> list[np.ndarray]:
    lists = index.find_lists(np.unique(np.concatenate([truth.places for truth in truths])))
    ranks: list[np.ndarray] = []
    for truth in truths:
        _, products = index.turn_query(truth.query)
        order = np.argsort(np.argsort(-products, kind="stable"), kind="stable")
        ranks.append(order[[lists[place] for place in truth.places.tolist()]])
    return ranks


def _place_in_scan(index: IvfIndex, truth: Truth, lists: int) -> np.ndarray:
    """Return the place of each true row among those that a scan finds, the best first; a large one for the others."""
    turned, products = index.turn_query(truth.query)
    best = np.argpartition(-products, lists - 1)[:lists]
    values, places = index.scan(turned, best, products, MOST_AGAIN)
    order = places[np.argsort(-values, kind="stable")]
    found = {place: number for number, place in enumerate(order.tolist())}
    return np.array([found.get(place, MOST_AGAIN) for place in truth.places.tolist()])


def _describe(index: IvfIndex, truths: Sequence[Truth], effort: Effort, tell: Tell) -> dict[str, Any]:
    """Return what searches with an effort find, and how long they take."""
    sizes = np.diff(index.offsets)
    shares: list[float] = []
    seconds: list[float] = []
    read: list[float] = []
    for number, truth in enumerate(truths, 1):
        began = time.perf_counter()
        index.find_nearest(truth.query, MEASURED_HITS, effort=effort)
        seconds.append(time.perf_counter() - began)
        places = index.find_candidates(truth.query, MEASURED_HITS, effort=effort)
        shares.append(truth.count_found(places, compute_scores(index.rows.read_vectors(places), truth.query)))
        _, products = index.turn_query(truth.query)
        read.append(float(sizes[np.argpartition(-products, effort.lists - 1)[: effort.lists]].sum()) / len(index.rows))
        tell("queries measured", number, len(truths))
    return {
        "count": len(truths),
        "recall": round(float(np.mean(shares)), 4),
        "lists": effort.lists,
        "again": effort.again,
        "share": round(float(np.mean(read)), 6),
        "milliseconds": round(1e3 * float(np.median(seconds)), 2),
    }
