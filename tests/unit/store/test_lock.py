"""The lock on an output: one job at a time, and a dead owner keeps nobody out."""

import json
import logging
import os
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
from kit.programs import command

from clip.errors import StoreBusyError, StoreError
from clip.store import lock
from clip.store.lock import LOCK, hold_lock, read_process_space, read_process_start

ELSEWHERE = {"host": "other", "processes": "another boot", "pid": 7, "began": "1", "owner": "them", "count": 3}


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "HEARTBEAT_S", 0.02)
    monkeypatch.setattr(lock, "STALE_S", 0.3)
    monkeypatch.setattr(lock, "LOOK_S", 0.02)


def write(folder: Path, **changes: Any) -> None:
    (folder / LOCK).write_text(json.dumps(ELSEWHERE | changes))


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / LOCK).read_text())


def test_a_second_job_is_refused_and_the_first_is_named(tmp_path: Path) -> None:
    with hold_lock(tmp_path):
        with pytest.raises(StoreBusyError, match=rf"process {os.getpid()} on .* is at work there"), hold_lock(tmp_path):
            pass
        assert record(tmp_path)["pid"] == os.getpid()
    assert not (tmp_path / LOCK).exists()
    with hold_lock(tmp_path) as held:
        held.check()


def test_no_heartbeat_comes_after_the_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "HEARTBEAT_S", 0.0)
    write = lock.Lock._write

    def slow(self: lock.Lock) -> None:
        threading.Event().wait(0.01)
        write(self)

    monkeypatch.setattr(lock.Lock, "_write", slow)
    for _ in range(20):
        with hold_lock(tmp_path):
            threading.Event().wait(0.005)
        assert not (tmp_path / LOCK).exists()


def test_it_is_released_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="of the job"), hold_lock(tmp_path):
        raise RuntimeError("of the job")
    assert not (tmp_path / LOCK).exists()


def test_the_owner_shows_that_it_lives(tmp_path: Path) -> None:
    with hold_lock(tmp_path):
        first = record(tmp_path)
        beats = threading.Event()
        for _ in range(200):
            if record(tmp_path)["count"] > first["count"] + 1:
                beats.set()
                break
            threading.Event().wait(0.02)
        assert beats.is_set()
        assert {**record(tmp_path), "count": 0} == {**first, "count": 0}


def test_the_lock_of_a_process_that_was_killed_is_taken_over_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lock, "STALE_S", 1000.0)
    subprocess.run(command("die_with_lock", tmp_path), check=False)
    dead = record(tmp_path)["pid"]
    with hold_lock(tmp_path) as held:
        held.check()
        assert record(tmp_path)["pid"] == os.getpid()
    assert f"taking over the lock of process {dead} on" in caplog.text


def test_a_reused_pid_does_not_keep_a_lock(tmp_path: Path) -> None:
    write(tmp_path, processes=read_process_space(), pid=os.getpid(), began="long ago")
    with hold_lock(tmp_path):
        assert record(tmp_path)["began"] == read_process_start(os.getpid())


def test_another_hosts_lock_is_taken_over_when_its_count_does_not_change(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path)
    with hold_lock(tmp_path) as held:
        held.check()
    assert [entry.levelno for entry in caplog.records] == [logging.WARNING] * 2


def test_another_hosts_lock_that_counts_on_is_kept(tmp_path: Path) -> None:
    over = threading.Event()

    def beat() -> None:
        count = 0
        while not over.wait(0.01):
            count += 1
            temporary = tmp_path / "record"
            temporary.write_text(json.dumps(ELSEWHERE | {"count": count}))
            temporary.replace(tmp_path / LOCK)

    write(tmp_path)
    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(StoreBusyError, match="process 7 on other is at work there"), hold_lock(tmp_path):
            pass
    finally:
        over.set()
        thread.join()
    assert record(tmp_path)["owner"] == "them"


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"host": "x"}'])
def test_an_invalid_record_is_no_lock(tmp_path: Path, content: str) -> None:
    (tmp_path / LOCK).write_text(content)
    with hold_lock(tmp_path) as held:
        held.check()


def test_a_stalled_job_learns_that_another_has_taken_over(tmp_path: Path) -> None:
    with hold_lock(tmp_path) as held:
        write(tmp_path)
        with pytest.raises(
            StoreBusyError, match=r"process 7 on other has taken it over, as this job had stalled. Run again when"
        ):
            held.check()
    assert record(tmp_path)["owner"] == "them"  # and stays theirs


def test_a_folder_that_cannot_be_written_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"), hold_lock(tmp_path / "file"):
        pass
