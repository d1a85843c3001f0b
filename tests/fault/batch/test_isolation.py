"""A decoder that crashes, hangs or eats memory on one image: that one is a failure row, all others are done.

The decoder is a plugin of Pillow's, as a user may have one: tests/hostile.py.
"""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from kit import formula, hostile, programs
from kit.inputs import draw_photos, number_names
from kit.outputs import read_rows, read_rows_by_id

from clip.batch.crops import CropRing
from clip.batch.decode import Chunk, Decoding
from clip.batch.processes import DecoderProcesses, isolate
from clip.budgets import ByteBudget
from clip.jobs.options import DecodeOptions, Limits
from clip.network.records import PreprocessSettings
from clip.records import Failure, Item, Pixels, Row
from clip.sources.source import Source

DEEDS = {
    "crash": ("decode", "ChildProcessError", "was ended by SIGSEGV"),
    "abort": ("decode", "ChildProcessError", "was ended by SIGABRT"),
    "leave": ("decode", "ChildProcessError", "ended with code 3"),
    "hang": ("decode", "TimeoutError", "not decoded after 4 s"),
    "hang-with-the-lock": ("decode", "TimeoutError", "not decoded after 4 s"),
    "eat": ("decode", "MemoryError", "needs more than 512,160,000 bytes of memory"),
}
IMAGES = 12


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hostile.write_plugin(tmp_path_factory.mktemp("plugin"))


def command(photos: Path, output: Path, weights: Path, *flags: str) -> list[str]:
    return [sys.executable, "-m", "clip", "embed", str(photos), "-o", str(output), "-m", str(weights), *flags]


def test_each_image_that_harms_its_decoder_is_a_failure_row_and_the_others_have_vectors(
    plugin: Path, weights: Path, tmp_path: Path
) -> None:
    names = number_names(IMAGES)
    draw_photos(tmp_path / "photos", names)
    for place, (deed, when) in enumerate((deed, when) for deed in DEEDS for when in ("open", "load")):
        (tmp_path / "photos" / f"{place:02}.{deed}-{when}.hostile").write_bytes(hostile.picture(deed, when))
    flags = ["--isolate", "--max-seconds", "4", "--max-pixels", "10000", "--shard-size", "5", "--workers", "3"]
    ran = subprocess.run(
        command(tmp_path / "photos", tmp_path / "out", weights, *flags),
        env=hostile.environment(plugin),
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
    )
    assert ran.returncode == 3, ran.stderr
    assert [row["id"] for row in read_rows(tmp_path / "out")] == names
    failures = read_rows_by_id(tmp_path / "out", "failures")
    assert len(failures) == 2 * len(DEEDS)
    for row in failures.values():
        deed = row["id"].split(".")[1].rpartition("-")[0]
        _, error, words = DEEDS[deed]
        assert (row["error"], row["stage"] in ("open", "decode"), words in row["message"]) == (error, True, True), row
    assert f"read {IMAGES + 12} = written {IMAGES}, failed 12" in ran.stderr


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return draw_photos(tmp_path / "photos", number_names(IMAGES))


BUDGET_BYTES = 100_000_000


def make_decoding(photos: Path, **options: Any) -> Decoding:
    return Decoding(Source((str(photos),)), PreprocessSettings(32), Limits(), DecodeOptions(**options), hashes=True)


def item(photos: Path, name: str) -> Item:
    return Item(name, str(photos / name), 1)


def assert_same(found: Sequence[Any], expected: Sequence[Pixels | Failure]) -> None:
    for one, other in zip(found, expected, strict=True):
        if isinstance(other, Failure):
            assert one == other
        else:
            assert one.row == other.row
            assert (one.array == other.array).all()


def test_pixels_and_failures_are_those_of_the_thread_itself(photos: Path) -> None:
    (photos / "broken.png").write_bytes(b"no image")
    decoding = make_decoding(photos)
    with isolate(decoding, 20.0, BUDGET_BYTES) as decode:
        for name in ("00.png", "broken.png", "missing.png", "01.png"):
            assert_same(decode(item(photos, name)), decoding(item(photos, name)))


