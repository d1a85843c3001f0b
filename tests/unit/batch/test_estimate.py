"""How long a run takes is measured on some of its images, by a clock of the test's own."""

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.in_process import Run
from kit.inputs import draw_photos, number_names
from kit.jobs import change_job, embed_job

from clip.batch import estimate as module
from clip.batch.estimate import estimate
from clip.errors import InputError
from clip.jobs import EmbedJob, Listing

IMAGES = 20
SECONDS = 10.0  # that a round of all images takes by the clock


def tick() -> Iterator[float]:
    now = 0.0
    while True:
        yield now
        now += SECONDS


@pytest.fixture
def job(weights: Path, tmp_path: Path) -> EmbedJob:
    photos = draw_photos(tmp_path / "photos", number_names(IMAGES), broken=["05.broken.jpg"])
    return embed_job(source=photos, output=tmp_path / "out", model=str(weights), threads=1)


def test_the_time_of_some_images_is_that_of_all_in_proportion(job: EmbedJob, tmp_path: Path) -> None:
    ticks = tick()
    found = estimate(job, Listing(images=6_000), lambda: next(ticks))
    assert (found.measured, found.images_per_s) == (IMAGES, IMAGES / (2 * SECONDS))  # begin, one look, end
    assert found.seconds == 6_000 / found.images_per_s
    assert not (tmp_path / "out").exists()
    ticks = tick()
    of_part = estimate(change_job(job, part="3/8"), Listing(images=6_000), lambda: next(ticks))
    assert of_part.seconds == found.seconds / 8
    ticks = tick()
    assert estimate(job, Listing(images=6_000, archives=1), lambda: next(ticks)).seconds is None


def test_what_cannot_be_measured_so_is_refused(job: EmbedJob, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs measuring first"):
        estimate(change_job(job, min_cosine=0.999), Listing(images=1))
    (tmp_path / "a.csv").write_text("text\na cat\n")
    texts = embed_job(source=tmp_path / "a.csv", output=tmp_path / "out", model="sketch", texts=True)
    with pytest.raises(InputError, match="found texts"):
        estimate(texts, Listing(images=1))
    broken = draw_photos(tmp_path / "broken", [], broken=["a.jpg", "b.jpg"])
    with pytest.raises(InputError, match="none of the first images can be decoded"):
        estimate(change_job(job, source=broken), Listing(images=2))


def test_the_command_says_time_and_money(
    run: Run, weights: Path, job: EmbedJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MIN_S", 0.0)
    command = ("embed", job.source, "-o", tmp_path / "out", "-m", weights, "--dry-run")
    code, _, said = run(*command, "--estimate", "--price-per-hour", "3600", "--part", "0/2")
    assert code == 0
    assert "listed 21 images" in said
    assert " for each of 2 parts at " in said
    assert "images/s, measured on 20, for " in said
    assert said.endswith(" at 3600 an hour\n")
    code, out, _ = run(*command, "--estimate", "--price-per-hour", "3600", "--json")
    found = json.loads(out)
    assert (code, found["images"], found["measured"]) == (0, 21, 20)
    assert found["price"] == pytest.approx(found["seconds"], abs=1e-4)
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(tmp_path / "photos" / "01.png", "01.png")
        archive.addfile(tarfile.TarInfo("notes.txt"), io.BytesIO(b""))
    said = run("embed", tmp_path / "a.tar", *command[2:], "--estimate")[2]
    assert "how many images there are is not known" in said
    for flags in (("--estimate",), ("--dry-run", "--price-per-hour", "1")):
        assert run(*command[:-1], *flags)[0] == 2
