"""Make OUT/_index/ivf.index within a bound of memory, step by step, so that a run that was killed is gone on with.

    lists    k-means of a sample gives the lists' middles, and the codes what they need       trained.index
    chunks   the rows, some at a time: which list, which code; sorted by their lists          chunk-00000.index, ...
    merge    list by list, what the chunks have of it                                         merged.index

Each file is whole or absent, with checksums, in OUT/_index/.ivf.build, beside state.json, which says what they are made
of. An index of earlier parts is brought up to date in the same way: its lists stay, what they hold of parts that are
gone is left out, and the chunks hold the rows of new parts alone.
"""

from __future__ import annotations

import shutil
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from ..atomic_files import atomic_write, make_folder, remove_temporaries
from ..errors import StoreError
from ..store.checksummed_file import SectionWriter
from ..store.checksums import dump_json, load_json
from ..store.rows_file import open_derived
from ..vectors import unit_vectors
from .coder import Coder, choose_ranges, choose_turn, count_width, import_faiss
from .ivf_file import KIND, VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from ..jobs.index import Codes
    from ..store.checksummed_file import ChecksummedFile
    from ..store.rows_file import RowsFile, Version
    from .ivf_file import IvfLists

    Tell = Callable[[str, int, int], None]

WORK = ".ivf.build"
STATE, TRAINED, MERGED, CHUNK = "state.json", "trained.index", "merged.index", "chunk-{:05d}.index"
# Lists are so many times the square root of the rows. faiss advises 4 to 16, but real vectors lie in no clusters: a
# search reads a good part of the lists however small they are, and each list costs it something.
LISTS_PER_ROOT = 1
SAMPLE_PER_LIST, LEAST_PER_LIST = 60, 20  # rows that a list is trained by; faiss warns of fewer than 39
LEAST_SAMPLE = 20_000  # rows, so that the turn and the ranges are of as many
ROUNDS = 8  # of k-means
SEED = 1
BLOCK_ROWS = 8_192  # of vectors that are given their lists and codes at once: 17 MB for 512 numbers
CODES_BLOCK = 2**16  # with a checksum each: what a search reads of a list is checked block by block [Unit: byte]


