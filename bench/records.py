"""What is measured becomes lines of JSON: paired ratios, their spread, the machine. Knows nothing about peers."""

from __future__ import annotations

import datetime
import json
import math
import os
import platform
import statistics
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "avx_vnni", "amx_bf16", "amx_int8", "avx512_fp16")
# Below this minimum over images, vectors are wrong, and their speed does not count.
MIN_COSINE = {"fp32": 0.9999, "bf16": 0.999, "fp16": 0.999, "int8": 0.99}
DIGITS = 4  # kept of a measurement


@dataclass
class Measured:
    """One peer at one precision, turn by turn."""

    peer: str
    precision: str
    seconds: list[float] = field(default_factory=list)  # of each turn, for `images`
    pictures: int = 1
    cosine: float | None = None  # the lowest to the reference's vectors
    busy_cores: list[float] = field(default_factory=list)  # of other programs, just before each turn
    notes: dict[str, Any] = field(default_factory=dict)  # threads, versions and the like
    problem: str | None = None  # why there is no number, or none that counts


def paired_ratios(reference: list[float], other: list[float]) -> list[float]:
    """How many times as fast the other was, turn by turn. Units: seconds in; both had the same turns."""
    return [a / b for a, b in zip(reference, other, strict=False)]


def lowest_cosine(a: np.ndarray, b: np.ndarray) -> float:
    """The lowest cosine between rows. Shapes: (N, D), (N, D) ->."""
    if a.shape != b.shape:
        return math.nan
    a, b = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(axis=1) / norms).min())


def line(row: str, model: str, measured: Measured, reference: Measured | None) -> dict[str, Any]:
    """A measurement as a line: medians, the ratio to the reference as the median of paired ratios, and its range."""
    found: dict[str, Any] = {"row": row, "model": model, "peer": measured.peer, "precision": measured.precision}
    if measured.seconds:
        per_picture = [seconds / measured.pictures for seconds in measured.seconds]
        found["turns"] = len(per_picture)
        found["seconds_per_image"] = rounded(statistics.median(per_picture))
        if not row.startswith("start"):
            found["images_per_s"] = rounded(1 / statistics.median(per_picture))
        found["spread"] = rounded((max(per_picture) - min(per_picture)) / statistics.median(per_picture))
        if measured.busy_cores:
            found["busy_cores"] = round(statistics.mean(measured.busy_cores), 2)
        if reference is not None and reference.seconds:
            theirs = [seconds / reference.pictures for seconds in reference.seconds]
            ratios = paired_ratios(theirs, per_picture)
            found["ratio"] = rounded(statistics.median(ratios))
            found["ratio_range"] = [rounded(min(ratios)), rounded(max(ratios))]
    if measured.cosine is not None:
        found["min_cosine"] = round(measured.cosine, 7)
        lowest = MIN_COSINE[measured.precision]
        if not measured.cosine >= lowest and measured.problem is None:
            measured.problem = f"vectors differ: minimum cosine {measured.cosine:.6f}, expected at least {lowest}"
    if measured.problem is not None:
        found["problem"] = measured.problem
    return found | measured.notes


def rounded(value: float) -> float:
    """To some digits, whatever its size."""
    return float(f"{value:.{DIGITS}g}")


def machine() -> dict[str, Any]:
    """The CPU, how many cores of it are ours, and the instructions that matter."""
    model, flags = platform.processor() or platform.machine(), set()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for entry in cpuinfo.read_text().splitlines():
            key, _, value = entry.partition(":")
            if key.strip() == "model name":
                model = value.strip()
            elif key.strip() == "flags":
                flags = set(value.split())
    found = [flag for flag in FLAGS if flag in flags]
    return {"cpu": model, "cores": cores(), "flags": found, "python": platform.python_version()}


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def commit(root: Path) -> str:
    """The commit, with a + where files differ from it; "unknown" outside of git."""
    asked = ["git", "-C", str(root), "describe", "--always", "--abbrev=7", "--dirty=+", "--exclude=*"]
    try:
        ran = subprocess.run(asked, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "unknown"
    return ran.stdout.strip() or "unknown"


class Log:
    """A file of results that grows line by line; each line stands alone."""

    def __init__(self, path: Path, root: Path) -> None:
        self._path = path
        self._common = {
            "machine": machine(),
            "commit": commit(root),
            "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M"),
        }

    def write(self, found: dict[str, Any]) -> None:
        """Append a line."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(found | self._common) + "\n")
