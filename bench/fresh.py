"""The rows of fresh processes: whole commands, start to first vector, peak memory. Knows nothing about a peer."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import models
import numpy as np
from peers import OURS, OURS_FAST, OWN, AbsentError, place
from processes import FailedError
from records import Log, Measured, lowest_cosine, rounded
from session import Contestant, Session, Settled
from turns import write

if TYPE_CHECKING:
    from collections.abc import Callable

MEMORY_BATCHES = 10
STARTS = ("first", "again")


@dataclass
class Start(Measured):
    """Starts of a peer, in two parts."""

    imports_s: list[float] = field(default_factory=list)
    first_vector_s: list[float] = field(default_factory=list)


def commands(session: Session, model: str, batch: int, folder: Path, scratch: Path) -> dict[Contestant, Measured]:
    """`clip embed` and, for the reference, a script that does the same, from start to end."""
    contestants = session.contestants(model, decodes=True)
    found = {
        one: Measured(one.peer, one.precision) for one in contestants if one.peer in OWN or one == session.reference
    }
    expected: np.ndarray | None = None
    for turn in range(session.options.pairs + 1):  # the first is not counted: caches are filled
        for one, measured in found.items():
            if measured.problem is not None:
                continue
            run = _clip_embed if one.peer in OWN else _script
            started = time.perf_counter()
            try:
                vectors = run(session, one, model, batch, folder, scratch)
            except (AbsentError, FailedError) as exc:
                measured.problem = str(exc)
                continue
            if turn:
                measured.seconds.append(time.perf_counter() - started)
            elif one == session.reference:
                expected = vectors()
            elif expected is not None:
                measured.cosine = lowest_cosine(expected, vectors())
    return found


def _script(
    session: Session, one: Contestant, model: str, batch: int, folder: Path, scratch: Path
) -> Callable[[], np.ndarray]:
    path = scratch / "script.npy"
    known = session.settled.get((one, model, batch), Settled("plain", None))
    with session.start(one, model, batch) as process:
        process.ask("embed", folder=str(folder), loaders=known.loaders, path=str(path))
    return lambda: np.load(path)


def _clip_embed(
    session: Session, one: Contestant, model: str, batch: int, folder: Path, scratch: Path
) -> Callable[[], np.ndarray]:
    weights, out = models.model_folder(model) / "openai.pt", scratch / "out"
    command = [sys.executable, "-m", "clip", "embed", str(folder), "-o", str(out), "--overwrite", "-m", str(weights)]
    command += ["--device", session.options.device, "--precision", one.precision, "--batch-size", str(batch)]
    command += ["--decode", "fast"] if one.peer == OURS_FAST else []
    home = models.CACHE / "home" / OURS
    environment = place(OURS, session.options.device).environment()
    environment |= {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")}
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if ran.returncode:
        raise FailedError(f"clip embed: ended with code {ran.returncode}, expected 0. It wrote: {ran.stderr[-300:]}")

    def vectors() -> np.ndarray:
        import pyarrow.parquet as pq  # here, because a machine that only encodes does not need it

        table = pq.read_table(out / "embeddings", columns=["id", "embedding"]).sort_by("id")
        return np.stack(table["embedding"].to_numpy())

    return vectors


def start(session: Session, log: Log, model: str) -> None:
    """From starting Python to the first vector, files in the page cache; with its own cache empty, and again."""
    found = {name: {one: Start(one.peer, one.precision) for one in session.contestants(model)} for name in STARTS}
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch) / "home"
        for turn in range(session.options.pairs + 1):  # the first fills the page cache and is not counted
            for one in session.contestants(model):
                shutil.rmtree(home, ignore_errors=True)
                for name in STARTS:
                    _start_once(session, one, model, home, found[name][one], counted=turn > 0)
    for name in STARTS:
        for measured in found[name].values():
            if measured.seconds:
                measured.notes["imports_s"] = rounded(statistics.median(measured.imports_s))
                measured.notes["first_vector_s"] = rounded(statistics.median(measured.first_vector_s))
        write(session, log, f"start-{name}", model, dict(found[name]), with_reference=True)


def _start_once(session: Session, one: Contestant, model: str, home: Path, measured: Start, *, counted: bool) -> None:
    """Add the seconds until libraries are imported, and from then until there is a vector."""
    if measured.problem is not None:
        return
    started = time.perf_counter()
    try:
        with session.spawn(one, model, 1, home) as process:
            process.wait_for_libraries()
            imported = time.perf_counter()
            process.wait_for_model()
            process.ask("encode", repeat=1)
            done = time.perf_counter()
    except (AbsentError, FailedError) as exc:
        measured.problem = str(exc)
        return
    if counted:
        measured.imports_s.append(imported - started)
        measured.first_vector_s.append(done - imported)
        measured.seconds.append(done - started)


def memory(session: Session, log: Log, model: str) -> None:
    """The peak of a fresh process that loads the model and encodes some batches."""
    found = {one: Measured(one.peer, one.precision) for one in session.contestants(model)}
    peaks: dict[Contestant, float] = {}
    for one, measured in found.items():
        try:
            peak = _peak(session, one, model)
        except (AbsentError, FailedError) as exc:
            measured.problem = str(exc)
            continue
        peaks[one] = peak["peak_bytes"]
        measured.notes["peak_mb"] = round(peak["peak_bytes"] / 1e6)
        if peak["peak_device_bytes"]:
            measured.notes["peak_device_mb"] = round(peak["peak_device_bytes"] / 1e6)
        if session.reference in peaks:
            measured.notes["ratio"] = rounded(peaks[session.reference] / peaks[one])
    write(session, log, "memory", model, found, with_reference=True)


def _peak(session: Session, one: Contestant, model: str) -> dict[str, Any]:
    """Settled in a process before, so that only the way taken counts."""
    batch = models.BATCHES[session.options.device][model]
    if (one, model, batch) not in session.settled:
        with session.start(one, model, batch) as process:
            session.settle(one, model, batch, process)
    with session.start(one, model, batch) as process:
        process.ask("encode", repeat=MEMORY_BATCHES)
        return process.ask("peak")
