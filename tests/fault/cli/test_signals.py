"""Ctrl-C and SIGTERM while an image hangs its decoder, twice, and while libraries are being imported."""

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from kit import hostile, programs
from kit.inputs import draw_photos

LIMIT_S = 600.0  # ten times what a busy machine takes
FORCED = "ended without waiting for what was under way; what was saved is kept"


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hostile.write_plugin(tmp_path_factory.mktemp("plugin"))


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plugin, in a command that waits for hours after a first signal."""
    return hostile.write_plugin(tmp_path_factory.mktemp("patient"), "wait_after_signal")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Six images, and one that hangs."""
    folder = draw_photos(tmp_path / "photos", [f"{n}.png" for n in range(6)])
    (folder / "4.hostile").write_bytes(hostile.picture("hang"))
    return folder


@contextmanager
def running(plugin: Path, photos: Path, weights: Path, out: Path, *flags: str) -> Iterator[subprocess.Popen[str]]:
    """A run in a separate process, when two shards of two images are written and the third hangs."""
    command = [sys.executable, "-m", "clip", "embed", str(photos), "-o", str(out), "-m", str(weights), *flags]
    environment = hostile.environment(plugin, out.with_name("hangs"))
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        process = subprocess.Popen(
            [*command, "--shard-size", "2"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    finally:
        signal.signal(signal.SIGINT, inherited)
    try:
        deadline = time.monotonic() + LIMIT_S
        while not ((out / "embeddings/part-00001.parquet").exists() and out.with_name("hangs").exists()):
            assert process.poll() is None, process.stderr and process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield process
    finally:
        process.kill()
        process.wait()


def resumes(plugin: Path, photos: Path, weights: Path, out: Path) -> None:
    """Resume the run: with --isolate the image that hangs becomes a failure row."""
    command = [sys.executable, "-m", "clip", "embed", str(photos), "-o", str(out), "-m", str(weights)]
    flags = ["--shard-size", "2", "--isolate", "--max-seconds", "1"]
    environment = hostile.environment(plugin)
    ran = subprocess.run([*command, *flags], env=environment, stderr=subprocess.PIPE, check=False, timeout=LIMIT_S)
    assert ran.returncode == 3, ran.stderr
    assert pq.read_table(out / "embeddings")["id"].to_pylist() == [f"{n}.png" for n in range(6)]
    assert pq.read_table(out / "failures")["id"].to_pylist() == ["4.hostile"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_image_that_hangs_does_not_keep_a_signal_waiting(
    plugin: Path, photos: Path, weights: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    with running(plugin, photos, weights, tmp_path / "out") as process:
        process.send_signal(number)
        _, stderr = process.communicate(timeout=LIMIT_S)  # the image hangs for longer
        assert process.returncode == code
        assert stderr.splitlines()[-1] == FORCED, stderr
        assert "Traceback" not in stderr
    resumes(plugin, photos, weights, tmp_path / "out")


def test_a_second_ctrl_c_ends_the_run_at_once(patient: Path, photos: Path, weights: Path, tmp_path: Path) -> None:
    with running(patient, photos, weights, tmp_path / "out") as process:
        process.send_signal(signal.SIGINT)
        while _is_pending(process.pid, signal.SIGINT):
            time.sleep(0.01)
        assert process.poll() is None, "the first waits for what is under way"
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=LIMIT_S)  # the first one alone would take longer
        assert process.returncode == 130
    resumes(patient, photos, weights, tmp_path / "out")


def test_processes_that_decode_end_with_the_run(plugin: Path, photos: Path, weights: Path, tmp_path: Path) -> None:
    with running(plugin, photos, weights, tmp_path / "out", "--isolate", "--max-seconds", "500") as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        decoders = [int(child) for child in children] or _children_of_threads(process.pid)
        assert decoders
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=LIMIT_S)
        assert process.returncode == 130
        assert re.fullmatch(r"interrupted; [\d,]+ of [\d,]+ images are kept; .*", stderr.splitlines()[-1])
        assert not any(Path(f"/proc/{pid}").exists() for pid in decoders)
    resumes(plugin, photos, weights, tmp_path / "out")


def _is_pending(pid: int, number: signal.Signals) -> bool:
    """Whether a signal was sent and not yet delivered."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return bool((int(status["ShdPnd"], 16) | int(status["SigPnd"], 16)) >> (number - 1) & 1)


def _children_of_threads(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "module", ["clip.cli", "click", "clip.batch", "torch._C", "torch.nn", "pyarrow.parquet", "openvino._pyopenvino"]
)
def test_a_signal_while_libraries_are_imported_ends_the_command_in_order(
    photos: Path, weights: Path, tmp_path: Path, module: str, number: signal.Signals
) -> None:
    if (module in ("click", "torch.nn", "openvino._pyopenvino")) == (number == signal.SIGINT):
        pytest.skip("one signal at each point is enough: each starts a command")
    plugin = hostile.write_plugin(tmp_path, "signal_in_import")
    command = [sys.executable, "-m", "clip", "embed", str(photos), "-o", str(tmp_path / "out"), "-m", str(weights)]
    environment = hostile.environment(plugin) | {"CLIP_TEST_AT": f"{module}:{int(number)}"}
    ran = subprocess.run(
        command, env=environment, stderr=subprocess.PIPE, text=True, check=False, timeout=LIMIT_S, preexec_fn=_reset
    )
    assert ran.returncode == 128 + number, ran.stderr
    assert "Traceback" not in ran.stderr
    assert "terminate called" not in ran.stderr


def test_a_signal_in_the_last_import_ends_the_command_once() -> None:
    command = programs.command("signal_in_last_import")
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT_S)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "143\n", "")


@pytest.mark.parametrize("where", ["finalizer", "property"])
def test_a_signal_whose_exception_is_lost_ends_the_command_nevertheless(where: str) -> None:
    command = [*programs.command("signal_in_finalizer"), where]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT_S)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "143\n", "")


def _reset() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
