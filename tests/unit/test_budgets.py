"""Budgets of bytes that a reader, a consumer and decoders share; allowances of seconds that pauses do not use up."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.budgets import WatchedBudget

from clip.budgets import STEP_S, Allowance, ByteBudget, Hold
from clip.parallel import map_ahead, read_ahead

PATIENCE_S = 60.0  # before what should have ended is given up

Block = tuple[bool, list[list[int]]]  # whether a thread reads its entries ahead; the pieces in which each is read


def within_patience(work: Callable[[], object]) -> None:
    """Do something in a thread that a deadlock may keep."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as exc:  # noqa: BLE001  raised again below
            errors.append(exc)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    assert not thread.is_alive(), "it waits for ever"
    if errors:
        raise errors[0]


def read(budget: ByteBudget, entries: list[list[int]]) -> Iterator[Hold]:
    """What a container's reader does: an entry's bytes may be held before they are read; some entries are no image."""
    for number, pieces in enumerate(entries):
        hold = budget.hold()
        for size in pieces:
            hold.grow(size)
        if number % 3 == 2:
            hold.release()
        else:
            yield hold


def admit(budget: ByteBudget, blocks: list[Block]) -> Iterator[Hold]:
    """What a run's consumer does: it takes what a thread has read, and waits itself for files on this machine."""
    for is_ahead, entries in blocks:
        if is_ahead:
            for hold in read_ahead(read(budget, entries), lambda hold: max(1, hold.size_bytes), 10**9, budget):
                hold.pass_on()
                yield hold
        else:
            for pieces in entries:
                hold = budget.hold_waited(sum(pieces))
                hold.pass_on()
                yield hold


@settings(max_examples=60, deadline=None)
@given(
    limit=st.integers(1, 200),
    blocks=st.lists(
        st.tuples(st.booleans(), st.lists(st.lists(st.integers(0, 120), max_size=3), max_size=12)), max_size=4
    ),
    workers=st.integers(1, 3),
    ahead=st.integers(1, 20),
)
def test_whatever_is_read_no_more_is_held_than_the_limit_and_one_entry_and_all_of_it_comes(
    limit: int, blocks: list[Block], workers: int, ahead: int
) -> None:
    budget = WatchedBudget(limit)
    largest = max((sum(pieces) for _, entries in blocks for pieces in entries), default=0)
    decoded: list[int] = []

    def decode(hold: Hold) -> None:
        decoded.append(hold.size_bytes)
        hold.release()

    within_patience(lambda: list(map_ahead(decode, admit(budget, blocks), workers=workers, ahead=ahead)))
    assert budget.peak_bytes <= limit + largest
    assert budget.held_bytes == 0
    expected = [
        sum(pieces)
        for is_ahead, entries in blocks
        for number, pieces in enumerate(entries)
        if not is_ahead or number % 3 != 2
    ]
    assert sorted(decoded) == sorted(expected)


def test_an_empty_hold_never_waits() -> None:
    budget = ByteBudget(10)
    budget.hold(20)  # which nobody releases before the empty one is there
    within_patience(budget.hold)


def test_one_wait_of_the_consumer_lets_one_entry_exceed_the_limit() -> None:
    budget = WatchedBudget(10)
    entries = read_ahead(read(budget, [[8], [8], [], [8], [8]]), lambda _: 1, 10**9, budget)
    held = [next(entries)]
    time.sleep(0.05)  # for a reader that would run away
    assert budget.peak_bytes == 8
    held += [next(entries)]  # it waits for the second, while nobody decodes the first
    time.sleep(0.05)
    assert budget.peak_bytes == 16
    budget.close()
    entries.close()


def test_what_waits_when_the_budget_is_closed_is_refused() -> None:
    budget = ByteBudget(10)
    budget.hold(10)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(budget.hold, 5)
        budget.close()
        with pytest.raises(CancelledError):
            waiting.result(PATIENCE_S)
    with pytest.raises(CancelledError):
        budget.hold(0)


def test_a_pause_counts_as_one_step() -> None:
    now = 0.0
    allowance = Allowance(1.0, lambda: now)
    for passed_s, over in [(STEP_S, False), (10_000.0, False), (0.0, False), (STEP_S, False), (STEP_S, True)]:
        assert allowance.begin_step() <= STEP_S
        now += passed_s
        assert allowance.end_step() is over


def test_a_short_allowance_has_a_short_step() -> None:
    now = 0.0
    allowance = Allowance(0.1, lambda: now)
    assert allowance.begin_step() == 0.1
    now += 3.0
    assert allowance.end_step()


def test_the_budget_is_never_exceeded_and_what_is_larger_runs_alone() -> None:
    limit, lock, held = 100, threading.Lock(), list[int]()
    budget = ByteBudget(limit)
    peak = together = 0

    def hold(size: int) -> None:
        nonlocal peak, together
        with budget.reserve(size):
            with lock:
                held.append(size)
                peak = max(peak, sum(min(other, limit) for other in held))
                together = max(together, len(held))
                assert len(held) == 1 or max(held) <= limit
            time.sleep(0.0005)
            with lock:
                held.remove(size)

    sizes = [1, 10, 20, 50, 70, 99, 100, 101, 5000] * 30
    Random(0).shuffle(sizes)
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(hold, sizes, timeout=PATIENCE_S))
    assert together > 1
    assert 50 < peak <= limit


def test_a_reservation_waits_until_there_is_room_and_an_error_gives_it_back() -> None:
    budget, entered = ByteBudget(100), threading.Event()

    def second() -> None:
        with budget.reserve(60):
            entered.set()

    with pytest.raises(ValueError, match="inside"), budget.reserve(60):
        waiting = threading.Thread(target=second, daemon=True)
        waiting.start()
        assert not entered.wait(0.05)
        raise ValueError("inside")
    assert entered.wait(PATIENCE_S)
    waiting.join(PATIENCE_S)
    with budget.reserve(100):
        pass