def test_frames_come_from_a_process_one_at_a_time_and_are_those_of_the_thread_itself(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = [formula.picture(n, 40, 30) for n in range(3)]
    pages[0].save(photos / "pages.tiff", save_all=True, append_images=pages[1:])
    held: list[int] = []
    most: list[int] = []

    @contextmanager
    def reserve(_budget: ByteBudget, size_bytes: int) -> Generator[None]:
        held.append(size_bytes)
        most.append(len(held))
        yield
        held.pop()

    monkeypatch.setattr(ByteBudget, "reserve", reserve)
    decoding = make_decoding(photos, frames="all")
    with isolate(decoding, 20.0, BUDGET_BYTES) as decode:
        found = decode(item(photos, "pages.tiff"))
    assert most == [1, 1, 1], "a budget that holds one frame would be waited for for ever"
    assert held == []
    assert_same(found, decoding(item(photos, "pages.tiff")))


def test_an_image_that_dies_of_an_earlier_one_is_tried_again(
    plugin: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "poison.hostile").write_bytes(hostile.picture("poison"))
    monkeypatch.setattr(sys, "path", [str(plugin), *sys.path])
    with isolate(make_decoding(photos), 20.0, BUDGET_BYTES) as decode:
        assert isinstance(decode(item(photos, "poison.hostile"))[0], Pixels)
        assert isinstance(decode(item(photos, "00.png"))[0], Pixels)


@pytest.mark.parametrize("deed", ["crash", "leave"])
def test_an_image_that_kills_a_process_costs_its_chunk_nothing_else(
    deed: str, plugin: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "05a.hostile").write_bytes(hostile.picture(deed, "load"))
    (photos / "07a.png").write_bytes(b"no image")
    monkeypatch.setattr(sys, "path", [str(plugin), *sys.path])
    decoding = make_decoding(photos)
    names = sorted(path.name for path in photos.iterdir())
    ring = CropRing(32, 32)
    start = ring.take(len(names))
    chunk = Chunk([item(photos, name) for name in names], ring.crops[start : start + len(names)], start)
    processes = DecoderProcesses(decoding, ring, workers=1, budget_bytes=BUDGET_BYTES)
    try:
        answer = processes(chunk)
    finally:
        processes.close()
        ring.close()
    [killer] = [outcome for outcome in answer.outcomes if outcome.id == "05a.hostile"]
    assert isinstance(killer, Failure)
    assert killer.error == "ChildProcessError"
    others = [decoding(entry)[0] for entry in chunk.entries if entry.id != "05a.hostile"]
    found = iter(chunk.crops)
    outcomes = [outcome for outcome in answer.outcomes if outcome is not killer]
    assert_same([Pixels(o, next(found)) if isinstance(o, Row) else o for o in outcomes], others)


def test_where_memory_is_short_the_system_is_to_end_the_decoder_and_not_the_job(photos: Path) -> None:
    before = _find_children()
    with isolate(make_decoding(photos), 20.0, BUDGET_BYTES) as decode:
        decode(item(photos, "00.png"))
        (pid,) = _find_children() - before
        assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "1000\n"
        assert Path("/proc/self/oom_score_adj").read_text() != "1000\n"


def _find_children() -> set[str]:
    """The processes that this thread has started."""
    return set(Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split())


def test_a_pause_of_all_of_a_job_is_not_counted_as_an_images_time(plugin: Path, photos: Path) -> None:
    (photos / "pause.hostile").write_bytes(hostile.picture("pause4"))
    ran = subprocess.run(
        programs.command("decode_while_paused", photos / "pause.hostile", "3.5"),
        env=hostile.environment(plugin),
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        timeout=600,
    )
    assert (ran.returncode, ran.stdout) == (0, "pixels\n")


def test_a_process_whose_job_was_killed_ends_by_itself_even_if_it_hangs(plugin: Path, photos: Path) -> None:
    (photos / "hang.hostile").write_bytes(hostile.picture("hang-with-the-lock"))
    environment = hostile.environment(plugin)
    ran = subprocess.run(
        programs.command("die_while_decoding", photos / "hang.hostile"),
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        timeout=600,
    )
    assert ran.returncode == -signal.SIGKILL
    process = Path("/proc", ran.stdout.strip())
    deadline = time.monotonic() + 200
    while _runs(process):
        assert time.monotonic() < deadline, "still there"
        time.sleep(0.1)


def _runs(process: Path) -> bool:
    """Whether a process is there, and no zombie that nobody waits for."""
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
