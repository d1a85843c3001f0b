"""Chunks of entries through workers, a ring of crops and batches: all rows in order, each with its own crop."""

import resource
import signal
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from clip.batch.batches import Batches
from clip.batch.crops import CropRing, map_crops
from clip.batch.decode import Answer, Chunk
from clip.batch.feed import Block, Feed, Pace
from clip.budgets import ByteBudget
from clip.errors import ResourceError
from clip.images.windows import Window, Windows
from clip.records import Failure, Item, Member, Row

SIDE = 2
MARK = "end of a shard"
LARGE = 3_000_000  # bytes of an entry, of which a chunk holds few
PLACE = 40  # bytes for a window, on average


def make_item(number: int, frames: int, size_bytes: int = 1) -> Item:
    return Item(str(number), f"{frames}", size_bytes)  # no frames: it fails


def make_crop(number: int, frame: int) -> np.ndarray:
    return np.full((SIDE, SIDE, 3), (number * 7 + frame) % 251, np.uint8)


def decode(chunk: Chunk) -> Answer:
    """What a worker does: the crops of the rows go where they belong, as far as there is room."""
    outcomes: list[Row | Failure] = []
    crops: list[np.ndarray] = []
    counts: list[int] = []
    windows: list[Window] = []
    for entry in chunk.entries:
        frames = int(entry.path)
        assert chunk.holds, "its bytes are held while it is decoded"
        counts.append(max(1, frames))
        crops += [make_crop(int(entry.id), frame) for frame in range(frames)]
        outcomes += [Row(entry.id, "", 1, 1, "PNG", frame) for frame in range(frames)]
        if not frames:
            outcomes.append(Failure(entry.id, "", "decode", "OSError", "broken"))
    if chunk.crops.ndim == 2:
        memory, used = chunk.crops.reshape(-1), 0
        for crop in crops:  # of several sizes
            rows = 1 + crop[0, 0, 0] % 5
            memory[used : used + rows] = crop[0, 0, 0]
            windows.append(Window(used, int(rows), 1, 1, *range(9)))
            used += int(rows)
        return Answer(outcomes, counts, windows=np.array(windows, np.int64).reshape(-1, 13))
    if len(crops) > len(chunk.crops):
        return Answer(outcomes, counts, np.stack(crops))
    for place, crop in enumerate(crops):
        chunk.crops[place] = crop
    return Answer(outcomes, counts)


def unpack(windows: Windows) -> np.ndarray:
    """The crops whose value the windows are filled with."""
    memory = np.concatenate(windows.memory)
    crops: list[np.ndarray] = []
    for start, rows in windows.table[:, :2]:
        values = set(memory[start : start + rows].tolist())
        assert len(values) == 1
        crops.append(np.full((SIDE, SIDE, 3), values.pop(), np.uint8))
    assert sum(windows.table[:, 1]) <= len(memory)
    return np.stack(crops)


@given(
    frames=st.lists(st.sampled_from([1, 1, 1, 1, 0, 3]), max_size=60),
    marks=st.sets(st.integers(0, 60)),
    large=st.sets(st.integers(0, 60)),
    members=st.sets(st.integers(0, 60)),
    batch=st.integers(1, 9),
    workers=st.integers(1, 3),
    most=st.integers(1, 5),
    limit_bytes=st.sampled_from([1, LARGE, 10 * LARGE]),
    unresized=st.booleans(),
)
@example(
    frames=[1] * 60,
    marks=set(range(60)),
    large=set(),
    members=set(),
    batch=8,
    workers=3,
    most=1,
    limit_bytes=1,
    unresized=False,
)  # each shard wastes room
def test_every_row_has_its_own_crop_in_the_order_of_the_entries(
    frames: list[int],
    marks: set[int],
    large: set[int],
    members: set[int],
    batch: int,
    workers: int,
    most: int,
    limit_bytes: int,
    unresized: bool,
) -> None:
    pace = Pace.of(batch, workers, most=most)
    ring, budget = CropRing(pace.ring, SIDE), ByteBudget(limit_bytes)
    if unresized:
        ring = CropRing(pace.window_ring, SIDE, window_bytes=PLACE)
        frames = [min(1, count) for count in frames]
    batches = Batches(ring, pace.most_held)
    found: list[tuple[str, int]] = []
    failed: list[str] = []

    def entries() -> Iterator[Item | Member | str]:
        for number, count in enumerate(frames):
            item = make_item(number, count, LARGE if number in large else 1)
            yield Member(item, b"1", budget.hold_waited(item.size_bytes)) if number in members else item
            if number in marks:
                yield MARK

    def take() -> None:
        taken = batches.take(batch)
        assert taken.crops is not None
        crops = unpack(taken.crops) if isinstance(taken.crops, Windows) else taken.crops
        assert crops.shape == (len(taken.rows), SIDE, SIDE, 3)
        for row, crop in zip(taken.rows, crops, strict=True):
            assert (crop == make_crop(int(row.id), row.size_bytes)).all()
            found.append((row.id, row.size_bytes))
        batches.give_back()

    place = 0
    for block in Feed(pace, ring, workers, budget).blocks(entries(), decode):
        if isinstance(block, Block):
            batches.add(block, place)
            place += len(block.outcomes)
            failed += [outcome.id for outcome in block.outcomes if isinstance(outcome, Failure)]
        while len(batches) >= (1 if block == MARK else batch):
            take()
    while len(batches):
        take()
    ring.close()
    assert found == [(str(number), frame) for number, count in enumerate(frames) for frame in range(count)]
    assert failed == [str(number) for number, count in enumerate(frames) if not count]
    assert budget.held_bytes == 0


