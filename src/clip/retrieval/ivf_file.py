"""OUT/_index/ivf.index: the rows of an output in lists of near ones, of which a search reads a few.

One checksummed file, derived from rows.index beside it (store/rows_file.py) and deletable, with the sections

    turn        the matrix that vectors are multiplied by before they are coded, float32 (D, W)
    ranges      the middle and step of each number, where the codes have such, float32 (2, W)
    centroids   the middle of each list, turned, float32 (L, W)
    offsets     where each list begins, in rows; and their number, int64 (L + 1,)
    codes       the codes of all rows, list by list
    rows        the places of these rows in rows.index, uint32 (N,)

The header has a kind ("ivf"), a version, rows, dim, the kind of codes, the stamp of the parts, the parts, how many rows
the lists were made for, and what was measured (recall.py). Centroids and offsets are checked when the file is opened,
blocks of codes and rows when they are first read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..parallel import available_cores, map_ahead
from .coder import OFFSET_BITS, Coder, count_width
from .index_file import rank
from .scan import compute_scores

if TYPE_CHECKING:
    from typing import Literal

    from ..jobs.index import Codes
    from ..store.checksummed_file import ChecksummedFile
    from ..store.rows_file import RowsFile

    Queries = Literal["rows", "texts"]

IVF_FILE = "ivf.index"
KIND, VERSION = "ivf", 1
MEASURED_HITS = 10
EXACT_ROWS = 2_000  # of so few that a condition leaves, all are compared: 256 MB of blocks are checked for them
FOUND_ROWS = 2**20  # of lists, that are searched for rows at once
NEAR = 2e-4  # far above the rounding of a cosine in fp32 of up to 2,048 numbers: 2,048 times 2 ** -24, 1.2e-4
SMALL_SQUARE = 1e-20  # of a vector's length, below which fp32 loses numbers
THREADED_ROWS = 20_000  # of lists; fewer are scanned by one thread


@dataclass(frozen=True)
class Effort:
    """How much a search reads, for ten hits."""

    lists: int
    again: int  # rows whose vectors are compared again

    def scale(self, k: int, share: float = 1.0) -> Effort:
        """Return the effort for k hits among a share of all rows.

        The share is that of the rows which a condition leaves: as many of them are read as of all without one. The
        tenfold of hits lies in lists that reach 10 ** 0.5 times as far.
        """
        more = max(1.0, k / MEASURED_HITS)
        return Effort(int(np.ceil(self.lists * more**0.5 / share)), int(np.ceil(self.again * more)))


class IvfLists:
    """The lists of an IVF index, mapped. They may be read from several threads."""

    def __init__(self, file: ChecksummedFile, dim: int) -> None:
        """Check all but codes and rows; `dim` is that of the output's vectors.

        Raises:  StoreError if it is damaged, or of another version or output; MissingExtraError without faiss.
        """
        self.file, self.header = file, file.header
        try:
            self.kind: Codes = file.header["codes"]
            self.count: int = file.header["rows"]
            of = (file.header["kind"], file.header["version"], file.header["dim"], type(self.count))
            width = count_width(self.kind, dim)
            for name in ("turn", "ranges", "centroids", "offsets"):
                file.check(name)
            self.turn = np.frombuffer(file.view("turn"), np.float32).reshape(dim, width)
            self.ranges = np.frombuffer(file.view("ranges"), np.float32).reshape(-1, width)
            self.centroids = np.frombuffer(file.view("centroids"), np.float32).reshape(-1, width)
            self.offsets = np.frombuffer(file.view("offsets"), np.int64)
            fits = (
                of == (KIND, VERSION, dim, int)
                and len(self.ranges) == (2 if self.kind == "sq8" else 0)
                and len(self.offsets) == len(self.centroids) + 1
                and (self.offsets[0], self.offsets[-1]) == (0, self.count)
                and not (np.diff(self.offsets) < 0).any()
            )
        except (KeyError, TypeError, ValueError) as exc:
            raise file.report_damage(f"its header is of another kind ({exc!r})") from exc
        if not fits:
            raise file.report_damage("its sections do not fit each other")
        self.coder = Coder(self.kind, self.turn, self.ranges, self.centroids)
        if (len(file.view("codes")), len(file.view("rows"))) != (self.count * self.coder.code_bytes, self.count * 4):
            raise file.report_damage("its sections do not fit each other")

    def read_list(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the codes of a list, mapped, and their rows. Raises: StoreError if they are damaged.

        Shapes:  -> uint8 (n, code_bytes), int64 (n,).
        """
        start, stop = self.offsets[number : number + 2].tolist()
        size = self.coder.code_bytes
        codes = np.frombuffer(self.file.read("codes", start * size, stop * size), np.uint8).reshape(-1, size)
        return codes, self.read_places(start, stop)

    def read_places(self, start: int, stop: int) -> np.ndarray:
        """Return the rows from one place in the lists to another. Shapes: -> int64 (n,). Raises: as `read_list`."""
        rows = np.frombuffer(self.file.read("rows", start * 4, stop * 4), np.uint32).astype(np.int64)
        if len(rows) and rows.max() >= self.count:
            raise self.file.report_damage("it names a row that is not there")
        return rows


