"""What happens around a run: another job, images that change, clocks, locales, masks, kills. Nothing is lost."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from kit import forks, formula
from kit.inputs import draw_photos, number_names
from kit.jobs import embed_job

import clip

COMMAND = str(Path(sys.executable).with_name("clip"))
LIMIT_S = 600.0  # ten times what a busy machine takes
IMAGES, SHARD_SIZE = 7, 4
GOOD = number_names(IMAGES)
MIDDLE = SHARD_SIZE + 1  # in the second shard
FLAGS = ["--shard-size", str(SHARD_SIZE), "--threads", "1"]
KILL: forks.Step = ("at", MIDDLE, "kill")
CLOCK: forks.Step = ("set_clock_back",)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("circumstances")


@pytest.fixture(scope="module")
def photos(folder: Path) -> Path:
    """Two shards, a failure in the second."""
    return draw_photos(folder / "photos", GOOD, height=40, broken=["05.broken.jpg"])


@pytest.fixture(scope="module")
def server() -> Iterator[forks.Server]:
    with forks.Server("serve_embed") as server:
        yield server


@pytest.fixture(scope="module")
def another() -> Iterator[forks.Server]:
    """For a second job at the same time."""
    with forks.Server("serve_embed") as server:
        yield server


@pytest.fixture(scope="module")
def arguments(photos: Path, weights: Path) -> list[str]:
    """All but the output."""
    return [str(photos), "-m", str(weights), *FLAGS]


Content = tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, Any]]


@pytest.fixture(scope="module")
def whole(server: forks.Server, arguments: list[str], folder: Path) -> Content:
    """What a run writes that nothing disturbed."""
    assert server.embed(*arguments, "-o", folder / "whole").code == 3
    rows, failures, counts = contents(folder / "whole")
    assert [row["id"] for row in rows] == GOOD
    assert [row["id"] for row in failures] == ["05.broken.jpg"]
    return rows, failures, counts


def contents(out: Path) -> Content:
    """Rows, failures and counts; all parts open, and the counts are those of the parts."""
    rows, failures = (pq.read_table(out / name).to_pylist() for name in ("embeddings", "failures"))
    counts = json.loads((out / "manifest.json").read_text())["counts"]
    assert counts["written"] == len(rows)
    assert counts["failed"] == len(failures)
    assert counts["read"] == counts["written"] + counts["failed"]
    return rows, failures, counts


def ids(content: Content) -> tuple[list[str], list[str]]:
    rows, failures, _ = content
    return [row["id"] for row in rows], [row["id"] for row in failures]


@pytest.mark.parametrize("flags", [[], ["--overwrite"]], ids=["plain", "overwrite"])
def test_of_two_jobs_at_once_one_works_and_the_other_is_refused(
    server: forks.Server, another: forks.Server, arguments: list[str], whole: Content, tmp_path: Path, flags: list[str]
) -> None:
    """They begin at the same moment, and the one that works waits for the other's end."""
    with ThreadPoolExecutor() as pool:
        for number in range(8):
            out, reached, over = (tmp_path / f"{number} {name}" for name in ("out", "reached", "over"))
            if flags:
                assert server.embed(*arguments, "-o", out, "--limit", "2").code == 0
            first: list[forks.Step] = [("at", 1, "wait", reached, over), ("meet", time.monotonic() + 0.1)]
            jobs = [pool.submit(one.embed, *arguments, "-o", out, *flags, first=first) for one in (server, another)]
            done, _ = wait(jobs, return_when=FIRST_COMPLETED)
            over.touch()
            ended = [job.result() for job in sorted(jobs, key=lambda job: job not in done)]
            assert [one.code for one in ended] == [2, 3], ended
            line = rf"clip: {out}: process {ended[1].pid} on \S+ is at work there, expected no other job\. .*\n"
            assert re.fullmatch(line, ended[0].said), ended
            assert contents(out) == whole


def shrink(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(bytes(100))


def grow_beyond_the_cap(path: Path) -> None:
    with path.open("ab") as file:
        file.truncate(2**20 + 1)


def replace_by_another_picture(path: Path) -> None:
    formula.picture(99, 50, 30).save(path)


def replace_by_text(path: Path) -> None:
    path.write_text("no image")


def replace_by_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "inside.png").touch()


