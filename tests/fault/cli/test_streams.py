"""Standard streams that are closed or whose reader is gone, limits of the system: our exit codes, no traceback."""

import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit import forks, programs
from kit.inputs import draw_photos, number_names

import clip

LIMIT_S = 600.0


@pytest.fixture(scope="module")
def server() -> Iterator[forks.Server]:
    with forks.Server("serve_command") as server:
        yield server


@pytest.fixture(scope="module")
def out(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output with failure rows, and its input beside it."""
    folder = tmp_path_factory.mktemp("streams")
    draw_photos(folder / "photos", number_names(4))
    (folder / "photos/broken.png").write_bytes(b"no image")
    clip.embed(clip.jobs.EmbedJob(source=folder / "photos", output=folder / "out", model=str(weights)))
    return folder / "out"


def arguments(out: Path, weights: Path, target: Path) -> dict[str, tuple[int, list[str | Path]]]:
    """A command of each kind, with its exit code."""
    photos = out.with_name("photos")
    return {
        "models": (0, ["models"]),
        "help": (0, ["embed", "--help"]),
        "embed": (3, ["embed", photos, "-o", target, "-m", weights, "--json"]),
        "dry-run": (0, ["embed", photos, "-o", target, "-m", weights, "--dry-run"]),
        "refused": (2, ["embed", target / "missing", "-o", target]),
        "unknown flag": (2, ["embed", "--unknown"]),
        "stdin": (2, ["embed", "-", "-o", target, "-m", weights]),
        "verify": (0, ["verify", out]),
        "search": (0, ["search", out, "-i", photos / "00.png", "--json"]),
        "export": (0, ["export", out, target, "--format", "csv"]),
    }


KINDS = ("models", "help", "embed", "dry-run", "refused", "unknown flag", "stdin", "verify", "search", "export")
BROKEN = {
    "stdout closed": ([1], []),
    "stderr closed": ([2], []),
    "all closed": ([0, 1, 2], []),
    "stdout's reader gone": ([], [1]),
    "both readers gone": ([], [1, 2]),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", BROKEN)
def test_a_stream_that_nobody_reads_changes_no_exit_code(
    server: forks.Server, out: Path, weights: Path, tmp_path: Path, kind: str, name: str
) -> None:
    code, command = arguments(out, weights, tmp_path / "target")[kind]
    closed, gone = BROKEN[name]
    ended = server.ask(arguments=command, closed=closed, gone=gone)
    assert ended.code == code, ended
    assert "Traceback" not in ended.said
    assert "Exception ignored" not in ended.said
    if kind == "embed":
        report = clip.verify(clip.jobs.VerifyJob(output=tmp_path / "target"))
        assert (report.read, report.failed, report.problems) == (5, 1, ())


@pytest.mark.parametrize(("number", "code"), [(2, 130), (15, 143)])
def test_a_signal_after_the_last_line_ends_the_command_with_its_code(
    server: forks.Server, out: Path, number: int, code: int
) -> None:
    ended = server.ask(arguments=["verify", out], closed=[], gone=[], late=number)
    assert (ended.code, "Traceback" in ended.said) == (code, False), ended
    assert "no problem" in ended.said


def test_a_full_disk_behind_stdout_is_an_error() -> None:
    with open("/dev/full", "w") as full:
        ran = subprocess.run([sys.executable, "-m", "clip", "models"], stdout=full, stderr=subprocess.PIPE, check=False)
    assert ran.returncode == 1
    assert b"No space left" in ran.stderr
    assert b"Traceback" not in ran.stderr


def test_where_no_threads_can_be_started_the_command_says_what_to_do() -> None:
    ran = subprocess.run(
        programs.command("run_without_threads", "verify", "out"),
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_S,
    )
    assert ran.returncode == 2, ran
    assert ran.stderr.startswith("clip: threads: the system starts "), ran.stderr
    assert "Raise the limit on processes" in ran.stderr
    assert ran.stderr.count("\n") == 1


def test_where_memory_is_limited_to_less_than_libraries_need_the_command_says_what_to_do() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "clip", "verify", "out"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (2_000_000_000, 2_000_000_000)),
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_S,
    )
    assert ran.returncode == 2, ran
    assert ran.stderr == (
        "clip: address space: found a limit of 2,000,000,000 bytes, expected at least 4,000,000,000. "
        "Run: ulimit -v unlimited\n"
    )
