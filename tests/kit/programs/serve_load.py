"""Serve `clip.load` of files that may be bombs, with little memory and little time.

It computes with one thread: a fork does not take OpenMP's other threads along, and would wait for them for ever.
"""

import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import safetensors.torch  # noqa: F401  what loading imports, once
import torch

import clip
from kit import forks

MAX_CPU_S = 20  # the costliest honest refusal, of a pickle of four million opcodes, takes 4
MAX_WALL_S = 60  # for a process that waits instead of computing
MAX_BYTES = 2**30  # of address space beyond the idle server's; that same refusal takes 350 MB
MAX_SHOWN = 5_000  # characters of a message, as an answer has a limit too; tests want far fewer


def load(path: str) -> dict[str, object]:
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
            "message": str(exc)[:MAX_SHOWN],
            "ran_out_of_memory": any(isinstance(error, MemoryError) for error in _contexts(exc)),
        }
    return {"errors": [], "message": "loaded"}


def _contexts(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, and those while whose handling it arose."""
    while error is not None:
        yield error
        error = error.__context__


if __name__ == "__main__":
    torch.set_num_threads(1)
    with torch.device("meta"):  # what torch imports at its first use
        clip.model.CLIP(8, 32, 1, 64, 16, 4, 8, 64, 1, 1)
    forks.serve(load)
