"""Serve runs that several processes share, some of which are killed: a process for each part, forked from this one."""

import os
import random
import signal
import time
from contextlib import suppress
from typing import Any

import pyarrow.dataset  # noqa: F401  what a run imports at its first use
from PIL import Image

from clip.batch import embed as _  # noqa: F401
from clip.cli import main
from kit import forks

with suppress(ImportError):
    import openvino  # noqa: F401

KILL_EACH_S = 0.02  # between looks at which process to kill
AHEAD_S = 600  # of the clock of one part


def run_parts(arguments: list[str], parts: int, kills: int, seed: int, within_s: float) -> dict[str, Any]:
    """Start all parts, kill them at random moments and start them again, until all have ended by themselves."""
    chance = random.Random(seed)
    children: dict[int, int] = {}  # process -> part
    deadlines: dict[int, float] = {}  # process -> when it is killed
    codes: dict[int, list[int]] = {part: [] for part in range(parts)}
    waiting = list(range(parts))
    while waiting or children:
        for part in waiting:
            child = os.fork()
            if child == 0:
                _embed([*arguments, "--part", f"{part}/{parts}"], is_ahead=part == parts - 1)
            children[child] = part
            if kills:
                kills -= 1
                deadlines[child] = time.monotonic() + chance.random() * within_s
        waiting = []
        for child in list(children):
            if time.monotonic() >= deadlines.get(child, float("inf")):
                os.kill(child, signal.SIGKILL)
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                part = children.pop(child)
                deadlines.pop(child, None)
                codes[part].append(os.waitstatus_to_exitcode(status))
                if codes[part][-1] == -signal.SIGKILL:
                    waiting.append(part)
        time.sleep(KILL_EACH_S)
    return {"codes": [codes[part] for part in range(parts)]}


def _embed(arguments: list[str], *, is_ahead: bool) -> None:
    if is_ahead:
        now, now_ns = time.time, time.time_ns
        time.time, time.time_ns = lambda: now() + AHEAD_S, lambda: now_ns() + AHEAD_S * 10**9
    code: Any = 1
    try:
        main.main(["embed", *arguments])
    except SystemExit as end:
        code = end.code
    finally:
        os._exit(code)


if __name__ == "__main__":
    Image.init()
    forks.serve(run_parts)
