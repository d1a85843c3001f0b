"""`clip embed` from files, by where images are resized: when the first vectors are there, and the rates after that.

Usage: python bench/device_feed.py [--images 60000] [--files 2000] [--model ViT-B/32] [--device cuda] [--workers N]

A list names the same JPEGs of 0.2 MP again and again, so that the disk is no part of it. Weights are untrained.

  first   seconds from the end of loading and listing to the first vectors
  at 10, 30   images/s in the five seconds up to these, after that
  steady  images/s in the second half
  whole   images/s, start included
"""

from __future__ import annotations

import argparse
import tempfile
import time
from bisect import bisect_left
from itertools import cycle, islice
from pathlib import Path

import paths  # noqa: F401  before the others, so that they find what they import
import pictures

import clip
from clip.jobs.embed import EmbedJob, Progress
from clip.jobs.options import ModelOptions, Resize

SPAN_S = 5.0  # over which a rate is taken
HEAD = f"{'model':<12}{'resize':<10}{'first s':>9}{'at 10 s':>9}{'at 30 s':>9}{'steady':>9}{'whole':>9}  images/s"


class Watch:
    """Notes when how many images had a vector."""

    def __init__(self) -> None:
        self.loaded = time.monotonic()
        self.times: list[float] = []
        self.counts: list[int] = []

    def __call__(self, progress: Progress) -> None:
        """Take what a run reports."""
        if progress.phase == "running" and progress.read:
            self.times.append(time.monotonic() - self.loaded)
            self.counts.append(progress.read)
        elif progress.phase != "running":
            self.loaded = time.monotonic()

    def rate(self, start_s: float, stop_s: float) -> float | None:
        """Images per second between two times; None where the run was over before the second."""
        first, last = (min(bisect_left(self.times, at), len(self.times) - 1) for at in (start_s, stop_s))
        if self.times[-1] < stop_s or self.times[last] == self.times[first]:
            return None
        return (self.counts[last] - self.counts[first]) / (self.times[last] - self.times[first])


def measure(arguments: argparse.Namespace, resize: Resize) -> str:
    """Embed once; return a line of the table."""
    folder = pictures.folder("web", arguments.files)
    with tempfile.TemporaryDirectory() as scratch:
        listed = Path(scratch) / "list.txt"
        files = sorted(str(file) for file in folder.iterdir())
        listed.write_text("".join(f"{file}\n" for file in islice(cycle(files), arguments.images)))
        watch, started = Watch(), time.monotonic()
        model = ModelOptions(
            arguments.model, device=arguments.device, untrained=None if arguments.model == "sketch" else 0
        )
        job = EmbedJob(
            source=listed,
            output=Path(scratch) / "out",
            model=model,
            duplicate_ids="keep",
            workers=arguments.workers,
            resize=resize,
        )
        report = clip.embed(job, watch)
    if report.written != arguments.images:
        raise SystemExit(f"clip embed: wrote {report.written} vectors, expected {arguments.images}.")
    whole = report.written / (time.monotonic() - started)
    rates = [watch.rate(at - SPAN_S, at) for at in (10.0, 30.0)] + [watch.rate(watch.times[-1] / 2, watch.times[-1])]
    shown = "".join(f"{'-' if rate is None else f'{rate:,.0f}':>9}" for rate in [*rates, whole])
    return f"{arguments.model:<12}{resize:<10}{watch.times[0]:>9.1f}{shown}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=60_000)
    parser.add_argument("--files", type=int, default=2_000, help="of which there are so many")
    parser.add_argument("--model", default="ViT-B/32")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--workers", type=int)
    arguments = parser.parse_args()
    print(HEAD)
    ways: tuple[Resize, ...] = ("decoders", "device")
    for resize in ways:
        print(measure(arguments, resize), flush=True)


if __name__ == "__main__":
    main()
