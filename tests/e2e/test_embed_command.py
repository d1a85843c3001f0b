"""`clip embed` as a user types it: exit codes, messages, flags, signals, and the files that come of them."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from kit import in_process
from kit.inputs import draw_photos
from kit.jobs import RECORDS, change_job, embed_job, flatten
from kit.outputs import read_manifest, read_vectors
from kit.programs import command

import clip
from clip.batch import embed as embed_module
from clip.batch import opening
from clip.cli import main, progress
from clip.errors import InputError
from clip.jobs.cluster import RayOptions
from clip.jobs.embed import EmbedJob, EmbedReport

COMMAND = str(Path(sys.executable).with_name("clip"))
LIMIT_S = 600.0  # ten times what a busy machine takes
TOLERANCE = 1e-5
GOOD = [f"{n}.png" for n in range(7)]

Run = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven good images."""
    return draw_photos(tmp_path_factory.mktemp("photos"), GOOD, wider=1)


@pytest.fixture(scope="module")
def mixed(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good image, a bad one, and a file that is none."""
    folder = tmp_path_factory.mktemp("mixed")
    os.link(photos / "0.png", folder / "0.png")
    (folder / "1.jpg").write_text("no image")
    (folder / "notes.txt").touch()
    return folder


@pytest.fixture
def run(run: in_process.Run) -> Run:
    """The command in this process: its exit code and what it says on stderr. Nothing ever goes to stdout."""

    def call(*arguments: str | Path) -> tuple[int, str]:
        code, out, err = run(*arguments)
        assert out == ""
        return code, err

    return call


def assert_same_vectors(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    assert max(np.abs(found[name] - expected[name]).max() for name in found) < tolerance


def test_the_installed_command_embeds_a_folder(photos: Path, weights: Path, tmp_path: Path) -> None:
    command = [COMMAND, "embed", str(photos), "-o", str(tmp_path / "out"), "-m", str(weights)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    listed, *_, summary = done.stderr.splitlines()  # in between a slow machine tells how far it is
    assert listed == f"listed 7 images, the first '0.png' ({photos}/0.png)"
    assert summary.startswith("read 7 = written 7, failed 0; ")
    vectors = clip.Encoder(weights).embed([photos / name for name in GOOD])
    assert_same_vectors(read_vectors(tmp_path / "out"), dict(zip(GOOD, vectors, strict=True)), TOLERANCE)


def test_help_needs_no_torch() -> None:
    done = subprocess.run(
        command("run_without_torch", "embed", "-h"), capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "Usage: clip embed [OPTIONS] INPUT..." in done.stdout


def test_failures_are_summed_up_and_give_a_code_of_their_own(
    run: Run, mixed: Path, weights: Path, tmp_path: Path
) -> None:
    code, said = run("embed", mixed, "-o", tmp_path / "out", "-m", weights)
    assert code == 3
    assert said.splitlines()[-1].startswith(f"read 2 = written 1, failed 1 (see {tmp_path}/out/failures); ")
    assert said.endswith("; ignored: 1 not an image\n")
    (failure,) = pq.read_table(tmp_path / "out/failures").to_pylist()
    assert (failure["id"], failure["stage"]) == ("1.jpg", "open")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--no-such-flag"], "No such option '--no-such-flag'"),
        (["--dtype", "float64"], "'float64' is not one of 'float32', 'float16'"),
        (["--batch-size", "0"], "found 0, expected at least 1"),
        (["--precision", "fp64"], "'fp64' is not one of 'reference', 'fp32'"),
        (["--batch-size", "two"], "'two' is not a valid integer"),
        (["--limit", "-1"], "found -1, expected at least 1"),
        (["--max-aspect", "0.5"], "found 0.5, expected at least 1"),
        (["--max-failures", "few"], "found 'few', expected a number, or a percentage"),
        (["--dry-run", "--shard-size", "0"], "found 0, expected at least 1"),
        (["-m", "missing.pt"], "model 'missing.pt': not found"),
        (["-m", "missing.pt", "--untrained", "1"], "Pass a released name to draw its weights"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_makes_no_sense_is_refused_before_any_work(
    run: Run, photos: Path, weights: Path, tmp_path: Path, arguments: list[str], words: str
) -> None:
    code, said = run("embed", photos, "-o", tmp_path / "out", "-m", weights, *arguments)
    assert code == 2
    assert words in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("source", ["missing", "file"])
@pytest.mark.parametrize("flags", [[], ["--dry-run"]])
def test_an_input_that_is_none_is_refused(
    run: Run, weights: Path, tmp_path: Path, source: str, flags: list[str]
) -> None:
    (tmp_path / "file").touch()
    found = {"missing": "no such file", "file": "nothing that we read"}[source]
    code, said = run("embed", tmp_path / source, "-o", tmp_path / "out", "-m", weights, *flags)
    assert (code, said) == (
        2,
        f"clip: {tmp_path / source}: {found}, expected a folder, an image, a list, an archive or a table. "
        "Check the path.\n",
    )
    assert not (tmp_path / "out").exists()


def test_weights_that_are_missing_or_damaged_fail_the_run_in_a_line(
    run: Run, photos: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CLIP_OFFLINE", "1")
    (tmp_path / "cut.pt").write_bytes(weights.read_bytes()[:9000])
    (tmp_path / "empty.pt").touch()
    for model, words in [
        ("RN50", "RN50.pt: not there"),
        (tmp_path / "cut.pt", "cut.pt: "),
        (tmp_path / "empty.pt", "empty.pt: "),
    ]:
        code, said = run("embed", photos, "-o", tmp_path / "out", "-m", model)
        assert code == 1
        (line,) = said.splitlines()
        assert line.startswith("clip: ")
        assert words in line
        assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_written_fails_the_run_in_a_line(run: Run, photos: Path, weights: Path) -> None:
    code, said = run("embed", photos, "-o", "/proc/clip", "-m", weights)
    assert code == 1
    assert said.startswith("clip: /proc/clip: cannot be written (")
    assert len(said.splitlines()) == 1


def test_where_an_error_arose_is_shown_on_demand(photos: Path, tmp_path: Path, run: Run) -> None:
    with pytest.raises(InputError, match="batch_size"):
        run("--debug", "embed", photos, "-o", tmp_path, "--batch-size", "0")


def test_an_output_that_holds_a_run_is_refused_until_it_may_be_overwritten(
    run: Run, photos: Path, mixed: Path, weights: Path, tmp_path: Path
) -> None:
    assert run("embed", photos, "-o", tmp_path, "-m", weights, "--shard-size", "2")[0] == 0
    (tmp_path / "notes.txt").touch()
    code, said = run("embed", mixed, "-o", tmp_path, "-m", weights)
    assert code == 2
    assert "--overwrite" in said
    assert len(read_vectors(tmp_path)) == 7
    assert run("embed", mixed, "-o", tmp_path, "-m", weights, "--overwrite")[0] == 3
    assert list(read_vectors(tmp_path)) == ["0.png"]
    visible = sorted(name for name in os.listdir(tmp_path) if not name.startswith("."))
    assert visible == ["_plan", "embeddings", "failures", "manifest.json", "notes.txt"]


def test_an_output_can_be_verified(
    run: Run, mixed: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run("verify", out)[0] == 1
    assert run("embed", mixed, "-o", out, "-m", weights)[0] == 3
    code, said = run("verify", out, "--sample", "2", "--device", "cpu")
    assert (code, said.count("\n")) == (0, 1)
    assert said.startswith("read 2 = written 1, failed 1; 2 embedded again, min cosine 1.000000; no problem; ")
    (out / "failures/part-00000.parquet").unlink()
    with pytest.raises(SystemExit) as ended:
        main.main(["verify", str(out), "--json"])
    found, said = capsys.readouterr()
    assert ended.value.code == 1
    assert json.loads(found)["problems"][0]["where"] == "failures/part-00000.parquet"
    assert "; 2 problems; " in said


def test_a_run_that_is_over_is_said_to_be(run: Run, mixed: Path, weights: Path, tmp_path: Path) -> None:
    assert run("embed", mixed, "-o", tmp_path, "-m", weights)[0] == 3
    code, said = run("embed", mixed, "-o", tmp_path, "-m", weights)
    assert code == 3
    assert "read 2 = written 1, failed 1 (see " in said
    assert "; 2 by an earlier run; " in said


def test_a_dry_run_counts_and_writes_nothing(run: Run, mixed: Path, tmp_path: Path) -> None:
    code, said = run("embed", mixed, "-o", tmp_path / "out", "-m", "no weights are needed", "--dry-run")
    assert (code, said) == (0, f"listed 2 images, the first '0.png' ({mixed}/0.png); ignored: 1 not an image\n")
    assert not (tmp_path / "out").exists()


def test_flags_choose_what_is_read_and_how_it_is_written(run: Run, photos: Path, weights: Path, tmp_path: Path) -> None:
    def written(name: str, *flags: str) -> dict[str, np.ndarray]:
        assert run("embed", photos, "-o", tmp_path / name, "-m", weights, *flags)[0] == 0
        assert read_manifest(tmp_path / name)["counts"]["written"] == len(read_vectors(tmp_path / name))
        return read_vectors(tmp_path / name)

    plain = written("plain")
    assert list(plain) == GOOD
    assert all(abs(np.linalg.norm(vector) - 1) < 1e-6 for vector in plain.values())
    assert_same_vectors(written("one thread", "--workers", "1", "--threads", "1"), plain, TOLERANCE)
    assert_same_vectors(written("half", "--dtype", "float16"), plain, 1e-3)
    assert (
        pq.read_schema(tmp_path / "half/embeddings/part-00000.parquet").field("embedding").type.value_type
        == "halffloat"
    )

    raw = written("raw", "--raw")
    assert all(abs(np.linalg.norm(vector) - 1) > 1e-3 for vector in raw.values())
    assert_same_vectors({name: vector / np.linalg.norm(vector) for name, vector in raw.items()}, plain, TOLERANCE)
    assert (read_manifest(tmp_path / "raw")["normalised"], read_manifest(tmp_path / "plain")["normalised"]) == (
        False,
        True,
    )

    assert list(written("limit", "--limit", "3")) == GOOD[:3]
    assert list(written("glob", "--glob", "[12].png", "--glob", "6*")) == ["1.png", "2.png", "6.png"]
    assert list(written("both", "--glob", "[12].png", "--limit", "1")) == ["1.png"]


def test_shards_have_the_names_and_the_bytes_that_follow_from_the_input(
    run: Run, photos: Path, weights: Path, tmp_path: Path
) -> None:
    flags = ["-m", weights, "--shard-size", "3"]
    assert run("embed", photos, "-o", tmp_path / "a", *flags)[0] == 0
    assert run("embed", photos, "-o", tmp_path / "b", *flags, "--workers", "3")[0] == 0
    parts = [f"part-{n:05}.parquet" for n in range(3)]
    for n, part in enumerate(parts):
        assert pq.read_table(tmp_path / "a/embeddings" / part)["id"].to_pylist() == GOOD[3 * n : 3 * n + 3]
        for folder in ("embeddings", "failures"):
            assert sorted(os.listdir(tmp_path / "a" / folder)) == parts
            assert (tmp_path / "a" / folder / part).read_bytes() == (tmp_path / "b" / folder / part).read_bytes()


def test_a_released_architecture_runs_untrained_and_says_so(
    run: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # no weights there
    code, said = run("embed", photos, "-o", tmp_path / "out", "-m", "RN50", "--untrained", "7", "--limit", "2")
    assert code == 0
    assert said.startswith("RN50 is untrained (random weights of seed 7)")
    found = read_manifest(tmp_path / "out")
    assert (found["model"], found["weights_source"], found["weights_sha256"]) == ("RN50", "untrained:7", None)
    assert all(vector.shape == (1024,) for vector in read_vectors(tmp_path / "out").values())


def test_progress_goes_to_stderr_in_lines_or_as_a_bar_on_a_terminal(
    run: Run, mixed: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "INTERVALS_S", {"plain": 0, "json": 0})
    _, said = run("embed", mixed, "-o", tmp_path / "lines", "-m", weights)
    assert said.splitlines()[0] == "listed 2 images"
    assert said.splitlines()[1].startswith("listed 2 images, the first '0.png' (")
    assert any(line.startswith("2 of 2 images, failed 1, ") for line in said.splitlines()[2:4])
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    _, said = run("embed", mixed, "-o", tmp_path / "bar", "-m", weights)
    assert "2/2" in said
    assert "failed=1" in said


def test_a_precision_that_the_device_lacks_is_an_error_that_says_what_it_has(
    run: Run, photos: Path, weights: Path, tmp_path: Path
) -> None:
    code, said = run("embed", photos, "-o", tmp_path / "out", "-m", weights, "--precision", "fp8", "--device", "cpu")
    assert code == 1
    assert "precision 'fp8': cpu does not compute in it, expected one of ['reference', 'fp32'" in said
    assert not (tmp_path / "out").exists()


FLAGS: list[tuple[list[str], str, object]] = [
    (["-m", "RN50"], "model", "RN50"),
    (["--untrained", "5"], "untrained", 5),
    (["--device", "cuda:1"], "device", "cuda:1"),
    (["--batch-size", "7"], "batch_size", 7),
    (["--precision", "bf16"], "precision", "bf16"),
    (["--workers", "3"], "workers", 3),
    (["--threads", "4"], "threads", 4),
    (["--raw"], "normalize", False),
    (["--dtype", "float16"], "dtype", "float16"),
    (["--glob", "a/*", "--glob", "b"], "globs", ("a/*", "b")),
    (["--limit", "9"], "limit", 9),
    (["--shard-size", "11"], "shard_size", 11),
    (["--max-bytes", "12"], "max_bytes", 12),
    (["--max-pixels", "13"], "max_pixels", 13),
    (["--max-aspect", "1.5"], "max_aspect", 1.5),
    (["--on-failure", "stop"], "on_failure", "stop"),
    (["--max-failures", "5%"], "max_failures", "5%"),
    (["--read-budget-bytes", "1000"], "read_budget_bytes", 1000),
    (["--decode-budget-bytes", "1000"], "decode_budget_bytes", 1000),
    (["--overwrite"], "overwrite", True),
    (["--column", "image"], "column", "image"),
    (["--id-column", "key"], "id_column", "key"),
    (["--readers", "5"], "readers", 5),
    (["--min-cosine", "0.99"], "min_cosine", 0.99),
    (["--fast"], "min_cosine", 0.999),
    (["--decode", "fast"], "decode", "fast"),
    (["--text"], "texts", True),
    (["--text-column", "said"], "text_column", "said"),
    (["--long-text", "cut"], "long_text", "cut"),
    (["--keep", "a,b", "--keep", "c"], "keep", ("a", "b", "c")),
    (["--root", "photos"], "root", "photos"),
    (["--duplicate-ids", "keep"], "duplicate_ids", "keep"),
    (["--update"], "update", True),
    (["--orient", "exif"], "orient", "exif"),
    (["--background", "white"], "background", "white"),
    (["--sixteen-bit", "scale"], "sixteen_bit", "scale"),
    (["--frames", "all"], "frames", "all"),
    (["--max-frames", "7"], "max_frames", 7),
    (["--hash"], "hashes", True),
    (["--isolate"], "isolate", True),
    (["--decoders", "processes"], "decoders", "processes"),
    (["--resize", "device"], "resize", "device"),
    (["--devices", "cuda:0,cuda:1"], "devices", "cuda:0,cuda:1"),
    (["--architecture", "ViT-B-32"], "architecture", "ViT-B-32"),
    (["--delimiter", ";"], "delimiter", ";"),
    (["--quoting", "none"], "quoting", "none"),
    (["--raw-previews"], "raw_previews", True),
    (["--part", "1/3"], "part", "1/3"),
    (["--save-seconds", "7"], "save_seconds", 7.0),
]


def test_each_field_of_the_job_has_a_flag_and_each_flag_a_field() -> None:
    own = {field.name for field in fields(EmbedJob)} - set(RECORDS)
    nested = {f"{record}__{field.name}" for record in RECORDS for field in fields(getattr(EmbedJob, record))}
    flags = {parameter.name for parameter in main.cli.commands["embed"].params}
    without_flag = {"policy__normalize", "columns__types"}  # --raw says the first; tables have the second
    of_command = {"raw", "fast", "dry_run", "estimate", "price_per_hour", "tolerate", "progress", "as_json"}
    of_cluster = {"engine", *(field.name for field in fields(RayOptions))}
    assert flags == (own | nested) - without_flag | of_command | of_cluster
    tried = set(flatten(EmbedJob, {field: None for _, field, _ in FLAGS}))
    assert tried == (own | nested) - {"source", "output", "columns__types", "max_seconds", "calibration"}


def test_the_time_for_a_picture_goes_with_processes_only(run: Run, photos: Path, weights: Path, tmp_path: Path) -> None:
    flags = ["-m", weights, "--max-seconds", "5"]
    code, said = run("embed", photos, "-o", tmp_path / "out", *flags)
    assert (code, "--max-seconds: found 5.0 without isolate, expected more than 0 and at most" in said) == (2, True)
    assert run("embed", photos, "-o", tmp_path / "out", *flags, "--isolate")[0] == 0
    assert list(read_vectors(tmp_path / "out")) == GOOD


def test_a_summary_for_programs_is_one_object_on_stdout_and_the_last_line_on_stderr(
    mixed: Path, weights: Path, tmp_path: Path
) -> None:
    command = [COMMAND, "embed", mixed, "-o", tmp_path / "out", "-m", weights, "--json"]
    ran = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=LIMIT_S)
    told = json.loads(ran.stdout)
    assert told == json.loads(ran.stderr.splitlines()[-1])
    assert told.pop("seconds") > 0
    counts = {"read": 2, "written": 1, "failed": 1, "resumed": 0, "removed": 0, "renamed": 0}
    notes = {"warned": 0, "stored_turned": 0, "unread": {}, "advice": [], "part": "", "unfinished": []}
    assert told == {"output": str(tmp_path / "out"), **counts, **notes, "ignored": {"not an image": 1}}
    assert ran.returncode == 3
    ran = subprocess.run(
        [*map(str, command), "--dry-run"], capture_output=True, text=True, check=False, timeout=LIMIT_S
    )
    example = f"'0.png' ({mixed / '0.png'})"
    found = {"images": 2, "archives": 0, "example": example, "ignored": {"not an image": 1}}
    assert json.loads(ran.stdout) == found


def test_an_update_says_what_it_removed(run: Run, photos: Path, weights: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    assert run("embed", folder, "-o", tmp_path / "out", "-m", weights)[0] == 0
    (folder / GOOD[0]).unlink()
    code, said = run("embed", folder, "-o", tmp_path / "out", "-m", weights)
    assert (code, "--update" in said) == (2, True)
    code, said = run("embed", folder, "-o", tmp_path / "out", "-m", weights, "--update")
    left = len(GOOD) - 1
    assert f"read {left} = written {left}, failed 0; {left} by an earlier run; 1 removed; " in said
    assert list(read_vectors(tmp_path / "out")) == GOOD[1:]


@pytest.mark.parametrize(("flags", "field", "value"), [*FLAGS, ([], "source", ("in",))], ids=lambda value: str(value))
def test_a_flag_sets_its_field_and_no_other(
    run: Run, monkeypatch: pytest.MonkeyPatch, flags: list[str], field: str, value: Any
) -> None:
    asked: list[EmbedJob] = []

    def record(job: EmbedJob, _progress: object) -> EmbedReport:
        asked.append(job)
        return EmbedReport(Path("out"), 0, 0, 0, {}, 1.0)

    monkeypatch.setattr(embed_module, "embed", record)
    monkeypatch.setattr(opening, "refuse_early", lambda _: None)  # the input is not there
    assert run("embed", "in", "-o", "out", *flags)[0] == 0
    assert asked == [change_job(embed_job(source=("in",), output="out"), **{field: value})]


@pytest.fixture(scope="module")
def many(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Links to one image: more than a run gets through before it is stopped."""
    folder = tmp_path_factory.mktemp("many")
    for n in range(10_000):
        os.link(photos / "0.png", folder / f"{n:05}.png")
    return folder


@pytest.mark.parametrize(
    ("number", "code", "words"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_ends_the_run_with_its_code_and_finished_parts_are_kept(
    many: Path, weights: Path, tmp_path: Path, number: signal.Signals, code: int, words: str
) -> None:
    out = tmp_path / "out"
    command = [COMMAND, "embed", str(many), "-o", str(out), "-m", str(weights), "--shard-size", "5"]
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, inherited)
    try:
        deadline = time.monotonic() + LIMIT_S
        while not (out / "embeddings/part-00002.parquet").exists():
            assert process.poll() is None, process.stderr and process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=LIMIT_S)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, stdout) == (code, ""), stderr
    last = stderr.splitlines()[-1]
    kept = re.fullmatch(rf"{words}; ([\d,]+) of 10,000 images are kept; the same command goes on from there", last)
    assert "Traceback" not in stderr
    parts = sorted(os.listdir(out / "embeddings"))
    assert 3 <= len(parts) < 2000
    assert parts == [f"part-{n:05}.parquet" for n in range(len(parts))]
    assert pq.read_table(out / "embeddings")["id"].to_pylist() == [f"{n:05}.png" for n in range(5 * len(parts))]
    assert sorted(os.listdir(out / "failures"))[: len(parts)] == parts  # perhaps one more, but nothing half
    assert kept, last
    told = int(kept[1].replace(",", ""))
    assert 0 <= told - 5 * len(parts) <= 5, "those of the part under way are in the journal, all of them at the most"
    pieces = (out / "_journal").glob("*/embeddings/part-*.parquet")
    assert told <= 5 * len(parts) + sum(pq.read_metadata(piece).num_rows for piece in pieces), "no less is there"
    left = set(os.listdir(out)) - {"_journal"}
    assert left == {".lock.guard", "_plan", "embeddings", "failures", "manifest.json"}
    assert read_manifest(out)["counts"] is None