@pytest.mark.parametrize("shard", [64, 60])
def test_batches_are_read_where_their_crops_lie(shard: int) -> None:
    pace = Pace.of(16, 2, most=4)
    ring, budget = CropRing(pace.ring, SIDE), ByteBudget(100)
    batches = Batches(ring, pace.most_held)

    def entries() -> Iterator[Item | str]:
        for number in range(960):
            yield make_item(number, 1)
            if number % shard == shard - 1:
                yield MARK

    for block in Feed(pace, ring, 2, budget).blocks(entries(), decode):
        if isinstance(block, Block):
            batches.add(block, 0)
        while len(batches) >= (1 if block == MARK else 16):
            crops = batches.take(16).crops
            assert isinstance(crops, np.ndarray)
            assert np.shares_memory(crops, ring.crops)
            batches.give_back()
    ring.close()


def test_a_ring_that_is_full_says_so_and_one_given_back_is_taken_again() -> None:
    ring = CropRing(10, SIDE)
    assert [ring.take(4), ring.take(4)] == [0, 4]
    with pytest.raises(BufferError, match="4 crops, found 2 free of 10"):
        ring.take(4)
    ring.give_back()
    assert ring.take(4) == 0, "the two at the end are skipped"
    ring.give_back()
    ring.give_back()
    assert ring.take(6) == 4
    ring.give_back()
    ring.align(5, spare=4)
    assert ring.take(5) == 0
    ring.align(3, spare=0)
    assert ring.take(1) == 5, "nothing may be idle"
    ring.close()


def test_crops_are_given_back_once_their_batch_is_read_and_those_of_failures_not_before() -> None:
    """The ring gives back its oldest range, whoever's that is."""
    ring = CropRing(10, SIDE)
    batches = Batches(ring, most_held=10)

    def add(count: int, *, fail: bool = False) -> None:
        start = ring.take(count)
        row, failure = Row("a", "", 1, 1, "PNG", 1), Failure("a", "", "decode", "OSError", "broken")
        crops = ring.crops[start : start + (0 if fail else count)]
        batches.add(Block([failure if fail else row] * count, 0, crops, None, start, count), 0)

    add(4)
    add(4)
    batches.take(4)
    batches.take(4)
    add(2, fail=True)
    assert batches.pending == 8
    batches.give_back()
    assert batches.pending == 4
    with pytest.raises(BufferError, match="5 crops, found 4 free"):
        ring.take(5)
    batches.give_back()
    assert batches.pending == 0
    assert ring.take(4) == 0
    assert ring.take(6) == 4
    ring.close()


def test_another_mapping_of_a_ring_is_the_same_memory() -> None:
    ring = CropRing(3, SIDE)
    map_crops(ring.descriptor, ring.place)[1] = 9
    ring.close()
    assert ring.crops.sum(axis=(1, 2, 3)).tolist() == [0, 9 * SIDE**2 * 3, 0]


def test_shared_memory_that_the_system_does_not_give_is_an_error_that_says_what_would_do() -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(ResourceError, match=r'memory that processes share: cannot be made .*decoders="threads"'):
            CropRing(10, 100)
        assert CropRing(10, 100, shared=False).take(10) == 0
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
