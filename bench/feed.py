"""What the process that feeds the model spends on an image, and the rate that allows; the model does nothing.

Usage: python bench/feed.py [--images 20000] [--workers 2] [--sleep MS] [--decoders processes] [--turns 3]

Embeds a folder of tiny JPEGs (one pixel, 64 crops' worth of distinct names): their decoders are real and cheap, so what
the parent does shows. With --sleep they are not decoded: each worker hands on a ready crop after so many milliseconds,
as decoders of larger images would on a machine with as many cores as there are workers.

  feed   CPU microseconds an image of the parent: dispatch, answers, batches, rows; reading the plan and writing
         parts, which are timed apart, are taken off
  whole  the same with listing, the plan and the writing of parts
  rate   images/s of the whole run after the workers have started
"""

from __future__ import annotations

import argparse
import io
import os
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
import paths  # noqa: F401
from PIL import Image
from sleeping import SleepingDecoding

import clip
from clip.batch import embed as embedding
from clip.batch import run as running
from clip.batch.decode import Decoding
from clip.jobs.embed import EmbedJob
from clip.jobs.options import ModelOptions, PixelMode
from clip.store.part_writer import PartWriter
from clip.store.plan import Plan

if TYPE_CHECKING:
    from collections.abc import Callable

MODEL = "sketch"


class IdleEncoder(clip.Encoder):
    """A model that takes no time: its vectors are all the same."""

    def encode_pixels(self, pixels: np.ndarray) -> np.ndarray:
        """Return ones. Shapes: uint8 (N, R, R, 3) -> float32 (N, D)."""
        return np.ones((len(pixels), self.dim), np.float32)


def load_idle(options: ModelOptions, decode: PixelMode = "exact") -> IdleEncoder:
    """Stand in for what a run loads."""
    return IdleEncoder(options.name, batch_size=options.batch_size or "auto", decode=decode)


def make_folder(root: Path, images: int) -> None:
    """Write one tiny JPEG under so many names."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (90, 120, 60)).save(buffer, "JPEG")
    for number in range(images):
        folder = root / f"{number // 1000:04}"
        folder.mkdir(exist_ok=True)
        (folder / f"{number:07}.jpg").write_bytes(buffer.getvalue())


class Apart:
    """CPU time of calls that are counted apart."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that adds its thread's time to this."""

        def call(*given: Any) -> Any:
            before = time.thread_time()
            try:
                return function(*given)
            finally:
                self.seconds += time.thread_time() - before

        return call


def measure(job: EmbedJob, sleep_s: float | None) -> tuple[float, float, float]:
    """Return microseconds an image of the feed alone and of the whole run, and images/s."""
    marks: list[tuple[int, float, float]] = []  # images read, the parent's CPU time, the clock
    apart = Apart()

    def note(progress: Any) -> None:
        if progress.listing is None:
            marks.append((progress.read, time.process_time() - apart.seconds, time.perf_counter()))

    decoding = Decoding if sleep_s is None else lambda *given: SleepingDecoding(*given, sleep_s=sleep_s)
    before = time.process_time()
    with (
        patch.object(embedding, "load_encoder", load_idle),
        patch.object(running, "Decoding", decoding),
        patch.object(Plan, "shard", apart.timed(Plan.shard)),
        patch.object(PartWriter, "add", apart.timed(PartWriter.add)),
    ):
        encoder_s = _encoder_seconds()
        report = clip.embed(job, note)
    whole = (time.process_time() - before - 2 * encoder_s) / report.written * 1e6
    first, last = marks[len(marks) // 4], marks[-1]
    images = last[0] - first[0]
    return (last[1] - first[1]) / images * 1e6, whole, images / (last[2] - first[2])


def _encoder_seconds() -> float:
    before = time.process_time()
    IdleEncoder(MODEL)
    return time.process_time() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--sleep", type=float, help="milliseconds an image")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--decoders", default="processes")
    parser.add_argument("--turns", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        photos = Path(work, "photos")
        photos.mkdir()
        make_folder(photos, given.images)
        model = clip.jobs.ModelOptions(MODEL, batch_size=given.batch)
        turns = []
        for turn in range(given.turns):
            job = EmbedJob(
                source=photos,
                output=Path(work, f"out-{turn}"),
                model=model,
                workers=given.workers,
                decoders=given.decoders,
            )
            turns.append(measure(job, None if given.sleep is None else given.sleep / 1000))
    feed, whole, rate = (statistics.median(column) for column in zip(*turns, strict=True))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print("| decoders | workers | ms an image | feed, us | ceiling, images/s | whole, us | images/s | peak, MiB |")
    print("|---|---|---|---|---|---|---|---|")
    print(
        f"| {given.decoders} | {given.workers} | {given.sleep or 'real'} | {feed:.1f} | {1e6 / feed:,.0f} "
        f"| {whole:.1f} | {rate:,.0f} | {peak} |"
    )


if __name__ == "__main__":
    main()
