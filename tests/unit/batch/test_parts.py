"""Several processes share a run: each writes its shards, in any order and number, at any time; each row comes once."""

import random
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kit.inputs import draw_photos, number_names
from kit.jobs import change_job, embed_job
from kit.outputs import read_manifest, read_rows

import clip
from clip.batch import planning
from clip.batch.verify import verify
from clip.errors import StoreBusyError, StoreMismatchError
from clip.jobs import EmbedJob, EmbedReport, Progress
from clip.jobs.verify import VerifyJob
from clip.store.lock import hold_lock

IMAGES = 22
EMPTY = {".lock.guard", "_plan", "embeddings", "failures", "manifest.json"}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return draw_photos(tmp_path / "photos", number_names(IMAGES), broken=["05.broken.jpg"])


@pytest.fixture
def job(photos: Path, weights: Path, tmp_path: Path) -> EmbedJob:
    return embed_job(source=photos, output=tmp_path / "out", model=str(weights), threads=1, shard_size=3)


def run_part(job: EmbedJob, part: str, progress: Callable[[Progress], None] | None = None) -> EmbedReport:
    return clip.embed(change_job(job, part=part), progress)


def check(job: EmbedJob, tmp_path: Path) -> None:
    """The output is that of one process, byte for byte, with nothing beside it."""
    one, out = change_job(job, output=tmp_path / "one", part=None), Path(job.output)
    clip.embed(one)
    for folder in ("embeddings", "failures"):
        names = sorted(path.name for path in (tmp_path / "one" / folder).iterdir())
        assert sorted(path.name for path in (out / folder).iterdir()) == names
        for name in names:
            assert (out / folder / name).read_bytes() == (tmp_path / "one" / folder / name).read_bytes(), name
    assert read_manifest(out)["counts"] == read_manifest(tmp_path / "one")["counts"]
    assert {path.name for path in out.iterdir()} == EMPTY
    assert verify(VerifyJob(output=out)).problems == ()


def test_parts_in_any_order_and_twice_give_what_one_process_gives(job: EmbedJob, tmp_path: Path) -> None:
    done: set[int] = set()
    for part in (2, 0, 0, 3, 1):
        report = run_part(job, f"{part}/4")
        done.add(part)
        assert report.part == f"{part}/4"
        assert report.unfinished == tuple(f"{one}/4" for one in range(4) if one not in done)
        assert (read_manifest(tmp_path / "out")["counts"] is None) == (len(done) < 4)
    check(job, tmp_path)


def test_more_parts_than_shards_and_a_part_of_one_are_runs_too(job: EmbedJob, tmp_path: Path) -> None:
    assert run_part(job, "11/12").read == 0
    assert run_part(job, "0/1").unfinished == ()
    check(job, tmp_path)


@pytest.mark.parametrize("form", ["folder", "tar"])
def test_another_number_of_parts_or_none_goes_on(form: str, job: EmbedJob, tmp_path: Path) -> None:
    if form == "tar":
        photos = sorted(Path(str(job.source)).iterdir())
        tars = [tmp_path / "tars" / f"{n}.tar" for n in range(4)]
        tars[0].parent.mkdir()
        for n, path in enumerate(tars):
            with tarfile.open(path, "w") as archive:
                for photo in photos[n::4]:
                    archive.add(photo, photo.name)
        job = change_job(job, source=[str(path) for path in tars])
    run_part(job, "1/3")
    run_part(job, "0/2")
    assert clip.embed(job).unfinished == ()
    check(job, tmp_path)


def test_one_process_is_finished_by_parts(job: EmbedJob, tmp_path: Path) -> None:
    def stop(progress: Progress) -> None:
        if progress.shard == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        clip.embed(job, stop)
    assert run_part(job, "0/2").resumed >= 6
    assert run_part(job, "1/2").unfinished == ()
    check(job, tmp_path)


def test_the_input_is_listed_by_the_first_part_alone(
    job: EmbedJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_part(job, "0/2")
    monkeypatch.setattr(planning, "write_plan", lambda *_, **__: pytest.fail("listed again"))
    run_part(job, "1/2")
    monkeypatch.undo()
    check(job, tmp_path)


@pytest.mark.parametrize("others", [{"globs": ("0*",)}, {"limit": 4}, {"source": "elsewhere"}, {"shard_size": 4}])
def test_a_part_of_another_run_is_refused(others: dict[str, Any], job: EmbedJob, tmp_path: Path) -> None:
    run_part(job, "0/2")
    if "source" in others:
        others = {"source": draw_photos(tmp_path / "elsewhere", ["a.png"])}
    with pytest.raises(StoreMismatchError, match=r"holds a run whose"):
        run_part(change_job(job, **others), "1/2")


def test_parts_at_the_same_time_list_once_and_write_the_counts_once(job: EmbedJob, tmp_path: Path) -> None:
    """Threads for processes: each has a lock, a plan and a writer of its own."""
    reports: list[EmbedReport] = []
    threads = [threading.Thread(target=lambda n=n: reports.append(run_part(job, f"{n}/4"))) for n in range(4)]
    random.Random(0).shuffle(threads)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(reports) == 4
    assert sum(report.read for report in reports) == IMAGES + 1
    assert any(report.unfinished == () for report in reports)
    check(job, tmp_path)


def test_parts_keep_out_whole_runs_other_numbers_and_themselves(job: EmbedJob) -> None:
    Path(job.output).mkdir()
    with hold_lock(Path(job.output), change_job(job, part="0/4").share):
        for part in (None, "0/2", "0/4"):
            with pytest.raises(StoreBusyError, match="is at work there"):
                clip.embed(change_job(job, part=part))
        run_part(job, "1/4")
    with hold_lock(Path(job.output)), pytest.raises(StoreBusyError):
        run_part(job, "1/4")


def test_verify_says_which_parts_are_missing(job: EmbedJob, tmp_path: Path) -> None:
    run_part(job, "0/3")
    what = [problem.what for problem in verify(VerifyJob(output=tmp_path / "out")).problems]
    assert "5 of 8 parts are not there: 00001, 00002, 00004, 00005, 00007. Run the job again as part 1/3, 2/3." in what
    clip.embed(job)
    (tmp_path / "out/embeddings/part-00004.parquet").unlink()
    what = [problem.what for problem in verify(VerifyJob(output=tmp_path / "out")).problems]
    assert "1 of 8 parts are not there: 00004. Run the job again." in what
    assert run_part(job, "4/8").unfinished == ()
    check(job, tmp_path)


def test_the_rows_of_each_part_are_those_of_its_shards(job: EmbedJob, tmp_path: Path) -> None:
    report = run_part(job, "1/3")
    ids = sorted([*number_names(IMAGES), "05.broken.jpg"])
    own = [own_id for shard in (1, 4, 7) for own_id in ids[3 * shard : 3 * shard + 3]]
    assert [row["id"] for row in read_rows(tmp_path / "out")] == [one for one in own if one.endswith("png")]
    assert (report.read, report.written) == (len(own), len(read_rows(tmp_path / "out")))
