"""Plan and track runs of up to billions of images without listing any: memory and time of what N parts share.

Usage: python bench/scale_sim.py [--images 5000000000] [--shard-size 10000] [--parts 1000] [--listed 10000000]

  shards   for --images: which shards belong to each of --parts, finished in a random order, and the question that each
           part asks at its end, whether all are finished: seconds, and memory of the marks
  plan     a listing of --listed made-up ids is written into a plan as clip embed does it, and read again by the shard:
           seconds, peak memory, bytes on the disk; and what that makes for --images

Linux only: memory is read from /proc. The last line is a JSON object.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "src"))

from clip.jobs.part import PartOf
from clip.records import Item, in_shards
from clip.store.plan import collect_id_hashes, find_repeated_hashes, write_plan

if TYPE_CHECKING:
    from collections.abc import Iterator

MB = 1e6
IMAGE_BYTES = 60_000


def peak_mb() -> float:
    """Return the largest memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MB


def make_items(count: int) -> Iterator[Item]:
    """Yield made-up images in folders of a thousand."""
    for n in range(count):
        name = f"{n // 1_000_000:05}/{n // 1_000 % 1_000:03}/{n:012}.jpg"
        yield Item(name, name, IMAGE_BYTES + n % 1_000, 1_700_000_000_000_000_000 + n)


def track(images: int, shard_size: int, parts: int) -> dict[str, float]:
    """Mark the shards of a run as finished, part by part in a random order, and ask after each which are not."""
    started, before = time.monotonic(), peak_mb()
    shards = -(-images // shard_size)
    done = np.zeros(shards, np.bool_)
    order = list(range(parts))
    random.Random(0).shuffle(order)
    for n in order:
        part = PartOf(n, parts)
        own = range(part.index, shards, part.count)
        done[own.start :: own.step] = True
        first = int(np.argmin(done))  # of those that are missing
        if (n == order[-1]) != bool(done[first]):
            raise AssertionError("a run is over when its last part is")
    took = time.monotonic() - started
    return {"shards": shards, "track_s": round(took, 2), "track_mb": round(peak_mb() - before, 1)}


def plan(count: int, shard_size: int, folder: Path) -> dict[str, float]:
    """Write a plan of so many made-up images, compare their ids, and read it again."""
    before, started = peak_mb(), time.monotonic()
    hashed: list[np.ndarray] = []
    written = write_plan(folder, collect_id_hashes(in_shards(make_items(count), shard_size), hashed), Counter())
    if find_repeated_hashes(hashed):
        raise AssertionError("made-up ids do not occur twice")
    listed_s, started = time.monotonic() - started, time.monotonic()
    entries = sum(summary.entries for summary in written.summaries())
    summaries_s, started = time.monotonic() - started, time.monotonic()
    for shard in written:
        entries -= len(shard.entries)
    if entries:
        raise AssertionError("a plan holds what was listed")
    size = sum(path.stat().st_size for path in written.folder.iterdir())
    return {
        "listed": count,
        "plan_s": round(listed_s, 1),
        "summaries_s": round(summaries_s, 1),
        "read_s": round(time.monotonic() - started, 1),
        "plan_peak_mb": round(peak_mb() - before),
        "plan_bytes_an_image": round(size / count, 1),
    }


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5_000_000_000)
    parser.add_argument("--shard-size", type=int, default=10_000)
    parser.add_argument("--parts", type=int, default=1_000)
    parser.add_argument("--listed", type=int, default=10_000_000)
    options = parser.parse_args()
    result = {"images": options.images, "parts": options.parts}
    result |= track(options.images, options.shard_size, options.parts)
    folder = Path(tempfile.mkdtemp(prefix="clip-scale-"))
    try:
        result |= plan(options.listed, options.shard_size, folder)
    finally:
        shutil.rmtree(folder)
    result["plan_gb_of_all"] = round(result["plan_bytes_an_image"] * options.images / 1e9, 1)
    result["plan_hours_of_all"] = round(result["plan_s"] * options.images / options.listed / 3600, 1)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