def replace_by_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def replace_by_a_circle(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def replace_by_a_device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/null")


# What becomes of it: None for a row, else the stage of the failure.
CHANGES: dict[Callable[[Path], None], str | None] = {
    grow: None,
    replace_by_another_picture: None,
    shrink: "decode",
    empty: "open",
    replace_by_text: "open",
    grow_beyond_the_cap: "read",
    Path.unlink: "read",
    replace_by_a_folder: "read",
    replace_by_a_pipe: "read",
    replace_by_a_circle: "read",
    replace_by_a_device: "read",
}


def await_file(path: Path) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("moment", [1, 5, 6, 14])
def test_pictures_that_change_under_the_job_are_rows_or_failure_rows(
    server: forks.Server, weights: Path, tmp_path: Path, moment: int
) -> None:
    photos, out, reached, over = (tmp_path / name for name in ("photos", "out", "reached", "over"))
    names = number_names(40)
    draw_photos(photos, names, height=40)
    changed = dict(zip(names[20:], CHANGES, strict=False))  # those after the first 20 are not read by then
    command = [photos, "-o", out, "-m", weights, "--threads", 1, "--workers", 1, "--batch-size", 1, "--shard-size", 5]
    first: list[forks.Step] = [("at", moment, "wait", reached, over)]
    with ThreadPoolExecutor() as pool:
        job = pool.submit(server.embed, *map(str, command), "--max-bytes", str(2**20), first=first)
        await_file(reached)
        for name, change in changed.items():
            change(photos / name)
        over.touch()
        assert job.result().code == 3, job.result()
    rows, failures, counts = contents(out)
    expected = {name: CHANGES[change] for name, change in changed.items() if CHANGES[change]}
    assert {row["id"]: row["stage"] for row in failures} == expected
    assert [row["id"] for row in rows] == [name for name in names if name not in expected]
    assert counts["read"] == 40
    sizes = {row["id"]: (row["width"], row["height"]) for row in rows}
    assert {name for name, size in sizes.items() if size != (40, 40)} == {names[21]}  # as it was when it was read


def test_photos_that_go_as_a_whole_are_failure_rows(weights: Path, photos: Path, tmp_path: Path) -> None:
    source, output = tmp_path / "photos", tmp_path / "out"
    shutil.copytree(photos, source)
    job = embed_job(source=source, output=output, model=str(weights), batch_size=1, workers=1, threads=1)
    report = clip.embed(job, lambda told: told.loading or shutil.rmtree(source, ignore_errors=True))
    rows, failures, _ = contents(output)
    assert sorted(row["id"] for row in rows + failures) == sorted([*GOOD, "05.broken.jpg"])
    assert {(row["stage"], row["error"]) for row in failures} == {("read", "FileNotFoundError")}
    assert report.read == report.written + report.failed == IMAGES + 1
    assert report.failed > 3


def test_a_clock_that_is_set_back_all_the_time_changes_nothing(
    server: forks.Server, arguments: list[str], whole: Content, tmp_path: Path
) -> None:
    ended = server.embed(*arguments, "-o", tmp_path / "out", first=[CLOCK])
    assert ended.code == 3, ended
    assert re.search(r"; \d+\.\d s, \d+\.\d images/s; ", ended.said), ended
    assert contents(tmp_path / "out") == whole


@pytest.mark.parametrize("modified", [-(2**30), 0, 2**33])
def test_a_lock_of_another_time_is_kept_while_its_job_lives(
    server: forks.Server, another: forks.Server, arguments: list[str], whole: Content, tmp_path: Path, modified: int
) -> None:
    """And what the job has written stays, whatever the other would do with it."""
    out, reached, over = (tmp_path / name for name in ("out", "reached", "over"))
    first: list[forks.Step] = [("at", MIDDLE, "wait", reached, over)]
    with ThreadPoolExecutor() as pool:
        job = pool.submit(server.embed, *arguments, "-o", out, first=first)
        await_file(reached)
        os.utime(out / ".lock", (modified, modified))
        refused = another.embed(*arguments, "-o", out, "--overwrite", first=[CLOCK])
        over.touch()
        assert (refused.code, job.result().code) == (2, 3), (refused, job.result())
    assert contents(out) == whole


@pytest.mark.parametrize("modified", [-(2**30), 0, 2**33])
def test_files_of_another_time_change_nothing(
    server: forks.Server, photos: Path, weights: Path, whole: Content, tmp_path: Path, modified: int
) -> None:
    """Images and what a killed run left, its lock among it, were last written in 1935, 1970 or 2242."""
    shutil.copytree(photos, tmp_path / "photos")
    command: list[str | Path] = [tmp_path / "photos", "-m", weights, *FLAGS, "-o", tmp_path / "out"]
    for path in (tmp_path / "photos").iterdir():
        os.utime(path, (modified, modified))
    assert server.embed(*command, first=[KILL]).code == -signal.SIGKILL
    assert (tmp_path / "out/.lock").exists()
    for path in (tmp_path / "out").rglob("*"):
        os.utime(path, (modified, modified))
    ended = server.embed(*command, first=[CLOCK])
    assert ended.code == 3, ended
    assert f"; {SHARD_SIZE} by an earlier run; " in ended.said
    assert ids(contents(tmp_path / "out")) == ids(whole)
    assert not (tmp_path / "out/.lock").exists()


ODD = [  # names as bytes; what begins with "bad" is no image
    "é.png".encode(),
    "e\N{COMBINING ACUTE ACCENT}.png".encode(),
    b"not utf8 \xff.png",
    b"\\xff.png",
    b"new\nline.png",
    "日本/\N{PILE OF POO}.png".encode(),
    b"\xfe/\xff.png",
    "bad ö.jpg".encode(),
    b"bad \xff\n.jpg",
]


def identifier(name: bytes) -> str:
    return name.replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")


def test_the_locale_shows_in_nothing_that_is_written(weights: Path, tmp_path: Path) -> None:
    photos, png = tmp_path / "phötos", tmp_path / "0.png"
    formula.picture(0, 40, 40).save(png)
    for name in ODD:
        path = Path(os.fsdecode(os.fsencode(photos) + b"/" + name))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"no image" if name.startswith(b"bad") else png.read_bytes())

    def run(out: str, locale: dict[str, str], *flags: str) -> subprocess.CompletedProcess[bytes]:
        command = [COMMAND, "embed", str(photos), "-o", str(tmp_path / out), "-m", str(weights), *FLAGS, *flags]
        done = subprocess.run(
            [os.fsencode(part) for part in command],
            env=os.environ | locale,
            capture_output=True,
            timeout=LIMIT_S,
            check=False,
        )
        assert done.stdout == b""
        assert not re.search(rb"Traceback|Unicode|codec", done.stderr), done
        first, *_, last = done.stderr.splitlines()  # in between a slow machine tells how far it is
        assert first.startswith(b"listed "), done
        assert last.startswith(b"read ") or b" of 9 images are kept; " in last, done
        return done

    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    utf8 = {"LC_ALL": "C.UTF-8", "PYTHONUTF8": "1"}
    assert run("plain", plain).returncode == 3
    assert run("utf8", utf8).returncode == 3
    found, expected = contents(tmp_path / "plain"), contents(tmp_path / "utf8")
    assert found == expected
    assert sorted(ids(found)[0]) == sorted(identifier(name) for name in ODD if not name.startswith(b"bad"))
    assert sorted(ids(found)[1]) == sorted(identifier(name) for name in ODD if name.startswith(b"bad"))
    again = run("plain", utf8)
    assert again.returncode == 3
    assert f"; {len(ODD)} by an earlier run; ".encode() in again.stderr
    stopped = run("stopped", plain, "--on-failure", "stop")
    assert stopped.returncode == 1
    assert b"images failed" in stopped.stderr


