"""Processes that live side by side take turns. Knows nothing about what a turn is.

They are blocked on stdin when it is not their turn, which goes to the reference, to ours, to the others, to the
reference and so on: whatever else the machine does falls on all. A ratio is made within a turn; its median counts.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from peers import CEILING, AbsentError
from processes import FailedError, Process
from records import Log, Measured, line, lowest_cosine
from session import Contestant, Session

LOOK_S = 0.1
PAUSE_S = 0.2  # between turns: OpenMP's threads spin so long when their work is done
Turn = Callable[[Contestant, Process, Measured], float]  # its seconds
Vectors = Callable[[Process, Path], np.ndarray]  # those to compare with the reference's; the file is to pass them in


def take_turns(
    session: Session, model: str, batch: int, group: list[Contestant], turn: Turn, vectors: Vectors
) -> dict[Contestant, Measured]:
    """Start a group, settle each, compare its vectors with the reference's, and give each its turns."""
    found = {one: Measured(one.peer, one.precision) for one in group}
    running: dict[Contestant, Process] = {}
    expected: np.ndarray | None = None
    with ExitStack() as stack, tempfile.TemporaryDirectory() as scratch:
        for one, measured in found.items():
            try:
                process = stack.enter_context(session.start(one, model, batch))
                measured.notes |= {"batch": batch, "versions": process.versions}
                if process.device_name is not None:
                    measured.notes["gpu"] = process.device_name
                if one.peer != CEILING:
                    settled = session.settle(one, model, batch, process)
                    measured.notes |= {"way": settled.way, "threads": settled.threads}
                    got = vectors(process, Path(scratch) / "vectors.npy")
                    if one == session.reference:
                        expected = got
                    elif expected is not None:
                        measured.cosine = lowest_cosine(expected, got)
                running[one] = process
            except (AbsentError, FailedError) as exc:
                measured.problem = str(exc)
        for _ in range(session.options.pairs):
            for one, process in list(running.items()):
                time.sleep(PAUSE_S)
                found[one].busy_cores.append(busy_cores())
                try:
                    found[one].seconds.append(turn(one, process, found[one]))
                except FailedError as exc:
                    found[one].problem = str(exc)
                    del running[one]
    return found


def busy_cores() -> float:
    """How many cores other programs keep busy: ours are all blocked now. 0 where the system does not tell."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0
    before = stat.read_text()
    time.sleep(LOOK_S)
    idle = [int(text.split()[4]) for text in (before, stat.read_text())]  # of all cores together, in ticks
    return max(0.0, (os.cpu_count() or 1) - (idle[1] - idle[0]) / os.sysconf("SC_CLK_TCK") / LOOK_S)


def write(
    session: Session, log: Log, row: str, model: str, found: dict[Contestant, Measured], *, with_reference: bool
) -> None:
    """Lines for all that were measured; the reference takes part in every group and is written once."""
    reference = found.get(session.reference)
    for one, measured in found.items():
        if one != session.reference or with_reference:
            compared = None if one.peer == CEILING else reference
            log.write({"device": session.options.device} | line(row, model, measured, compared))
