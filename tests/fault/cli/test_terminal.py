"""The command in a terminal: its bar, a window that is narrow or changes, Ctrl-C, NO_COLOR; and without a terminal."""

import os
import re
import select
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from kit.inputs import draw_photos

fcntl, pty, termios = (pytest.importorskip(name) for name in ("fcntl", "pty", "termios"))
LIMIT_S = 600.0


class Terminal:
    """A command in a pseudo-terminal, and what it has drawn."""

    def __init__(self, *arguments: str | Path, columns: int = 80, **environment: str) -> None:
        self._ours, theirs = pty.openpty()
        self.resize(columns)
        clean = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "TMUX")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "clip", *map(str, arguments)],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=clean | {"TERM": "xterm-256color", "OMP_NUM_THREADS": "1"} | environment,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(theirs)
        self.drawn = ""

    def resize(self, columns: int) -> None:
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def press(self, keys: bytes) -> None:
        os.write(self._ours, keys)

    def read(self, until: str = "") -> str:
        """Read what it draws, until a pattern is there or the command is over; return all so far."""
        deadline = time.monotonic() + LIMIT_S
        while not (until and re.search(until, self.drawn)):
            assert time.monotonic() < deadline, self.drawn
            if not select.select([self._ours], [], [], 1.0)[0]:
                continue
            try:
                data = os.read(self._ours, 65536)
            except OSError:  # as Linux says that the other end is closed
                break
            if not data:
                break
            self.drawn += data.decode("utf-8", "replace")
        return self.drawn

    def end(self) -> tuple[int, str]:
        """Return the exit code and all that was drawn."""
        drawn = self.read()
        os.close(self._ours)
        return self.process.wait(LIMIT_S), drawn


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return draw_photos(tmp_path / "photos", [f"{number:02}-日本.png" for number in range(40)])


def embed(photos: Path, *more: str) -> tuple[str | Path, ...]:
    return ("embed", photos, "-o", photos.with_name("out"), "-m", "sketch", *more)


@pytest.mark.parametrize("columns", [30, 120])
def test_a_bar_is_drawn_within_the_window(photos: Path, columns: int) -> None:
    code, drawn = Terminal(*embed(photos), columns=columns, NO_COLOR="1").end()
    assert code == 0
    assert "loading sketch" in drawn
    bars = [line for line in re.split(r"[\r\n]+", drawn) if re.search(r"%\|", line)]
    assert bars
    assert all(len(line.rstrip()) <= columns for line in bars), bars
    assert re.search(r"100%\|.*40/40 ", drawn) or columns == 30
    assert "read 40 = written 40, failed 0" in drawn.replace("\r\n", "\n")
    assert not re.search(r"\x1b\[[0-9;]*m", drawn), "no colours"


def test_a_window_that_changes_ends_nothing(photos: Path) -> None:
    terminal = Terminal(*embed(photos, "--batch-size", "1"))
    terminal.read("loading sketch")
    for columns in (20, 200, 1, 80):
        terminal.resize(columns)
    code, drawn = terminal.end()
    assert (code, "read 40 = written 40" in drawn, "Traceback" in drawn) == (0, True, False)


def test_ctrl_c_ends_it_with_its_code_and_one_line(photos: Path) -> None:
    terminal = Terminal(*embed(photos, "--batch-size", "1"))
    terminal.read("loading sketch")
    terminal.press(b"\x03")
    code, drawn = terminal.end()
    assert code in (0, 128 + signal.SIGINT), "it may have been over"
    assert code == 0 or "interrupted; finished parts are kept" in drawn
    assert "Traceback" not in drawn


def test_a_search_shows_the_path_once_with_a_link(photos: Path, tmp_path: Path) -> None:
    query = ("find", "a photo of a red circle.", photos, "-m", "sketch", "-n", "2")
    code, drawn = Terminal(*query, XDG_DATA_HOME=str(tmp_path / "data")).end()
    assert (code, drawn.count("\x1b]8;;file://")) == (0, 2)
    assert re.search(r"0\.\d{4}  \x1b\]8;;file://[^\x1b]+\x1b\\[^\x1b]*日本\.png\x1b\]8;;\x1b\\", drawn)
    code, drawn = Terminal(*query, XDG_DATA_HOME=str(tmp_path / "data"), TERM="dumb").end()
    assert (code, "\x1b" in drawn, drawn.count("日本.png")) == (0, False, 2)


def test_without_a_terminal_there_are_lines_and_no_control_sequences(photos: Path) -> None:
    command = [sys.executable, "-m", "clip", *map(str, embed(photos))]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT_S)
    assert ran.returncode == 0
    assert ran.stdout == ""
    assert not re.search(r"[\r\x1b]|%\|", ran.stderr)