@pytest.mark.parametrize(("began", "went_on"), [(0o077, 0o000), (0o000, 0o077)], ids=["closed", "open"])
def test_a_run_begun_under_one_mask_goes_on_under_another(
    server: forks.Server, arguments: list[str], whole: Content, tmp_path: Path, began: int, went_on: int
) -> None:
    def modes() -> set[int]:
        return {path.stat().st_mode & 0o777 for path in [tmp_path / "out", *(tmp_path / "out").rglob("*")]}

    command: list[str | Path] = [*arguments, "-o", tmp_path / "out"]
    assert server.embed(*command, first=[KILL, ("umask", began)]).code == -signal.SIGKILL
    assert all(mode & began == 0 for mode in modes())
    ended = server.embed(*command, first=[("umask", went_on)])
    assert ended.code == 3, ended
    assert f"; {SHARD_SIZE} by an earlier run; " in ended.said
    assert contents(tmp_path / "out") == whole
    shutil.rmtree(tmp_path / "out")
    for mask in (began, went_on):
        assert server.embed(*command, first=[("umask", mask)]).code == 3
    assert contents(tmp_path / "out") == whole


STEMS = ["a", "A", "é", "e\N{COMBINING ACUTE ACCENT}", "new\nline", " ", "-rf", "\\", "\\xff", "*", "\N{PILE OF POO}"]
stems = st.one_of(
    st.sampled_from([stem.encode() for stem in STEMS] + [b"\xff", b"\xc3"]),
    st.binary(min_size=1, max_size=20).filter(lambda stem: not stem.startswith(b".") and not {0, 47} & {*stem}),
)
kinds = st.sampled_from(
    [
        ("good", b".png"),
        ("good", b".PNG"),
        ("cut", b".png"),
        ("empty", b".gif"),
        ("text", b".jpg"),
        ("ignored", b".txt"),
    ]
)
folders = st.lists(stems, max_size=2).map(lambda names: b"".join(name + b"/" for name in names))


