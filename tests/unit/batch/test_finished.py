"""A run that has nothing left to do is recognised without a model; one that has something is not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from kit.in_process import Run
from kit.inputs import draw_photos

import clip
from clip.batch.finished import find_finished
from clip.jobs import DecodeOptions, EmbedJob, ModelOptions, OutputPolicy

LIMIT_S = 600.0


@pytest.fixture
def job(tmp_path: Path) -> EmbedJob:
    draw_photos(tmp_path / "photos", ["a.png", "b.png"])
    (tmp_path / "photos/bad.png").touch()
    job = EmbedJob(source=tmp_path / "photos", output=tmp_path / "out", model="sketch")
    assert find_finished(job) is None, "there is no output"
    clip.embed(job)
    return job


def test_a_finished_run_is_known_with_its_counts(job: EmbedJob) -> None:
    report = find_finished(job)
    assert report is not None
    assert (report.read, report.written, report.failed, report.resumed) == (3, 2, 1, 3)
    again = clip.embed(job)
    assert (again.read, again.written, again.failed, again.ignored) == (3, 2, 1, report.ignored)


def change(job: EmbedJob, **changes: object) -> EmbedJob:
    from dataclasses import replace

    return replace(job, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes",
    [
        {"model": ModelOptions("ViT-B/32", untrained=1)},
        {"model": ModelOptions("sketch", precision="bf16")},
        {"model": ModelOptions("sketch", device="cuda")},
        {"decode": DecodeOptions(orient="exif")},
        {"policy": OutputPolicy(dtype="float16")},
        {"policy": OutputPolicy(overwrite=True)},
        {"policy": OutputPolicy(normalize=False)},
        {"limit": 2},
        {"min_cosine": 0.9},
        {"globs": ("*.png",)},
    ],
)
def test_another_job_is_not_taken_for_the_same(job: EmbedJob, changes: dict[str, object]) -> None:
    assert find_finished(change(job, **changes)) is None


def test_an_input_or_an_output_that_changed_is_seen(job: EmbedJob, tmp_path: Path) -> None:
    update = change(job, policy=OutputPolicy(update=True))
    assert find_finished(update) is not None
    image, part = tmp_path / "photos/a.png", next((tmp_path / "out/embeddings").iterdir())
    times = image.stat()
    os.utime(image, ns=(times.st_atime_ns, times.st_mtime_ns + 10**9))
    assert find_finished(update) is find_finished(job) is None
    os.utime(image, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert find_finished(job) is not None
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    assert find_finished(job) is None, "embed says what is damaged"
    part.unlink()
    assert find_finished(job) is None


def test_what_an_update_added_is_finished_too(job: EmbedJob, tmp_path: Path) -> None:
    update = change(job, policy=OutputPolicy(update=True))
    draw_photos(tmp_path / "photos", ["c.png"])
    assert find_finished(update) is None
    clip.embed(update)
    assert find_finished(update) is not None
    assert find_finished(job) is not None


def test_the_command_says_so_with_the_code_of_the_run_and_loads_no_torch(job: EmbedJob, run: Run) -> None:
    arguments = ["embed", str(job.source), "-o", str(job.output), "-m", "sketch"]
    code, _, said = run(*arguments)
    assert (code, "nothing to do: read 3 = written 2, failed 1" in said, "failed: " in said) == (3, True, True)
    command = [sys.executable, "-X", "importtime", "-m", "clip", *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT_S)
    loaded = {line.rpartition("|")[2].strip() for line in ran.stderr.splitlines() if line.startswith("import time:")}
    assert (ran.returncode, "click" in loaded, loaded & {"torch", "openvino"}) == (3, True, set())