class Source(Protocol):
    """Something that has codes and rows of each list."""

    def read_list(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Return what it has of a list: uint8 (n, code_bytes), int64 (n,)."""
        ...


def build(
    folder: Path, rows: RowsFile, codes: Codes, memory: int, old: IvfLists | None, tell: Tell
) -> tuple[Path, dict[str, Any]]:
    """Write merged.index into the work folder, unless it is there, and return its path and header.

    With `old` its lists are kept, and what they hold of parts that are the same. `tell` is called with what is counted,
    how many are done and of how many.

    Raises:  StoreError for damaged rows; OSError if the folder cannot be written.
    """
    kept, spans = _compare(old.header["parts"] if old else [], rows.parts)
    state = {"version": VERSION, "stamp": rows.stamp, "codes": codes, "memory": memory}
    _begin(folder, state | {"of": old.header["stamp"] if old else None})
    merged = _open_whole(folder / MERGED)
    if merged is not None:
        return folder / MERGED, merged.header
    if old is not None:
        trained, trained_rows = Trained(old.turn, old.ranges, old.centroids), old.header["trained_rows"]
    else:
        trained, trained_rows = _train(folder, rows, codes, memory, tell), len(rows)
    coder, lists = Coder(codes, *trained), len(trained.centroids)
    sources: list[Source] = [] if old is None else [_Kept(old, kept)]
    sources += _encode(folder, rows, spans, coder, trained, max(1, memory // (4 * (coder.code_bytes + 16))), tell)
    header = {
        **{"kind": KIND, "version": VERSION, "rows": len(rows), "dim": rows.dim, "codes": codes, "stamp": rows.stamp},
        **{"parts": rows.parts, "trained_rows": trained_rows, "measured": {}},
    }
    with atomic_write(folder / MERGED) as file:
        writer = SectionWriter(file)
        _write_trained(writer, trained)
        offsets = writer.add_section("offsets", CODES_BLOCK, 8 * (lists + 1))
        held = writer.add_section("codes", CODES_BLOCK, len(rows) * coder.code_bytes)
        numbers = writer.add_section("rows", CODES_BLOCK, len(rows) * 4)
        sizes = [0]
        for piece, of in _gather(sources, lists, coder.code_bytes, tell):
            sizes.append(len(of))
            if len(of):
                held.write(piece)
                numbers.write(of.astype(np.uint32))
        offsets.write(np.cumsum(sizes, dtype=np.int64))
        writer.finish(header)
    return folder / MERGED, header


def _begin(folder: Path, state: dict[str, Any]) -> None:
    """Make the work folder; remove what another state left there."""
    try:
        found, _ = load_json(folder / STATE)
    except (OSError, ValueError):
        found = None
    if found != state:
        shutil.rmtree(folder, ignore_errors=True)
    make_folder(folder)
    remove_temporaries(folder, "")
    if found != state:
        with atomic_write(folder / STATE) as file:
            file.write(dump_json(state))


def _open_whole(path: Path) -> ChecksummedFile | None:
    """Open a file of the work folder; None where there is none, or it is damaged."""
    try:
        file = open_derived(path)
        if file is not None:
            file.check_all()
        return file
    except StoreError:
        return None


def _compare(old: list[Version], new: list[Version]) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Return how rows of old parts have moved, and the spans of rows in new parts.

    Shapes:  the first is int64 (P, 3): of each old part its first row, its end, and the first row now, or -1.
    """
    starts = dict(zip(map(tuple, new), np.cumsum([0, *(rows for *_, rows in new)]).tolist(), strict=False))
    ends = np.cumsum([0, *(rows for *_, rows in old)]).tolist()
    kept = [(a, b, starts.get(tuple(part), -1)) for (a, b), part in zip(pairwise(ends), old, strict=True)]
    same = set(map(tuple, old))
    spans = [(start, start + part[3]) for part, start in starts.items() if part not in same and part[3]]
    return np.array(kept, np.int64).reshape(-1, 3), spans


class _Kept:
    """What an index of earlier parts holds of parts that are still there."""

    def __init__(self, old: IvfLists, kept: np.ndarray) -> None:
        self._old, self._kept = old, kept

    def read_list(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        codes, rows = self._old.read_list(number)
        part = np.searchsorted(self._kept[:, 0], rows, side="right") - 1
        first, _, now = self._kept[part].T
        stays = now >= 0
        return codes[stays], (rows - first + now)[stays]


class _Chunk:
    """Some rows, sorted by their lists, mapped."""

    def __init__(self, file: ChecksummedFile, code_bytes: int) -> None:
        self._file, self._code_bytes = file, code_bytes
        self._offsets = np.frombuffer(file.view("offsets"), np.int64)

    def read_list(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        start, stop = self._offsets[number : number + 2].tolist()
        size = self._code_bytes
        codes = np.frombuffer(self._file.view("codes")[start * size : stop * size], np.uint8).reshape(-1, size)
        return codes, np.frombuffer(self._file.view("rows")[start * 4 : stop * 4], np.uint32).astype(np.int64)


class Trained(NamedTuple):
    """What a Coder needs beside the kind of codes, and the lists: all float32."""

    turn: np.ndarray  # (D, W)
    ranges: np.ndarray  # (2, W) or (0, W)
    centroids: np.ndarray  # (L, W)


def _train(folder: Path, rows: RowsFile, codes: Codes, memory: int, tell: Tell) -> Trained:
    """Return what a sample gives; read or write trained.index."""
    width = count_width(codes, rows.dim)
    file = _open_whole(folder / TRAINED)
    if file is not None:
        turn, ranges, centroids = (np.frombuffer(file.view(name), np.float32) for name in Trained._fields)
        return Trained(turn.reshape(rows.dim, width), ranges.reshape(-1, width), centroids.reshape(-1, width))
    most = max(LEAST_PER_LIST, memory // (4 * 4 * rows.dim))  # the sample is copied as it is turned, and by k-means
    lists = int(min(LISTS_PER_ROOT * len(rows) ** 0.5, most / LEAST_PER_LIST, len(rows) / 2)) or 1
    sample = _draw_sample(rows, min(len(rows), most, max(SAMPLE_PER_LIST * lists, LEAST_SAMPLE)))
    turn = choose_turn(codes, sample)
    turned = np.ascontiguousarray(sample @ turn)
    del sample
    trained = Trained(turn, choose_ranges(codes, turned), _cluster(turned, lists, tell))
    with atomic_write(folder / TRAINED) as out:
        writer = SectionWriter(out)
        _write_trained(writer, trained)
        writer.finish({"kind": "ivf, trained"})
    return trained


def _write_trained(writer: SectionWriter, trained: Trained) -> None:
    for name, numbers in trained._asdict().items():
        section = writer.add_section(name, CODES_BLOCK)
        if len(numbers):
            section.write(np.ascontiguousarray(numbers))


def _draw_sample(rows: RowsFile, count: int) -> np.ndarray:
    """Return vectors of rows drawn at random, at unit length. Shapes: -> float32 (count, D)."""
    places = np.sort(np.random.default_rng(SEED).choice(len(rows), count, replace=False))
    sample = np.empty((count, rows.dim), np.float32)
    for at in range(0, count, BLOCK_ROWS):
        sample[at : at + BLOCK_ROWS] = unit_vectors(rows.read_vectors(places[at : at + BLOCK_ROWS]).astype(np.float32))
        rows.release(places[at : at + BLOCK_ROWS])
    return sample


def _cluster(sample: np.ndarray, lists: int, tell: Tell) -> np.ndarray:
    """Return the centroids of k-means. Shapes: float32 (N, D) -> float32 (L, D)."""
    faiss = import_faiss()
    centroids = None
    for number in range(ROUNDS):
        means = faiss.Kmeans(sample.shape[1], lists, niter=1, seed=SEED, max_points_per_centroid=len(sample))
        means.cp.min_points_per_centroid = 1  # or it warns
        means.train(sample, init_centroids=centroids)
        centroids = means.centroids
        tell("rounds of training", number + 1, ROUNDS)
    return np.asarray(centroids, np.float32).reshape(lists, -1)


def _encode(
    folder: Path,
    rows: RowsFile,
    spans: list[tuple[int, int]],
    coder: Coder,
    trained: Trained,
    chunk_rows: int,
    tell: Tell,
) -> Iterator[_Chunk]:
    """Yield the chunks of these spans of rows; write those that are not there yet."""
    faiss = import_faiss()
    middle = faiss.IndexFlatL2(trained.centroids.shape[1])
    middle.add(np.ascontiguousarray(trained.centroids))
    total, done = sum(stop - start for start, stop in spans), 0
    for number, pieces in enumerate(_cut(spans, chunk_rows)):
        path = folder / CHUNK.format(number)
        count = sum(stop - start for start, stop in pieces)
        file = _open_whole(path)
        if file is None:
            lists, places = np.empty(count, np.int32), np.empty(count, np.uint32)
            codes = np.empty((count, coder.code_bytes), np.uint8)
            at = 0
            for start, stop in _cut_blocks(pieces):
                turned = coder.turn(unit_vectors(rows.read_span(start, stop).astype(np.float32)))
                near = middle.search(turned, 1)[1][:, 0]
                here = slice(at, at + stop - start)
                lists[here], places[here] = near, np.arange(start, stop)
                codes[here] = coder.encode(turned, near)
                at += stop - start
                tell("rows encoded", done + at, total)
            _write_chunk(path, lists, places, codes, len(trained.centroids))
            file = open_derived(path)
        done += count
        if file is not None:
            yield _Chunk(file, coder.code_bytes)


def _write_chunk(path: Path, lists: np.ndarray, places: np.ndarray, codes: np.ndarray, count: int) -> None:
    order = np.argsort(lists, kind="stable")
    with atomic_write(path) as file:
        writer = SectionWriter(file)
        sizes = np.bincount(lists, minlength=count)
        writer.add_section("offsets", CODES_BLOCK).write(np.cumsum([0, *sizes], dtype=np.int64))
        writer.add_section("rows", CODES_BLOCK).write(places[order])
        section = writer.add_section("codes", CODES_BLOCK)
        for start in range(0, len(order), BLOCK_ROWS):
            section.write(codes[order[start : start + BLOCK_ROWS]])
        writer.finish({"kind": "ivf, chunk"})


def _cut(spans: list[tuple[int, int]], most: int) -> Iterator[list[tuple[int, int]]]:
    """Yield spans in groups of at most `most` rows."""
    group: list[tuple[int, int]] = []
    room = most
    for start, stop in spans:
        while start < stop:
            end = min(stop, start + room)
            group.append((start, end))
            room -= end - start
            start = end
            if not room:
                yield group
                group, room = [], most
    if group:
        yield group


def _cut_blocks(spans: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    for start, stop in spans:
        for at in range(start, stop, BLOCK_ROWS):
            yield at, min(at + BLOCK_ROWS, stop)


def _gather(sources: list[Source], lists: int, code_bytes: int, tell: Tell) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the codes and rows of each list."""
    for number in range(lists):
        pieces = [source.read_list(number) for source in sources]
        codes = np.concatenate([np.empty((0, code_bytes), np.uint8), *(codes for codes, _ in pieces)])
        yield codes, np.concatenate([np.empty(0, np.int64), *(rows for _, rows in pieces)])
        tell("lists written", number + 1, lists)
