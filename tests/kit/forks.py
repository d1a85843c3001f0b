"""Work in a separate process for the price of a fork: a server imports everything once, and forks for each request.

A server is a program of tests/kit/programs that calls `serve`. Requests and answers are lines of JSON.
"""

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from kit import programs

MAX_WALL_S = 300  # for a request, which takes a quarter of a second; one that hangs ends with -SIGALRM
MAX_ANSWER_BYTES = 65_536  # a pipe of Linux holds as many, so that nobody has to read while the process runs

Step = tuple[Any, ...]  # the name of a function of tests/kit/disturb.py, and its arguments


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    code: int  # the exit code, or the signal's number below zero
    said: str  # on stdout and stderr
    pid: int
    answer: Any = None  # what the work returned, if it came to that


class Server:
    """Runs a program that serves; `wrapper` is a command that is given the server's command to run."""

    def __init__(self, program: str, *wrapper: str) -> None:
        self._process = subprocess.Popen(
            [*wrapper, *programs.command(program)],
            env=programs.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._process.communicate()  # closes its input, upon which it ends

    @property
    def root(self) -> Path:
        """The tree of files as the forks see it, with what is mounted for them alone."""
        return Path(f"/proc/{self._process.pid}/root")

    def ask(self, *, kill_after_s: float | None = None, **request: Any) -> Ended:
        """Have the program's work done in a fork, with the request as its arguments."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        line = json.dumps({"request": request, "kill_after_s": kill_after_s}, default=str)  # paths
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return Ended(**json.loads(self._process.stdout.readline()))

    def embed(
        self, *arguments: str | Path, first: list[Step] | None = None, kill_after_s: float | None = None
    ) -> Ended:
        """Run `clip embed` after some steps. The program is "serve_embed"."""
        return self.ask(arguments=[str(a) for a in arguments], first=first or [], kill_after_s=kill_after_s)


def serve(work: Callable[..., Any]) -> None:
    """Answer requests until the input ends, each with what `work` does in a fork."""
    for line in sys.stdin:
        print(json.dumps(asdict(_fork(work, **json.loads(line)))), flush=True)


def _fork(work: Callable[..., Any], request: dict[str, Any], kill_after_s: float | None) -> Ended:
    said, answer = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        _work(work, request, said[1], answer[1])
    for _, writer in (said, answer):
        os.close(writer)
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        os.kill(child, signal.SIGKILL)
    with os.fdopen(said[0], errors="backslashreplace") as pipe:
        text = pipe.read()
    with os.fdopen(answer[0]) as pipe:
        value = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return Ended(code, text, child, json.loads(value) if value else None)


def _work(work: Callable[..., Any], request: dict[str, Any], said: int, answer: int) -> NoReturn:
    code: Any = 1
    try:
        signal.alarm(MAX_WALL_S)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # or it would read what is asked of the server
        os.dup2(said, 2)
        os.dup2(2, 1)
        value = json.dumps(work(**request)).encode()
        if len(value) > MAX_ANSWER_BYTES:
            raise ValueError(f"an answer of {len(value)} bytes")
        os.write(answer, value)
        code = 0
    except SystemExit as end:
        code = end.code
    except BaseException:  # noqa: BLE001  as the interpreter does it
        traceback.print_exc()
    finally:
        os._exit(code)
