"""The rows of an unfinished part are saved by the minute: what a kill takes, and that the bytes stay the same."""

import hashlib
import io
import random
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kit.inputs import draw_photos, number_names
from kit.jobs import change_job, embed_job
from PIL import Image

import clip
from clip.batch import embed as embed_module
from clip.batch import run as run_module
from clip.batch.verify import verify
from clip.errors import InputError, TooManyFailuresError
from clip.jobs import EmbedJob, Progress
from clip.jobs.options import OutputPolicy
from clip.jobs.verify import VerifyJob
from clip.records import Item
from clip.sources.source import Source
from clip.store.journal import JOURNAL

IMAGES = 23
BROKEN = ["05.broken.jpg", "06.broken.jpg", "22.zz.jpg"]
INTERVAL_S = 60.0


class KilledError(BaseException):
    """What stands for kill -9: nothing of ours runs after it."""


class Clock:
    """A clock that goes on by so many seconds with each image that is read."""

    def __init__(self, seconds_an_image: float) -> None:
        self.now = 0.0
        self.seconds_an_image = seconds_an_image
        self.read = 0

    def __call__(self) -> float:
        return self.now

    def tick(self, progress: Progress) -> None:
        if progress.listing is None:
            self.now += (progress.read - self.read) * self.seconds_an_image
            self.read = progress.read


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A run's clock: 10 s for an image, so that it saves after each sixth."""
    clock = Clock(10.0)
    make = run_module.Run

    def make_run(*arguments: Any, **named: Any) -> run_module.Run:
        clock.read = 0
        return make(*arguments, clock=clock, **named)

    monkeypatch.setattr(embed_module, "Run", make_run)
    return clock


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return draw_photos(tmp_path / "photos", number_names(IMAGES), broken=BROKEN)


def make_job(source: Path, output: Path, weights: Path, **choices: Any) -> EmbedJob:
    options = {"threads": 1, "batch_size": 2, "workers": 1, "save_seconds": INTERVAL_S} | choices
    return embed_job(source=source, output=output, model=str(weights), **options)


