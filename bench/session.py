"""One run of the bench: who takes part, where they run, and what was found out about them. Knows nothing about rows."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import models
from peers import CEILING, OWN, PEERS, REFERENCE, REFERENCE_PRECISION, ROOT, AbsentError, Place, place
from processes import FailedError, Process
from records import cores
from runners import Task

from clip.weights.releases import RELEASES

SHARE_OF_MEMORY = 0.6  # of what is free, for processes that live at the same time
PROCESS_BYTES = 700e6  # of a process beside its weights: libraries, activations
COPIES_OF_WEIGHTS = 1.5  # some peers keep them in a layout of their own, too


@dataclass(frozen=True)
class Contestant:
    """A peer at a precision."""

    peer: str
    precision: str


@dataclass(frozen=True)
class Options:
    """What a run is asked for."""

    device: str
    rows: tuple[str, ...]
    models: tuple[str, ...]
    precisions: tuple[str, ...]
    peers: tuple[str, ...]
    pairs: int
    pictures: int | None  # in a folder of JPEGs; None: by the model's size
    output: Path


@dataclass
class Settled:
    """How a contestant is fastest with a model and a batch."""

    way: str
    threads: int | None
    loaders: int = 0


class Session:
    """Starts processes for contestants, each as it is fastest."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.reference = Contestant(REFERENCE, REFERENCE_PRECISION[options.device])
        self.settled: dict[tuple[Contestant, str, int], Settled] = {}
        self._places: dict[str, Place | AbsentError] = {}

    def contestants(self, model: str, *, decodes: bool = False) -> list[Contestant]:
        """Who can run a model: the reference first, then ours, then the others; or only those that decode images."""
        found = [self.reference]
        for peer in sorted(self.options.peers, key=lambda peer: (peer not in OWN, peer)):
            can = PEERS[peer]
            if not (can.decodes if decodes else can.encodes) or (is_resnet(model) and not can.resnets):
                continue
            precisions = can.precisions.get(self.options.device, ())
            found += [Contestant(peer, precision) for precision in self.options.precisions if precision in precisions]
        return list(dict.fromkeys(found))

    def groups(self, model: str, contestants: list[Contestant]) -> list[list[Contestant]]:
        """Contestants that fit into memory at a time; the reference is the first of every group."""
        each = PROCESS_BYTES + COPIES_OF_WEIGHTS * models.weights_bytes(model)
        size = max(2, int(SHARE_OF_MEMORY * available_bytes() / each))
        others = contestants[1:]
        step = size - 1
        return [[contestants[0], *others[i : i + step]] for i in range(0, max(1, len(others)), step)]

    def start(self, contestant: Contestant, model: str, batch: int, home: Path | None = None) -> Process:
        """A process with the model loaded, settled as far as that is known.

        Raises:  AbsentError, FailedError.
        """
        process = self.spawn(contestant, model, batch, home)
        try:
            process.wait_for_libraries()
            process.wait_for_model()
        except FailedError:
            process.close()
            raise
        return process

    def spawn(self, contestant: Contestant, model: str, batch: int, home: Path | None = None) -> Process:
        """A process that has just begun. Raises: AbsentError, FailedError."""
        where = self._place(contestant.peer)
        folder = models.model_folder(model)
        if contestant.peer == "onnxruntime":
            self._export(folder / "visual.onnx", model)
        known = self.settled.get((contestant, model, batch))
        way, threads = (known.way, known.threads) if known else (None, None)
        task = Task(contestant.peer, model, contestant.precision, self.options.device, str(folder), batch, way, threads)
        return Process(where, task, home or models.CACHE / "home" / contestant.peer)

    def settle(self, contestant: Contestant, model: str, batch: int, process: Process) -> Settled:
        """Have a process find how it is fastest, unless that is known from an earlier one."""
        key = (contestant, model, batch)
        if key not in self.settled:
            found = process.ask("settle", threads=thread_counts(self.options.device))
            self.settled[key] = Settled(found["way"], found["threads"])
        return self.settled[key]

    def _place(self, peer: str) -> Place:
        if peer == CEILING:
            return Place(sys.executable, (str(ROOT / "src"),))
        if peer not in self._places:
            try:
                self._places[peer] = place(peer, self.options.device)
            except AbsentError as exc:
                self._places[peer] = exc
        found = self._places[peer]
        if isinstance(found, AbsentError):
            raise found
        return found

    def _export(self, path: Path, model: str) -> None:
        """The reference's image tower as ONNX, by the reference's own environment, once."""
        if not path.exists():
            part = path.with_suffix(".part")
            with self.start(Contestant(REFERENCE, "fp32"), model, batch=1) as process:
                process.ask("export", path=str(part))
            part.rename(path)


def is_resnet(model: str) -> bool:
    """Whether a released model's image tower is a ModifiedResNet."""
    return isinstance(RELEASES[model].architecture.vision_layers, tuple)


def thread_counts(device: str) -> list[int]:
    """Counts to try: all of few cores, halves of many; beside a GPU they matter little."""
    all_of_them = cores()
    if device != "cpu":
        return [all_of_them]
    if all_of_them <= 4:
        return list(range(1, all_of_them + 1))
    return sorted({all_of_them // 4, all_of_them // 2, all_of_them})


def available_bytes() -> int:
    """Memory that is free or can be freed; where the system does not tell, as if it were 8 GB."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 8_000_000_000
