"""`clip embed` in a process of its own for the price of a fork: a server imports everything once.

A process is told as Python what is to go wrong in it; nothing in the package knows of that.
"""

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

MAX_WALL_S = 300  # of a run, which takes a quarter of a second; one that hangs ends with -SIGALRM


@dataclass(frozen=True)
class Ended:
    """How a run ended."""

    code: int  # the exit code, or the signal's number below zero
    said: str  # on stderr
    pid: int


class Server:
    """Runs `clip embed`; `wrapper` is a command that is given the server's command to run."""

    def __init__(self, *wrapper: str) -> None:
        command = [*wrapper, sys.executable, __file__]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._process.communicate()  # closes its input, upon which it ends

    @property
    def root(self) -> Path:
        """The tree of files as the runs see it, with what is mounted for them alone."""
        return Path(f"/proc/{self._process.pid}/root")

    def embed(self, *arguments: str | Path, first: str = "", kill_after_s: float | None = None) -> Ended:
        """One run, which executes `first` before it begins."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        asked = {"arguments": [str(a) for a in arguments], "first": first, "kill_after_s": kill_after_s}
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return Ended(**json.loads(self._process.stdout.readline()))


def _serve() -> None:
    import pyarrow.dataset  # noqa: F401  what a run imports at its first use
    from PIL import Image

    from clip.cli import main  # noqa: F401

    with suppress(ImportError):
        import openvino  # noqa: F401
    Image.init()
    for line in sys.stdin:
        print(json.dumps(_run(**json.loads(line))), flush=True)


def _run(arguments: list[str], first: str, kill_after_s: float | None) -> dict[str, Any]:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _embed(arguments, first, writer)
    os.close(writer)
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        os.kill(child, signal.SIGKILL)
    with os.fdopen(reader, errors="backslashreplace") as pipe:
        said = pipe.read()
    return {"code": os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), "said": said, "pid": child}


def _embed(arguments: list[str], first: str, stderr: int) -> NoReturn:
    from clip.cli import main

    code: Any = 1
    try:
        signal.alarm(MAX_WALL_S)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # or it would read what is asked of the server
        os.dup2(stderr, 2)
        os.dup2(2, 1)
        exec(first, {})
        main.main(["embed", *arguments])
    except SystemExit as end:
        code = end.code
    except BaseException:  # noqa: BLE001  as the interpreter does it
        traceback.print_exc()
    finally:
        os._exit(code)


if __name__ == "__main__":
    _serve()
