"""One measurement of scale.py in a fresh process: a listing, a run, or a stage. Knows nothing of bars and tables.

Usage: scale_worker.py TASK, a JSON object with the fields of `Task`. The answer is one JSON object on stdout. What is
measured is imported where it is needed, so that a process holds no more than its own measurement asks for.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import threading
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import paths  # noqa: F401  # pyright: ignore[reportUnusedImport]  before what it finds
from kit.jobs import embed_job
from scale_stages import STAGES, Cost, encoder_of, pipeline, source_of

from clip.jobs.embed import EmbedJob

if TYPE_CHECKING:
    from collections.abc import Callable

    from clip.jobs.embed import Progress

RESET_PEAK = "5"  # to /proc/self/clear_refs: VmHWM becomes VmRSS (man 5 proc)
INTERVAL_S = 1.0  # between two looks at the memory
OFTENER = 500_000  # inputs under which they come nearer to one another, as the run is over sooner
FIRST_S = 0.05  # until it is known how many inputs there are
REACHED = (0.1, 0.5, 1.0)  # parts of the input at which the memory is told
KB = 1024


@dataclass(frozen=True)
class Task:
    """What is measured, and on what."""

    what: str  # a name in MEASURES
    job: dict[str, Any]  # the options of an EmbedJob, flat; its output is a place to write to
    few: str  # a folder of a few images, to warm up on


def resident_bytes(what: str) -> int:
    """VmRSS, what this process holds in memory, or VmHWM, the most it has held."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{what}:"):
            return int(line.split()[1]) * KB
    raise OSError(f"/proc/self/status: found no {what}, expected one. Run this on Linux.")


def count(job: EmbedJob, few: str) -> dict[str, Any]:
    """The listing alone."""
    from clip.batch.embed import count as entries

    return _listing(lambda source: entries(replace(job, source=source)).images, job, few)


def plan(job: EmbedJob, few: str) -> dict[str, Any]:
    """The listing as a run does it: into a plan on the disk."""
    from clip.store.plan import write_plan

    def entries(source: str) -> int:
        ignored: Counter[str] = Counter()
        with tempfile.TemporaryDirectory(dir=Path(job.output).parent) as output:
            return write_plan(Path(output), source_of(source).shards(job.policy.shard_size, ignored), ignored).entries

    return _listing(entries, job, few)


def _listing(entries: Callable[[str], int], job: EmbedJob, few: str) -> dict[str, Any]:
    entries(few)  # what is loaded and cached on first use is no part of a listing's memory
    with suppress(OSError):  # where that is not allowed, the peak of the imports counts if it is higher
        Path("/proc/self/clear_refs").write_text(RESET_PEAK)
    before = resident_bytes("VmRSS")
    cost = Cost(threads=1)
    with cost.measured():
        cost.pictures = entries(str(job.source))
    return asdict(cost) | {"grown_bytes": resident_bytes("VmHWM") - before, "before_bytes": before}


def engine(job: EmbedJob, few: str) -> dict[str, Any]:  # noqa: ARG001
    """The most memory of an Encoder that has encoded a batch, and nothing else."""
    import numpy as np

    encoder = encoder_of(job)
    side = encoder.resolution_px
    encoder.encode_pixels(np.zeros((encoder.batch_size, side, side, 3), np.uint8))
    return {"peak_bytes": resident_bytes("VmHWM"), "batch_size": encoder.batch_size}


def run(job: EmbedJob, few: str) -> dict[str, Any]:  # noqa: ARG001
    """A whole run, its memory looked at now and then."""
    import clip

    seen = total = 0
    looks: list[tuple[int, int]] = []  # inputs seen so far, bytes
    over = threading.Event()

    def look() -> None:
        while not over.wait(INTERVAL_S * min(1, total / OFTENER) or FIRST_S):
            if seen:
                looks.append((seen, resident_bytes("VmRSS")))

    def progress(now: Progress) -> None:
        nonlocal seen, total
        seen, total = now.read, now.total
        if seen == total:  # before anything is given back
            looks.append((seen, resident_bytes("VmRSS")))

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    cost = Cost()
    with cost.measured():
        report = clip.embed(job, progress)
    over.set()
    looking.join()
    cost.pictures = report.read
    half = [(inputs / 1000, size / KB) for inputs, size in looks if 2 * inputs >= report.read]
    nearest = [min(looks, key=lambda look: abs(look[0] - part * report.read))[1] for part in REACHED]
    return asdict(cost) | {
        "written": report.written,
        "failed": report.failed,
        "peak_bytes": resident_bytes("VmHWM"),
        "at_bytes": {f"{part:.0%}": size for part, size in zip(REACHED, nearest, strict=True)},
        "slope_kb_per_1000": statistics.linear_regression(*zip(*half, strict=True)).slope if len(half) > 2 else None,
        "looks_in_second_half": len(half),
    }


MEASURES = {"count": count, "plan": plan, "engine": engine, "run": run, **STAGES, "pipeline": pipeline}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints goes to stderr
    task = Task(**json.loads(sys.argv[1]))
    json.dump(MEASURES[task.what](embed_job(**task.job), task.few), answers)
    answers.close()


if __name__ == "__main__":
    main()