def test_a_folder_is_embedded_moved_renamed_and_updated_as_in_daily_use(
    run: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    album, out = tmp_path / "album", tmp_path / "out"
    shutil.copytree(photos, album / "spring")
    embed = ("-o", out, "-m", "sketch", "--progress", "none")
    assert run("embed", album, *embed)[0] == 0
    moved = album.rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    code, said = run("embed", "moved", *embed)
    assert (code, "7 by an earlier run" in said) == (0, True)
    (moved / "spring").rename(moved / "winter")
    (moved / "winter/0.png").unlink()
    code, said = run("embed", "moved", *embed)
    assert code == 2
    assert said.endswith(
        "out: 6 new, 7 gone since (6 renamed). Add --update to bring it up to date, or choose another output.\n"
    )
    assert "6 by an earlier run; 6 renamed; 1 removed;" in run("embed", "moved", *embed, "--update")[1]
    arguments = ["search", str(out), "-i", "moved/winter/1.png", "--plain", "--contact-sheet", "moved/sheet.png"]
    with pytest.raises(SystemExit):
        main.main(arguments)
    hits = capsys.readouterr().out.splitlines()
    assert hits[0] == "moved/winter/1.png"
    assert all(map(os.path.isfile, hits))
    assert run("embed", "moved", *embed)[1].endswith("ignored: 1 contact sheet\n")
    assert run("verify", out, "--sample", "6")[1].startswith("read 6 = written 6, failed 0; 6 embedded again")
    for place in ("https://host/out", "-", "file:///out"):
        code, said = run("embed", "moved", "-o", place)
        assert (code, "--output" in said, "Pass " in said) == (2, True, True)
