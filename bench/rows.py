"""The rows of live processes: vectors from images in memory, and from files. Knows nothing about a peer."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import fresh
import models
import numpy as np
import pictures
from flops import lean_gflops
from peers import CEILING, OURS, OWN
from records import Log, Measured, rounded
from session import Contestant, Session
from turns import take_turns, write

from clip.weights.releases import RELEASES

if TYPE_CHECKING:
    from processes import Process

TURN_S = 1.0  # a turn repeats a batch that is shorter
MOST_REPEATS = 100
CEILING_S = 0.9  # a turn of the ceiling
LOADERS = (0, 2)  # processes of a DataLoader to try


def encode(session: Session, log: Log, model: str) -> None:
    """Preprocessed images in memory to vectors, beside the machine's best matrix product."""
    batch = models.BATCHES[session.options.device][model]
    _encode(session, log, "encode", model, batch, ceiling=True)


def latency(session: Session, log: Log, model: str) -> None:
    """The same for one image at a time."""
    _encode(session, log, "latency", model, 1, ceiling=False)


def _encode(session: Session, log: Log, row: str, model: str, batch: int, *, ceiling: bool) -> None:
    gflop = lean_gflops(RELEASES[model].architecture) * batch
    repeats: dict[Contestant, int] = {}

    def turn(contestant: Contestant, process: Process, measured: Measured) -> float:
        if contestant.peer == CEILING:
            found = process.ask("gflops", seconds=CEILING_S)
            measured.notes["product"] = found["product"]
            return gflop / found["gflops"]  # what the lean graph would take at this rate
        if contestant not in repeats:
            once_s = process.ask("encode", repeat=2)["seconds"][-1]
            repeats[contestant] = min(MOST_REPEATS, math.ceil(TURN_S / once_s))
        return float(np.median(process.ask("encode", repeat=repeats[contestant])["seconds"]))

    def vectors(process: Process, path: Path) -> np.ndarray:
        process.ask("vectors", path=str(path))
        return np.load(path)

    for number, group in enumerate(session.groups(model, session.contestants(model))):
        found = take_turns(session, model, batch, with_ceilings(group) if ceiling else group, turn, vectors)
        for contestant, measured in found.items():
            of_ceiling = found.get(Contestant(CEILING, contestant.precision))
            if contestant.peer == OURS and of_ceiling is not None:
                _share_of(of_ceiling, measured)
            if contestant.peer == CEILING and measured.seconds:
                measured.notes["gflops"] = rounded(gflop / float(np.median(measured.seconds)))
            measured.pictures = batch
        write(session, log, row, model, found, with_reference=number == 0)


def with_ceilings(group: list[Contestant]) -> list[Contestant]:
    """The best matrix product right after ours, at the same precision."""
    return [
        one
        for contestant in group
        for one in (
            [contestant, Contestant(CEILING, contestant.precision)]
            if contestant.peer == OURS and contestant.precision != "int8"  # of which no best product is known
            else [contestant]
        )
    ]


def _share_of(ceiling: Measured, ours: Measured) -> None:
    shares = [best / taken for best, taken in zip(ceiling.seconds, ours.seconds, strict=False)]
    if shares:
        ours.notes["gemm_share"] = rounded(float(np.median(shares)))
        ours.notes["gemm_share_range"] = [rounded(min(shares)), rounded(max(shares))]


def jpeg_web(session: Session, log: Log, model: str) -> None:
    """JPEGs of 0.2 MP to vectors."""
    _jpeg(session, log, "web", model)


def jpeg_12mp(session: Session, log: Log, model: str) -> None:
    """Photos of 12 MP to vectors."""
    _jpeg(session, log, "12mp", model)


def _jpeg(session: Session, log: Log, kind: str, model: str) -> None:
    """Files to vectors: live processes, then whole commands, start-up included for both."""
    batch = models.BATCHES[session.options.device][model]
    count = session.options.pictures or pictures.how_many(kind, RELEASES[model].gflops, batch)
    folder = pictures.folder(kind, count)
    with tempfile.TemporaryDirectory() as scratch:
        spare = Path(scratch) / "spare.npy"

        def embed(contestant: Contestant, process: Process, measured: Measured) -> float:
            known = session.settled[contestant, model, batch]
            if contestant not in tried:
                known.loaders = _best_loaders(process, folder, 4 * batch, spare)
                tried.add(contestant)
            measured.notes["loaders"] = known.loaders
            return process.ask("embed", folder=str(folder), loaders=known.loaders, path=str(spare))["seconds"]

        def vectors(process: Process, path: Path) -> np.ndarray:
            process.ask("embed", folder=str(folder), loaders=0, path=str(path), limit=batch)
            return np.load(path)

        tried: set[Contestant] = set()
        for number, group in enumerate(session.groups(model, session.contestants(model, decodes=True))):
            found = take_turns(session, model, batch, group, embed, vectors)
            for measured in found.values():
                measured.pictures = count
            write(session, log, f"jpeg-{kind}", model, found, with_reference=number == 0)
        found = fresh.commands(session, model, batch, folder, Path(scratch))
        for measured in found.values():
            measured.pictures = count
        write(session, log, f"command-{kind}", model, found, with_reference=True)


def _best_loaders(process: Process, folder: Path, limit: int, path: Path) -> int:
    """The number of decoding processes that is fastest; ours takes none, it has threads."""
    if process.task.peer in OWN:
        return 0
    seconds = {
        loaders: process.ask("embed", folder=str(folder), loaders=loaders, path=str(path), limit=limit)["seconds"]
        for loaders in LOADERS
    }
    return min(LOADERS, key=lambda loaders: seconds[loaders])
