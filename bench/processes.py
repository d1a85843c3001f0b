"""A peer's process as an object: requests in, answers out, one at a time. Knows nothing about what is measured."""

from __future__ import annotations

import json
import subprocess
import tempfile
import threading
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from peers import BENCH

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from peers import Place
    from runners import Task

LONGEST_ANSWER_S = 1800  # a process that takes longer is ended; the slowest batch seen takes 10 s
SHOWN_LINES = 2  # of what a process that ended wrote to stderr


class FailedError(Exception):
    """A peer's process ended or hung; the message has its last words."""


class Process:
    """A peer at work. Use it as a context manager: it ends with the block."""

    def __init__(self, place: Place, task: Task, home: Path) -> None:
        """Start it; `home` is where it may keep files of its own between processes."""
        self.task = task
        self._stderr = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        home.mkdir(parents=True, exist_ok=True)
        self._process = subprocess.Popen(
            [place.python, str(BENCH / "worker.py"), json.dumps(asdict(task))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            env=place.environment() | {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")},
        )
        self.versions: dict[str, str] = {}
        self.device_name: str | None = None

    def wait_for_libraries(self) -> None:
        """Return when its libraries are imported."""
        self.versions = self._answer()["imported"]

    def wait_for_model(self) -> None:
        """Return when its model is loaded."""
        self.device_name = self._answer()["loaded"]

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """The answer to a request, as worker.Worker's method of that name gives it.

        Raises:  FailedError where it ends or takes too long.
        """
        if self._process.stdin is None:
            raise FailedError(f"{self._name}: has no stdin, expected a pipe. Report this.")
        try:
            self._process.stdin.write(json.dumps({"do": do} | arguments) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended: the answer will say so, with its last words
        return self._answer()

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End it, and wait for that."""
        try:
            self._process.communicate(timeout=60)  # which closes its stdin, and that ends it
        except (subprocess.TimeoutExpired, BrokenPipeError):
            self._process.kill()
            self._process.wait()
        self._stderr.close()

    @property
    def _name(self) -> str:
        return f"{self.task.peer} {self.task.precision} with {self.task.model}"

    def _answer(self) -> dict[str, Any]:
        watch = threading.Timer(LONGEST_ANSWER_S, self._process.kill)
        watch.start()
        line = self._process.stdout.readline() if self._process.stdout else ""
        watch.cancel()
        if not line:
            self._process.wait()
            self._stderr.seek(0)
            last = " / ".join(self._stderr.read().strip().splitlines()[-SHOWN_LINES:])
            raise FailedError(
                f"{self._name}: ended with code {self._process.returncode}, expected an answer. It wrote: {last}"
            )
        return json.loads(line)