class IvfIndex(IvfLists):
    """The IVF index of an output, mapped. It may be used from several threads."""

    def __init__(self, file: ChecksummedFile, rows: RowsFile) -> None:
        """Check all but codes and rows. Raises: as IvfLists; StoreError too if it does not fit the rows."""
        super().__init__(file, rows.dim)
        self.rows = rows
        if self.count != len(rows):
            raise file.report_damage("its sections do not fit each other")
        try:
            self._efforts = {name: Effort(*_read_counts(found)) for name, found in file.header["measured"].items()}
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            raise file.report_damage(f"its header is of another kind ({exc!r})") from exc

    def check(self) -> None:
        """Check the rest too. Raises: StoreError if it is damaged."""
        self.file.check_all()

    def read_places_at(self, at: np.ndarray) -> np.ndarray:
        """Return the rows at some places in the lists. Shapes: int64 (M,) -> (M,). Raises: as `read_list`."""
        self.file.check_blocks("rows", at // (self.file.block_bytes("rows") // 4))
        rows = np.frombuffer(self.file.view("rows"), np.uint32)[at].astype(np.int64)
        if len(rows) and rows.max() >= self.count:
            raise self.file.report_damage("it names a row that is not there")
        return rows

    def find_lists(self, places: np.ndarray) -> dict[int, int]:
        """Return the list of each of these rows, by its place. Raises: StoreError if the index is damaged."""
        lists: dict[int, int] = {}
        for start in range(0, self.count, FOUND_ROWS):
            rows = self.read_places(start, min(start + FOUND_ROWS, self.count))
            here = np.flatnonzero(np.isin(rows, places))
            numbers = np.searchsorted(self.offsets, here + start, side="right") - 1
            lists.update(zip(rows[here].tolist(), numbers.tolist(), strict=True))
        return lists

    def find_nearest(
        self,
        query: np.ndarray,
        k: int,
        *,
        rows: np.ndarray | None = None,
        queries: Queries | None = None,
        effort: Effort | None = None,
    ) -> list[tuple[int, float]]:
        """Return k near rows and their scores, the best first; of equal scores the lower id first.

        The scores are exact; a nearer row may be missing, as often as was measured. Of the places in `rows`, int64,
        only these are searched; default: all. `queries` says whether the query is like a row, or a text (default: it
        may be either); `effort` how much to read (default: as was measured).

        Shapes:  query float64 (D,), of unit length.
        Raises:  StoreError if the file, or vectors, are damaged.
        """
        places = self.find_candidates(query, k, rows=rows, effort=effort or self.choose_effort(queries))
        stored = self.rows.read_vectors(places)
        near = _find_near(stored, query, k)
        return rank(self.rows, places[near], compute_scores(stored[near], query), k)

    def choose_effort(self, queries: Queries | None) -> Effort:
        """Return how much a search reads for ten hits."""
        if queries in self._efforts:
            return self._efforts[queries]
        efforts = self._efforts.values() or [Effort(len(self.centroids), 10 * MEASURED_HITS)]
        return Effort(max(e.lists for e in efforts), max(e.again for e in efforts))

    def find_candidates(
        self, query: np.ndarray, k: int, *, rows: np.ndarray | None = None, effort: Effort
    ) -> np.ndarray:
        """Return the places to compare again for k hits, in ascending order. Shapes: float64 (D,) -> int64 (M,)."""
        chosen = None
        total = len(self.rows) if rows is None else len(rows)
        if total <= max(k, EXACT_ROWS if rows is not None else 0):
            return np.arange(total) if rows is None else rows
        if rows is not None:
            mask = np.zeros(len(self.rows), np.bool_)
            mask[rows] = True
            chosen = np.packbits(mask, bitorder="little")
        effort = effort.scale(k, total / len(self.rows))
        turned, products = self.turn_query(query)
        lists = min(effort.lists, len(products))
        while True:
            best = np.argpartition(-products, lists - 1)[:lists]
            values, places = self.scan(turned, best, products, max(k, effort.again), chosen)
            if len(places) >= k or lists == len(products):
                break
            lists = min(2 * lists, len(products))
        again = max(k, effort.again)
        if len(places) > again:
            places = places[np.argpartition(-values, again - 1)[:again]]
        return np.sort(places)

    def turn_query(self, query: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return a query as lists and codes have it, and its products with the lists. Shapes: (D,) -> (W,), (L,)."""
        turned = self.coder.turn(query.astype(np.float32)[None])[0]
        return turned, self.centroids @ turned

    def scan(
        self, turned: np.ndarray, lists: np.ndarray, products: np.ndarray, keep: int, chosen: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return at least the `keep` best values and places of some lists; threads share them.

        Shapes:  float32 (W,), int64 (n,), float32 (L,), uint8 as `Coder.scan` -> float32 (M,), int64 (M,), unordered.
        Raises:  StoreError if the index is damaged.
        """
        lists = np.sort(lists)
        lists = lists[self.offsets[lists] < self.offsets[lists + 1]]
        if not len(lists):
            return np.empty(0, np.float32), np.empty(0, np.int64)
        starts, stops, numbers = self.offsets[lists], self.offsets[lists + 1], lists
        if not self.coder.is_relative:  # then lists that lie side by side are one piece
            first = np.concatenate([[True], starts[1:] != stops[:-1]])
            last = np.concatenate([first[1:], [True]])
            starts, stops = starts[first], stops[last]
            numbers = np.arange(len(starts))
        total = int((stops - starts).sum())
        workers = available_cores() if total > THREADED_ROWS else 1
        cuts = np.searchsorted(np.cumsum(stops - starts), total * np.arange(1, workers) / workers)

        def scan(some: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            bounds = zip(*(side[some].tolist() for side in (numbers, starts, stops)), strict=True)
            pieces = (self._read_piece(number, products, start, stop, chosen) for number, start, stop in bounds)
            return self.coder.scan(turned, pieces, keep, chosen)

        groups = np.split(np.arange(len(starts)), cuts)
        found = list(map_ahead(scan, groups, workers=workers, ahead=workers)) if workers > 1 else [scan(groups[0])]
        values, places = (np.concatenate([some[side] for some in found]) for side in (0, 1))
        if chosen is None:
            begins = np.zeros(int(numbers.max(initial=0)) + 1, np.int64)
            begins[numbers] = starts
            places = self.read_places_at(begins[places >> OFFSET_BITS] + (places & (2**OFFSET_BITS - 1)))
        return values, places

    def _read_piece(
        self, number: int, products: np.ndarray, start: int, stop: int, chosen: np.ndarray | None
    ) -> tuple[int, float, np.ndarray, np.ndarray | None]:
        size = self.coder.code_bytes
        codes = np.frombuffer(self.file.read("codes", start * size, stop * size), np.uint8)
        product = float(products[number]) if self.coder.is_relative else 0.0
        return number, product, codes.reshape(-1, size), None if chosen is None else self.read_places(start, stop)


def _find_near(stored: np.ndarray, query: np.ndarray, k: int) -> np.ndarray:
    """Return which of some vectors may be among the k nearest, by fp32: it spares the float64 of the others.

    Shapes:  (M, D), float64 (D,) -> bool (M,).
    """
    if len(stored) <= 4 * k:
        return np.ones(len(stored), np.bool_)
    narrow = stored.astype(np.float32)
    squares = np.einsum("nd,nd->n", narrow, narrow)
    if not (np.isfinite(squares) & (squares > SMALL_SQUARE)).all():
        return np.ones(len(stored), np.bool_)
    cosines = narrow @ query.astype(np.float32) / np.sqrt(squares)
    return cosines >= np.partition(cosines, len(cosines) - k)[len(cosines) - k] - NEAR


def _read_counts(measured: dict[str, Any]) -> tuple[int, int]:
    counts = (measured["lists"], measured["again"])
    if not all(type(count) is int and count > 0 for count in counts):
        raise ValueError(f"it counts {counts}")
    return counts
