"""The lock of an output on an object store: put if absent, kept by its version, taken over from the dead by one."""

import json
import os
import threading
from collections.abc import Callable
from typing import Any

import pytest
from kit.object_store import BUCKET, ObjectServer

from clip.errors import StoreBusyError, StoreUnreachableError
from clip.jobs.part import PartOf
from clip.object_paths import ObjectPath
from clip.store import lock
from clip.store.lock import ObjectLock, hold_lock, hold_plan_lock

OUT = ObjectPath(f"s3://{BUCKET}/out")
ELSEWHERE = {"host": "other", "processes": "another boot", "pid": 7, "began": "1", "owner": "them", "count": 3}


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"OBJECT_HEARTBEAT_S": 0.02, "OBJECT_STALE_S": 0.3, "LOOK_S": 0.02, "WAIT_S": 0.01}.items():
        monkeypatch.setattr(lock, name, value)


@pytest.fixture(autouse=True)
def server(objects: ObjectServer) -> ObjectServer:
    return objects


def put(server: ObjectServer, name: str = ".lock", **changes: Any) -> None:
    server.put(f"out/{name}", json.dumps(ELSEWHERE | changes).encode())


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(3000):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it did not come to be")


def test_a_second_job_is_refused_and_nothing_is_left(server: ObjectServer) -> None:
    with hold_lock(OUT) as held:
        with pytest.raises(StoreBusyError, match=rf"process {os.getpid()} on .* is at work there"), hold_lock(OUT):
            pass
        held.check()
        beats = server.requests.count("PUT /bucket/out/.lock")
        wait_until(lambda: server.requests.count("PUT /bucket/out/.lock") > beats + 2)
        held.check()
    assert server.list() == []


def test_parts_of_one_number_are_beside_each_other_and_of_two_are_not(server: ObjectServer) -> None:
    with hold_lock(OUT, PartOf(0, 2)), hold_lock(OUT, PartOf(1, 2)), hold_plan_lock(OUT):
        for other in (None, PartOf(0, 2), PartOf(2, 3)):
            with pytest.raises(StoreBusyError), hold_lock(OUT, other):
                pass
        assert server.list() == ["out/.lock.part-0-of-2", "out/.lock.part-1-of-2", "out/.lock.plan"]
    assert server.list() == []


@pytest.mark.parametrize("word", ["500", "503", "lost", "silence"])
def test_a_put_that_fails_or_loses_its_answer_is_no_rival(word: str, server: ObjectServer) -> None:
    server.fail("PUT .*/.lock", word)
    with hold_lock(OUT) as held:
        server.fail("PUT .*/.lock", word, word)
        wait_until(lambda: not any(words for _, words in server.scripts))
        beats = server.requests.count("PUT /bucket/out/.lock")
        wait_until(lambda: server.requests.count("PUT /bucket/out/.lock") > beats + 2)
        held.check()
    assert server.list() == []


def test_a_server_that_never_answers_ends_the_attempt(server: ObjectServer) -> None:
    server.fail("PUT .*", *["503"] * 100)
    with pytest.raises(StoreUnreachableError), hold_lock(OUT):
        pass


def test_the_lock_of_a_dead_machine_is_taken_over_and_a_living_one_waited_for(server: ObjectServer) -> None:
    put(server)
    with hold_lock(OUT) as held:
        held.check()
        assert json.loads(server.read("out/.lock"))["pid"] == os.getpid()
    put(server, pid=8)
    ended, counts = threading.Event(), iter(range(10**6))

    def beat() -> None:
        while not ended.wait(0.02):
            put(server, count=next(counts))

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(StoreBusyError, match="process 7 on other is at work"), hold_lock(OUT):
            pass
    finally:
        ended.set()
        thread.join()


def test_an_owner_that_stalled_learns_that_it_lost_the_lock(server: ObjectServer) -> None:
    with hold_lock(OUT) as held:
        put(server)
        with pytest.raises(StoreBusyError, match="process 7 on other has taken it over"):
            held.check()
        beats = len(server.requests)
        wait_until(lambda: len(server.requests) > beats + 5)
        assert json.loads(server.read("out/.lock"))["owner"] == "them", "a heartbeat wrote over it"
    assert server.list() == ["out/.lock"]


def test_a_stale_lock_that_was_half_removed_is_no_lock(server: ObjectServer) -> None:
    server.put("out/.lock", b"{}")
    with hold_lock(OUT) as held:
        held.check()


@pytest.mark.parametrize("is_stale", [False, True])
def test_of_many_that_come_at_once_at_most_one_gets_in(
    is_stale: bool, server: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "OBJECT_STALE_S", 3.0)  # longer than a busy machine holds a heartbeat up
    inside: list[int] = []
    most: list[int] = []
    guard = threading.Lock()

    def come() -> None:
        mine = ObjectLock(OUT, ".lock.plan")  # which waits for its turn
        mine.acquire()
        with guard:
            inside.append(1)
            most.append(len(inside))
        mine.holding.check()
        with guard:
            inside.pop()
        mine.release()

    if is_stale:
        put(server, ".lock.plan")
    threads = [threading.Thread(target=come) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 6
    assert server.list() == []
