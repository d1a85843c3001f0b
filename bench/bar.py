"""What is asked of this repository's speed, and whether lines of results reach it. Knows nothing about tables.

A line counts if it has no problem. What was not measured is not reached, and said so.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from peers import CEILING, OURS, OURS_FAST, OWN

Line = dict[str, Any]
MODELS = ("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64", "ViT-B/32", "ViT-B/16", "ViT-L/14", "ViT-L/14@336px")
FAST_WEB = {"fp32": 1.25, "bf16": 2.5, "int8": 4.2}
FAST_12MP = {"fp32": 2.1, "bf16": 3.7, "int8": 5.0}
COMPARED = ("encode", "latency", "jpeg-web", "jpeg-12mp")  # rows in which no peer may be faster


@dataclass(frozen=True)
class Bar:
    """A number that a row must reach, for each precision."""

    what: str
    row: str
    models: tuple[str, ...]  # of several, the geometric mean counts
    key: str  # of the line
    asked: dict[str, float]
    most: bool = False  # whether it is a limit from above
    gpu: str | None = None  # the GPU it is asked of, by a part of its name; None: a CPU
    peer: str = OURS


BARS = (
    Bar("encode, ratio", "encode", ("ViT-B/32",), "ratio", {"fp32": 1.3, "bf16": 2.7, "int8": 4.8}),
    Bar("encode, ratio", "encode", ("RN50",), "ratio", {"fp32": 1.6, "bf16": 3.2, "int8": 5.0}),
    Bar("encode, ratio", "encode", MODELS, "ratio", {"fp32": 1.33, "bf16": 2.7}),
    Bar("web JPEGs with `clip embed`, ratio", "command-web", ("ViT-B/32",), "ratio", {"fp32": 1.2, "bf16": 2.4}),
    Bar("web JPEGs, decode=fast, ratio", "jpeg-web", ("ViT-B/32",), "ratio", FAST_WEB, peer=OURS_FAST),
    Bar("photos of 12 MP, decode=fast, ratio", "jpeg-12mp", ("ViT-B/32",), "ratio", FAST_12MP, peer=OURS_FAST),
    Bar("latency of one image, ratio", "latency", ("ViT-B/32",), "ratio", {"fp32": 1.5, "bf16": 2.5}),
    Bar("share of the best matrix product", "encode", ("ViT-B/32",), "gemm_share", {"fp32": 0.83, "bf16": 0.82}),
    Bar("share of the best matrix product", "encode", ("ViT-B/16",), "gemm_share", {"fp32": 0.83, "bf16": 0.82}),
    Bar("imports to first vector, s, first start", "start-first", ("ViT-B/32",), "first_vector_s", {"fp32": 1.5}, True),
    Bar("imports to first vector, s, after it", "start-again", ("ViT-B/32",), "first_vector_s", {"fp32": 0.5}, True),
    Bar("encode, images/s", "encode", ("ViT-B/32",), "images_per_s", {"fp16": 55_000}, gpu="H200"),
    Bar("encode, images/s", "encode", ("ViT-B/16",), "images_per_s", {"fp16": 14_000}, gpu="H200"),
    Bar("encode, images/s", "encode", ("ViT-L/14",), "images_per_s", {"fp16": 3_400}, gpu="H200"),
    Bar("encode, images/s", "encode", ("ViT-L/14@336px",), "images_per_s", {"fp16": 1_400}, gpu="H200"),
    Bar("encode, images/s", "encode", ("RN50",), "images_per_s", {"fp16": 35_000}, gpu="H200"),
    Bar("web JPEGs, images/s", "jpeg-web", ("ViT-B/32",), "images_per_s", {"fp16": 8_000}, gpu="H200"),
)


@dataclass(frozen=True)
class Verdict:
    """A bar at a precision, and what was found."""

    bar: Bar
    precision: str
    found: float | None  # None: not measured
    missing: tuple[str, ...]  # models without a number

    @property
    def reached(self) -> bool:
        """Whether all of it was measured and is enough."""
        if self.found is None or self.missing:
            return False
        asked = self.bar.asked[self.precision]
        return self.found <= asked if self.bar.most else self.found >= asked


def verdicts(lines: Iterable[Line]) -> list[Verdict]:
    """Each bar that applies to the machine of these lines, at each precision."""
    lines = list(lines)
    gpus = {str(line["gpu"]) for line in lines if line.get("gpu")}
    cpu = any(line["device"] == "cpu" for line in lines)
    found: list[Verdict] = []
    for bar in BARS:
        applies = any(bar.gpu in gpu for gpu in gpus) if bar.gpu else cpu
        if not applies:
            continue
        for precision in bar.asked:
            values = {model: value(lines, bar.row, model, bar.peer, precision, bar.key) for model in bar.models}
            there = [number for number in values.values() if number is not None]
            mean = statistics.geometric_mean(there) if there else None
            missing = tuple(model for model, number in values.items() if number is None)
            found.append(Verdict(bar, precision, mean, missing))
    return found


def value(lines: Iterable[Line], row: str, model: str, peer: str, precision: str, key: str) -> float | None:
    """A number of a line that counts; None where there is none."""
    wanted = (row, model, peer, precision)
    for line in lines:
        if (line["row"], line["model"], line["peer"], line["precision"]) == wanted and counts(line):
            return line.get(key)
    return None


def counts(line: Line) -> bool:
    """Whether a line was measured, and on vectors that are right."""
    return "problem" not in line


def fastest_other(lines: Iterable[Line], row: str, model: str, precision: str) -> Line | None:
    """The fastest line that is not ours, at the same precision."""
    others = [
        line
        for line in lines
        if (line["row"], line["model"], line["precision"]) == (row, model, precision)
        and line["peer"] not in (*OWN, CEILING)
        and counts(line)
        and "seconds_per_image" in line
    ]
    return max(others, key=speed) if others else None


def speed(line: Line) -> float:
    """The ratio to the reference within turns, which other work on the machine changes least; else images/s."""
    return line.get("ratio", line["images_per_s"])


def faster_peers(lines: Iterable[Line]) -> list[tuple[Line, Line]]:
    """Ours and the fastest other, where that is the faster."""
    lines = list(lines)
    found: list[tuple[Line, Line]] = []
    for line in compared(lines):
        other = fastest_other(lines, line["row"], line["model"], line["precision"])
        if other is not None and speed(other) > speed(line):
            found.append((line, other))
    return found


def compared(lines: Iterable[Line]) -> list[Line]:
    """Ours, in the rows in which no peer may be faster."""
    return [line for line in lines if line["peer"] == OURS and line["row"] in COMPARED and counts(line)]


def by_key(lines: Iterable[Line], key: Callable[[Line], Any]) -> dict[Any, list[Line]]:
    """Lines in groups, in the order they come in."""
    groups: dict[Any, list[Line]] = {}
    for line in lines:
        groups.setdefault(key(line), []).append(line)
    return groups
