"""Outputs on an object store hold what a folder would, byte for byte, whatever its server does meanwhile."""

import json
from pathlib import Path

import pytest
from kit.in_process import Run
from kit.inputs import draw_photos, number_names
from kit.jobs import change_job, embed_job
from kit.object_store import BUCKET, ObjectServer

import clip
from clip import object_stores
from clip.batch.verify import verify
from clip.errors import InputError, StoreUnreachableError
from clip.jobs import EmbedJob, EmbedReport, ExportJob, MergeJob
from clip.jobs.verify import VerifyJob

IMAGES = 11
OUT = f"s3://{BUCKET}/photos/out"
BESIDE = {"_plan/listed.txt", "_plan/plan.json", "manifest.json"}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return draw_photos(tmp_path / "photos", number_names(IMAGES), broken=["05.broken.jpg"])


@pytest.fixture
def job(photos: Path, weights: Path) -> EmbedJob:
    return embed_job(source=photos, output=OUT, model=str(weights), threads=1, shard_size=5, save_seconds=0)


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def check(job: EmbedJob, objects: ObjectServer, tmp_path: Path) -> None:
    """The objects are the files of a run into a folder, byte for byte, with nothing beside them."""
    local = tmp_path / "local"
    clip.embed(change_job(job, output=local, part=None, update=False))
    files = {path.relative_to(local).as_posix(): path for path in local.rglob("*") if path.is_file()}
    keys = {key.removeprefix("photos/out/") for key in objects.list()}
    assert keys - BESIDE == files.keys() - BESIDE - {".lock.guard"}
    for name in keys:
        if name.startswith(("embeddings/", "failures/")):
            assert objects.read(f"photos/out/{name}") == files[name].read_bytes(), name
    manifest = json.loads(objects.read("photos/out/manifest.json"))
    assert manifest["counts"] == json.loads((local / "manifest.json").read_text())["counts"]
    assert "base_from_output" not in manifest
    assert verify(VerifyJob(output=OUT)).problems == ()


def test_a_run_is_written_verified_listed_and_searched(
    job: EmbedJob, objects: ObjectServer, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    report = clip.embed(job)
    assert (report.read, report.written, report.failed) == (IMAGES + 1, IMAGES, 1)
    assert str(report.output) == OUT
    check(job, objects, tmp_path)
    assert run("verify", OUT)[0] == 0
    assert "05.broken.jpg" in run("failures", OUT)[1]
    query = ("search", OUT, "--image", tmp_path / "photos" / "00.png", "-n", 1, "--json")
    assert json.loads(run(*query)[1].splitlines()[0])["id"] == "00.png"
    requests = len(objects.requests)
    assert json.loads(run(*query)[1].splitlines()[0])["id"] == "00.png"
    assert not [one for one in objects.requests[requests:] if "part-" in one], "the index is in a cache here"
    assert not (tmp_path / "s3:").exists()


def test_a_finished_run_has_nothing_left_to_do(job: EmbedJob, objects: ObjectServer) -> None:
    clip.embed(job)
    written = [one for one in objects.requests if "part-" in one and one.startswith("PUT")]
    assert clip.embed(job).resumed == IMAGES + 1
    assert [one for one in objects.requests if "part-" in one and one.startswith("PUT")] == written


def test_parts_of_a_run_share_an_output(job: EmbedJob, objects: ObjectServer, tmp_path: Path) -> None:
    reports: list[EmbedReport] = [clip.embed(change_job(job, part=f"{part}/3")) for part in (2, 0, 0, 1)]
    assert reports[0].unfinished == ("0/3", "1/3")
    assert reports[-1].unfinished == ()
    check(job, objects, tmp_path)


def test_an_update_replaces_the_plan(job: EmbedJob, objects: ObjectServer, photos: Path) -> None:
    clip.embed(job)
    (photos / "00.png").unlink()
    draw_photos(photos, ["new.png"])
    report = clip.embed(change_job(job, update=True))
    assert (report.read, report.removed) == (IMAGES + 1, 1)
    assert verify(VerifyJob(output=OUT)).problems == ()
    assert {key.split("/")[2] for key in objects.list()} == {"_plan", "embeddings", "failures", "manifest.json"}


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("PUT .*part-.*", ["lost", "503"]),
        ("PUT .*part-.*", ["silence"]),
        ("(GET|HEAD) .*", ["503", "500", "lost"]),
        ("PUT .*(lock|manifest|plan).*", ["lost"]),
        ("PUT .*(lock|manifest|plan).*", ["silence"]),
        ("(DELETE|POST) .*", ["lost", "500"]),
    ],
)
def test_a_server_that_fails_now_and_then_changes_nothing(
    words: list[str], pattern: str, job: EmbedJob, objects: ObjectServer, tmp_path: Path
) -> None:
    objects.fail(pattern, *words, "", "", *words, "", *words)
    clip.embed(job)
    check(job, objects, tmp_path)


def test_a_run_that_dies_at_any_request_is_resumed(
    job: EmbedJob, objects: ObjectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From some request on nothing is answered any more, as after a kill; what was put then, stays."""
    clip.embed(job)
    count = len(objects.requests)
    for key in objects.list():
        objects.delete(key)
    for dying in range(3, count - 6, 37):
        objects.fail(".*", *[""] * dying, *["500"] * 10_000)
        with monkeypatch.context() as patch:
            patch.setattr(object_stores, "PATIENCE", object_stores.StorePatience(attempts=1))
            object_stores.connect.cache_clear()
            with pytest.raises(StoreUnreachableError):
                clip.embed(job)
        object_stores.connect.cache_clear()
        objects.scripts.clear()
        for key in [key for key in objects.list() if "/.lock" in key]:
            objects.delete(key)  # the owner is gone after a kill
        clip.embed(job)
        check(job, objects, tmp_path)
        for key in objects.list():
            objects.delete(key)


@pytest.mark.parametrize(
    "output", ["s3://bucket", "s3://bucket/", "s3://bucket/../out", "https://host/out", "s3:/b/out"]
)
def test_an_output_that_names_no_folder_of_a_bucket_is_refused(output: str, photos: Path) -> None:
    with pytest.raises(InputError):
        embed_job(source=photos, output=output)


def test_an_output_that_was_copied_there_is_read_as_it_was_here(
    job: EmbedJob, objects: ObjectServer, photos: Path, tmp_path: Path
) -> None:
    local = tmp_path / "local"
    clip.embed(change_job(job, output=local))
    for path in local.rglob("*"):
        if path.is_file():
            objects.put(f"photos/out/{path.relative_to(local).as_posix()}", path.read_bytes())
    photos.rename(tmp_path / "elsewhere")  # so that the base is looked for
    assert verify(VerifyJob(output=OUT)).problems == ()
    report = clip.export(ExportJob(output=OUT, target=tmp_path / "to", format="npy"))
    assert report.rows == IMAGES
    merged = clip.merge(MergeJob(source=OUT, output=tmp_path / "merged"))
    assert (merged.read, merged.written) == (IMAGES + 1, IMAGES)
    assert verify(VerifyJob(output=tmp_path / "merged")).problems == ()
