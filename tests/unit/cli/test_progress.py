"""How far a run is, told in each style: lines for people and for programs, at intervals, with the time left."""

import json
import sys
from datetime import UTC, datetime

import pytest

from clip.cli import progress
from clip.cli.progress import Reporter, Speed
from clip.jobs.embed import Listing, Progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still until a test moves it."""
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


def test_lines_come_at_intervals_with_the_rate_of_this_run_and_the_time_left(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    told = Reporter("plain")
    for read in range(101, 321):  # a hundred were there already; ten a second
        told.update(Progress(read, 1_000_000, 3, 100))
        clock[0] += 0.1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert lines[0] == "151 of 1,000,000 images, failed 3, 10.2 images/s, 27 h 13 min left"
    assert lines[3].startswith("301 of 1,000,000 images, failed 3, 10.0")


def test_json_lines_have_numbers_for_programs(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    told = Reporter("json")
    clock[0] += 1
    told.update(Progress(0, 0, 0, listing=Listing(20_000)))
    told.update(Progress(0, 0, 0, loading="ViT-B/32"))
    told.update(Progress(1, 200, 0))
    clock[0] += 5
    told.update(Progress(51, 200, 2, bytes=5_000_000))
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert all(datetime.fromisoformat(line.pop("time")).tzinfo is UTC for line in lines)
    assert lines == [
        {"event": "listing", "images": 20_000, "archives": 0, "phase": "listing", "elapsed_s": 1.0},
        {"event": "loading", "model": "ViT-B/32", "phase": "loading", "elapsed_s": 1.0},
        {
            "event": "progress",
            "read": 51,
            "total": 200,
            "failed": 2,
            "shard": 0,
            "shards": 0,
            "images_per_s": 10.2,
            "bytes_per_s": 1_000_000,
            "seconds_left": 15,
            "phase": "running",
            "elapsed_s": 6.0,
        },
    ]


def test_what_was_listed_is_told_at_once_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    found = Listing(1, 2, "'a.jpg' (photos/a.jpg)", {"hidden": 3})
    for style, line in {
        "plain": "listed 1 image and 2 archives, the first 'a.jpg' (photos/a.jpg); ignored: 3 hidden",
        "json": json.dumps({"event": "listed", **vars(found)}),
        "none": "",
    }.items():
        Reporter(style).update(Progress(0, 0, 0, listing=found))
        said = capsys.readouterr().err.strip()
        assert (said.startswith(line[:-1]) and '"phase": "listing"' in said) if style == "json" else said == line


def test_archives_that_do_not_tell_are_counted_by_shards(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    for style in ("plain", "json"):
        told = Reporter(style)
        told.update(Progress(1, None, 0, 0, None, 1, 9))
        clock[0] += 5
        told.update(Progress(51, None, 2, 0, None, 3, 9))
    plain, as_json = capsys.readouterr().err.splitlines()
    assert plain == "51 images in 3 of 9 shards, failed 2, 10.2 images/s"
    assert json.loads(as_json)["total"] is json.loads(as_json)["seconds_left"] is None


def test_none_says_nothing_and_auto_asks_the_terminal(
    clock: list[float], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for style, words in (("none", ""), ("auto", "listed 20,000 images\n")):
        told = Reporter(style)
        clock[0] += 5
        told.update(Progress(0, 0, 0, listing=Listing(20_000)))
        assert capsys.readouterr().err == words
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    bar = Reporter()
    bar.update(Progress(0, 0, 0, listing=Listing(500)))
    bar.update(Progress(3, 5, 1, 2))
    bar.update(Progress(5, 5, 1, 2))
    bar.close()
    drawn = capsys.readouterr().err
    assert "500 images listed" in drawn
    assert "5/5" in drawn
    assert "failed=1" in drawn


def test_the_rate_is_that_of_the_last_ten_seconds_and_falls_while_nothing_comes() -> None:
    speed = Speed()
    for second in range(31):  # ten a second, then a hundred
        read = 10 * second if second <= 20 else 200 + 100 * (second - 20)
        speed.add(float(second), Progress(read, 2_200, 0, bytes=1_000 * read))
    assert speed.rate(30.0) == pytest.approx(100)
    assert speed.bytes_rate(30.0) == pytest.approx(100_000)
    assert speed.seconds_left(30.0) == 10
    assert speed.rate(40.0) == pytest.approx(50)
    assert not Speed()


def test_the_clock_of_a_terminal_moves_while_nothing_is_reported(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "TICK_S", 0.01)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    bar = Reporter()
    bar.update(Progress(0, 0, 0, loading="ViT-B/32"))
    drawn = ""
    while drawn.count("loading ViT-B/32") < 3:  # the same phase, drawn again
        drawn += capsys.readouterr().err
    bar.update(Progress(1, 10, 0))
    bar.close()
    assert "1/10" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "119 min"), (7260, "2 h 1 min"), (200_000, "2 days 7 h")],
)
def test_a_time_left_is_told_as_people_would(seconds: int, words: str) -> None:
    assert progress.format_duration(seconds) == words