def kill_at(job: EmbedJob, clock: Clock, moment: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Run a job until so many images are read, and kill it; return how many were read when rows were saved."""
    saved: list[int] = []

    def watch(progress: Progress) -> None:
        clock.tick(progress)
        if progress.listing is None and progress.kept > (saved[-1] if saved else 0):
            saved.append(progress.kept)
        if progress.listing is None and progress.read >= moment:
            raise KilledError

    with monkeypatch.context() as patch:
        # Neither the last save nor the removal of temporary files happens in a process that is killed.
        patch.setattr(run_module.Run, "_save_last", lambda *_: None)
        with pytest.raises(KilledError):
            clip.embed(job, watch)
    return saved


def digest(out: Path) -> dict[str, str]:
    paths = [path for folder in ("embeddings", "failures") for path in (out / folder).iterdir()]
    return {f"{path.parent.name}/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def write_tar(path: Path, photos: Path) -> Path:
    with tarfile.open(path, "w") as archive:
        for photo in sorted(photos.iterdir()):
            archive.add(photo, photo.name)
        archive.addfile(tarfile.TarInfo("notes.txt"), io.BytesIO(b""))
    return path


def write_gifs(folder: Path) -> Path:
    """Files of one to four frames, one of them broken."""
    folder.mkdir()
    for n in range(9):
        frames = [Image.fromarray(np.full((30, 40, 3), 20 * n + 5 * m, np.uint8)) for m in range(1 + n % 4)]
        frames[0].save(folder / f"{n}.gif", save_all=True, append_images=frames[1:])
    (folder / "4.zz.gif").write_bytes(b"no image")
    return folder


@pytest.mark.parametrize("form", ["folder", "tar", "frames", "small shards"])
def test_whenever_a_run_is_killed_the_next_one_reads_what_was_not_saved_and_writes_the_same_bytes(
    form: str, photos: Path, weights: Path, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources: dict[str, Callable[[], Path]] = {
        "tar": lambda: write_tar(tmp_path / "photos.tar", photos),
        "frames": lambda: write_gifs(tmp_path / "gifs"),
    }
    source = sources.get(form, lambda: photos)()
    choices: dict[str, Any] = {"frames": "all"} if form == "frames" else {}
    choices |= {"shard_size": 7} if form == "small shards" else {}
    whole = make_job(source, tmp_path / "whole", weights, **choices)
    read = clip.embed(whole).read
    expected = digest(tmp_path / "whole")
    chance = random.Random(0)
    for number, moment in enumerate([read - 1, *chance.sample(range(1, read - 1), 6)]):
        job = change_job(whole, output=tmp_path / f"out-{number}")
        for again in (moment, min(read, moment + 4)):  # killed twice
            saved = kill_at(job, clock, again, monkeypatch)
        report = clip.embed(job)
        kept = saved[-1] if saved else 0
        assert report.resumed == kept
        # Work that was done twice: what came since the last save, a batch and a chunk.
        assert again - kept <= INTERVAL_S / clock.seconds_an_image + 2 + 4, (again, saved)
        assert digest(Path(job.output)) == expected, (number, moment)
        assert not (Path(job.output) / JOURNAL).exists()
        assert (report.read, report.failed) == (read, 1 if form == "frames" else len(BROKEN))
        assert verify(VerifyJob(output=job.output)).problems == ()


def test_a_run_that_is_interrupted_keeps_all_that_is_encoded(photos: Path, weights: Path, tmp_path: Path) -> None:
    kept: list[int] = []

    def interrupt(progress: Progress) -> None:
        kept.append(progress.kept)
        if progress.listing is None and progress.read >= 16 and not kept[-1]:
            raise KeyboardInterrupt

    job = make_job(photos, tmp_path / "out", weights)
    with pytest.raises(KeyboardInterrupt):
        clip.embed(job, interrupt)
    assert kept[-1] >= 14, "of 16, a batch of two may wait"
    assert clip.embed(job).resumed == kept[-1]


@pytest.mark.parametrize("damage", ["cut", "bit", "gone", "other listing"])
def test_a_journal_that_is_not_as_it_was_written_is_not_used(
    damage: str, photos: Path, weights: Path, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(photos, tmp_path / "out", weights)
    saved = kill_at(job, clock, 22, monkeypatch)
    assert len(saved) == 3
    piece = next((tmp_path / "out" / JOURNAL).glob("*/embeddings/part-00001.parquet"))
    content = piece.read_bytes()
    if damage == "cut":
        piece.write_bytes(content[:-1])
    elif damage == "bit":
        piece.write_bytes(content[:200] + bytes([content[200] ^ 1]) + content[201:])
    elif damage == "gone":
        piece.unlink()
    else:
        (photos / "00.png").write_bytes((photos / "01.png").read_bytes())
    if damage == "other listing":
        job = change_job(job, update=True)
    report = clip.embed(job)
    assert report.resumed == (0 if damage == "other listing" else saved[0])
    assert verify(VerifyJob(output=tmp_path / "out", sample=IMAGES)).problems == ()


def test_an_update_that_is_killed_keeps_what_it_saved(
    photos: Path, weights: Path, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(photos, tmp_path / "out", weights)
    clip.embed(job)
    draw_photos(photos, number_names(16), first=50)
    update = change_job(job, update=True)
    kill_at(update, clock, IMAGES + len(BROKEN) - 3, monkeypatch)
    assert list((tmp_path / "out" / JOURNAL).glob("*/embeddings/*.parquet"))
    assert clip.embed(job).resumed > len(BROKEN) + IMAGES - 16
    assert verify(VerifyJob(output=tmp_path / "out", sample=IMAGES)).problems == ()


@pytest.mark.parametrize("error", [ConnectionError("reset"), ValueError("no image")], ids=["passing", "lasting"])
def test_an_update_tries_a_failure_of_the_journal_again_where_it_may_pass(
    error: Exception, photos: Path, weights: Path, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(photos, tmp_path / "out", weights)
    read = Source.read

    def fail(source: Source, item: Item, max_bytes: int) -> bytes:
        if item.id == "08.png":
            raise error
        return read(source, item, max_bytes)

    with monkeypatch.context() as patch:
        patch.setattr(Source, "read", fail)
        saved = kill_at(job, clock, 20, patch)[-1]
    may_pass = isinstance(error, OSError)
    report = clip.embed(change_job(job, update=True))
    assert report.failed == len(BROKEN) + (not may_pass)
    assert 0 < report.resumed < saved if may_pass else report.resumed == saved
    assert verify(VerifyJob(output=tmp_path / "out")).problems == ()


def test_images_that_ended_a_run_by_failing_are_tried_again(
    photos: Path, weights: Path, tmp_path: Path, clock: Clock
) -> None:
    job = make_job(photos, tmp_path / "out", weights, max_failures="2")
    with pytest.raises(TooManyFailuresError):
        clip.embed(job, clock.tick)
    for name in BROKEN[:2]:
        (photos / name).write_bytes((photos / "00.png").read_bytes())
    assert clip.embed(change_job(job, update=True)).failed == 1


def test_a_row_group_has_the_same_rows_whenever_rows_were_saved(
    photos: Path, weights: Path, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clip.batch import part_in_work

    monkeypatch.setattr(part_in_work, "ROW_GROUP", 4)
    clip.embed(make_job(photos, tmp_path / "whole", weights))
    for number, moment in enumerate((9, 15, 25)):
        job = make_job(photos, tmp_path / f"out-{number}", weights)
        kill_at(job, clock, moment, monkeypatch)
        clip.embed(job, clock.tick)
        assert digest(tmp_path / f"out-{number}") == digest(tmp_path / "whole")


def test_seconds_between_saves_are_a_number_that_is_not_negative() -> None:
    for seconds in (-1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="save_seconds"):
            OutputPolicy(save_seconds=seconds)
