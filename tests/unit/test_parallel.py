"""Cores as the container has them; a stream mapped ahead of its consumer."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clip import parallel
from clip.errors import ResourceError
from clip.parallel import available_cores, check_resources, map_ahead

PATIENCE_S = 10.0  # before a thread that should have come is given up


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu.max": "150000 100000\n"}, 1),
        ({"cpu.max": "400000 100000\n"}, 4),
        ({"cpu.max": "25000 50000\n"}, 1),
        ({"cpu.max": "6400000 100000\n"}, 8),  # more than the affinity has
        ({"cpu.max": ""}, 8),
        ({"cpu.max": "many 100000"}, 8),
        ({"cpu.max": "300000 0"}, 8),
        ({"cpu/cpu.cfs_quota_us": "150000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "300000\n"}, 8),
    ],
    ids=str,
)
def test_cores_are_the_affinity_within_the_quota_of_the_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)), raising=False)
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert available_cores(tmp_path) == cores


@pytest.mark.parametrize(("counted", "cores"), [(3, 3), (None, 1)])
def test_cores_are_counted_where_there_is_no_affinity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counted: int | None, cores: int
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: counted)
    assert available_cores(tmp_path) == cores


def decode_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("clip-decode")]


class Source:
    """More numbers than any test takes, which knows how many were taken and whether it was closed."""

    def __init__(self) -> None:
        self.pulled = 0
        self.closed = False

    def numbers(self) -> Iterator[int]:
        try:
            for n in range(1000):
                self.pulled += 1
                yield n
        finally:
            self.closed = True


@pytest.mark.parametrize(("workers", "ahead"), [(1, 1), (1, 5), (4, 1), (4, 5), (4, 100)])
def test_results_come_in_the_order_of_the_items(workers: int, ahead: int) -> None:
    def slow_when_early(n: int) -> int:
        time.sleep(0.004 if n % 4 == 0 else 0)
        return n * n

    assert list(map_ahead(slow_when_early, range(30), workers=workers, ahead=ahead)) == [n * n for n in range(30)]
    assert decode_threads() == []


def test_nothing_comes_of_nothing() -> None:
    assert list(map_ahead(str, [], workers=2, ahead=3)) == []


def test_several_threads_work_at_a_time() -> None:
    meeting = threading.Barrier(3)  # passed only by three threads at once
    assert len(list(map_ahead(lambda _: meeting.wait(PATIENCE_S), range(6), workers=3, ahead=3))) == 6


def test_no_more_than_the_look_ahead_is_taken_from_the_source() -> None:
    source = Source()
    results = map_ahead(str, source.numbers(), workers=4, ahead=7)
    assert source.pulled == 0
    for taken in range(1, 20):
        assert next(results) == str(taken - 1)
        time.sleep(0.001)  # for threads that would run away
        assert source.pulled <= 7 + taken
    results.close()


def test_an_exception_comes_at_its_items_turn_and_the_threads_end() -> None:
    results = map_ahead(lambda n: 1 // (3 - n), range(1000), workers=4, ahead=9)
    assert [next(results) for _ in range(3)] == [0, 0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert decode_threads() == []


def test_an_exception_of_the_source_comes_through_and_the_threads_end() -> None:
    def failing() -> Iterator[int]:
        yield 0
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        list(map_ahead(str, failing(), workers=2, ahead=1))
    assert decode_threads() == []


def test_closing_stops_the_source_drops_what_has_not_begun_and_joins_the_threads() -> None:
    source, begun = Source(), list[int]()

    def work(n: int) -> int:
        begun.append(n)
        time.sleep(0.05)
        return n

    results = map_ahead(work, source.numbers(), workers=2, ahead=200)
    assert next(results) == 0
    results.close()
    assert decode_threads() == []
    assert source.closed
    assert source.pulled == 201
    assert len(begun) < 150  # a few; all of them would take five seconds


def test_closing_stops_what_is_under_way_before_it_waits_for_it() -> None:
    begun, stopped, waits = threading.Event(), threading.Event(), list[bool]()

    def work(first: bool) -> None:
        if first:
            begun.wait(PATIENCE_S)
        else:
            begun.set()
            waits.append(stopped.wait(PATIENCE_S))

    results = map_ahead(work, [True, False], workers=2, ahead=2, stop=stopped.set)
    next(results)
    results.close()
    assert waits == [True], "stopped, and not waited for until its end"


@pytest.mark.parametrize(("cores", "needed"), [(1, 11), (2, 17), (16, 101)])
def test_as_many_threads_are_asked_for_as_commands_were_seen_to_start(
    monkeypatch: pytest.MonkeyPatch, cores: int, needed: int
) -> None:
    start, allowed, started = parallel.start_thread, needed, 0

    def count(target: Callable[[], object], name: str) -> threading.Thread:
        nonlocal started
        if started == allowed:
            raise parallel.make_thread_error()
        started += 1
        return start(target, name)

    monkeypatch.setattr(parallel, "available_cores", lambda: cores)
    monkeypatch.setattr(parallel, "start_thread", count)
    before = threading.active_count()
    check_resources()
    assert (started, threading.active_count()) == (needed, before), "none is left"
    started, allowed = 0, needed - 1
    with pytest.raises(ResourceError, match=f"the system starts {needed - 1}, and {needed} are needed"):
        check_resources()
    assert threading.active_count() == before
