"""Loading files that may be bombs: in a process of its own, with little memory and little time.

The server imports torch once and forks for each file, so a file costs milliseconds. It computes with one thread: a fork
does not take OpenMP's other threads along, and would wait for them for ever.
"""

import atexit
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

MAX_CPU_S = 20  # the costliest honest refusal, of a pickle of four million opcodes, takes 4
MAX_WALL_S = 60  # for a process that waits instead of computing
MAX_BYTES = 2**30  # of address space beyond the idle server's; that same refusal takes 350 MB
MAX_MESSAGE = 1_000  # characters; what a file says of itself must not fill the terminal


@dataclass(frozen=True)
class Outcome:
    """How `clip.load` ended."""

    errors: list[str]  # names of the exception's type and of its parents; empty where the file was loaded
    message: str
    ran_out_of_memory: bool = False  # on the way to that error; without the limit it would have gone on


def load(path: Path) -> Outcome:
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(json.dumps(str(path)) + "\n")
    server.stdin.flush()
    return Outcome(**json.loads(server.stdout.readline()))


def assert_refused(path: Path, error: str = "CheckpointError", says: str = "") -> Outcome:
    """One plain line that begins with the file's name, within the limits of time and memory."""
    outcome = load(path)
    assert error in outcome.errors, outcome
    assert not outcome.ran_out_of_memory, outcome
    assert outcome.message.startswith((f"{path}: ", f"{path}/")), outcome  # or a file in that folder
    assert len(outcome.message) < len(str(path)) + MAX_MESSAGE, outcome
    assert outcome.message.isprintable(), outcome
    assert says in outcome.message, outcome
    return outcome


@cache
def _server() -> subprocess.Popen[str]:
    server = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(server.communicate)  # closes its input, upon which it ends
    return server


def _serve() -> None:
    import safetensors.torch  # noqa: F401  what loading imports, once
    import torch

    import clip

    torch.set_num_threads(1)
    with torch.device("meta"):  # what torch imports at its first use
        clip.model.CLIP(8, 32, 1, 64, 16, 4, 8, 64, 1, 1)
    for line in sys.stdin:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(writer, json.dumps(_load_limited(json.loads(line))).encode())
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as pipe:
            answer = pipe.read()
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(answer or json.dumps({"errors": [], "message": f"its process ended with {code}"}), flush=True)


def _load_limited(path: str) -> dict[str, object]:
    import clip

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MAX_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (MAX_CPU_S, MAX_CPU_S))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.alarm(MAX_WALL_S)
    try:
        clip.load(path, device="cpu")
    except BaseException as exc:  # noqa: BLE001  which one it is, is the question
        return {
            "errors": [cls.__name__ for cls in type(exc).__mro__],
            "message": str(exc)[:10_000],
            "ran_out_of_memory": any(isinstance(error, MemoryError) for error in _behind(exc)),
        }
    return {"errors": [], "message": "loaded"}


def _behind(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those while whose handling it arose."""
    while error is not None:
        yield error
        error = error.__context__


if __name__ == "__main__":
    _serve()