@st.composite
def names(draw: st.DrawFn) -> tuple[bytes, str]:
    """A path below the photos, and what stands there. A name has up to the 255 bytes that file systems allow."""
    kind, extension = draw(kinds)
    stem = draw(stems)
    if draw(st.booleans()):
        stem = (stem * 255)[: 255 - len(extension)]
    return draw(folders) + stem + extension, kind


@pytest.fixture(scope="module")
def png(folder: Path) -> bytes:
    formula.picture(0, 40, 40).save(folder / "one.png")
    return (folder / "one.png").read_bytes()


@pytest.fixture(scope="module")
def took_s(server: forks.Server, arguments: list[str], folder: Path) -> float:
    """Of a run that is not killed."""
    started = time.monotonic()
    assert server.embed(*arguments, "-o", folder / "took").code == 3
    return time.monotonic() - started


# A kill at some time cannot be repeated, so what failed is shown as it was drawn and not made smaller.
@settings(deadline=None, max_examples=20, phases=[Phase.explicit, Phase.generate])
@given(
    st.lists(names(), max_size=12, unique_by=lambda entry: entry[0]),
    st.lists(st.floats(0, 1) | st.integers(1, 40), min_size=1, max_size=2),  # a part of a run's time, or of its syncs
    st.integers(1, 5),
)
def test_a_killed_run_over_any_names_loses_nothing_and_does_nothing_twice(
    server: forks.Server,
    weights: Path,
    png: bytes,
    took_s: float,
    entries: list[tuple[bytes, str]],
    kills: list[float | int],
    shard_size: int,
) -> None:
    contents_of = {"good": png, "cut": png[: len(png) // 2], "empty": b"", "text": b"A text.", "ignored": png}
    with tempfile.TemporaryDirectory() as folder:
        root, out = os.path.join(folder, "photos").encode(), Path(folder, "out")
        os.mkdir(root)
        placed = dict[str, str]()
        for name, kind in entries:
            path = os.path.join(root, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as file:
                file.write(contents_of[kind])
            placed[identifier(name)] = kind
        if not set(placed.values()) & {"good", "cut", "empty"}:
            return  # refused: there is nothing to be done
        command = [os.fsdecode(root), "-o", out, "-m", weights, "--threads", "1", "--shard-size", str(shard_size)]
        for kill in kills:
            if isinstance(kill, int):
                server.embed(*command, first=[("kill_at_call", "fsync", kill)])
            else:
                server.embed(*command, kill_after_s=kill * took_s)
        ended = server.embed(*command)
        good = sorted(name for name, kind in placed.items() if kind == "good")
        bad = sorted(name for name, kind in placed.items() if kind not in ("good", "ignored"))
        assert ended.code == (3 if bad else 0), ended
        found = contents(out)
        assert (sorted(ids(found)[0]), sorted(ids(found)[1])) == (good, bad)
        assert found[2]["read"] == len(good) + len(bad)
        assert sum(found[2]["ignored"].values()) == len(placed) - len(good) - len(bad)
