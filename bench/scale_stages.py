"""The stages of a run, each alone over the same images, and all of them together. Knows nothing of how they compare.

What is measured is imported where it is needed, so that a process holds no more than its own measurement asks for.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from unittest.mock import patch

from clip.jobs.embed import EmbedJob
from clip.jobs.options import OutputPolicy

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    import numpy as np

    from clip.encoder import Encoder
    from clip.records import Item, Pixels
    from clip.sources.source import Source

WARM_UP = 64  # rows of the part that is written before the clock starts


@dataclass
class Cost:
    """What some images took."""

    pictures: int = 0
    threads: int | None = None
    seconds: float = 0.0
    core_s: float = 0.0  # of all threads of this process
    others_core_s: float = 0.0  # of other programs meanwhile, and what the host of a virtual machine took

    def start(self) -> None:
        """Count from here, and forget what was before."""
        self.seconds, self.core_s, self.others_core_s = (-clock() for clock in CLOCKS)

    def stop(self) -> None:
        """Count up to here."""
        seconds, core_s, all_core_s = (clock() for clock in CLOCKS)
        self.seconds, self.core_s = self.seconds + seconds, self.core_s + core_s
        self.others_core_s = max(0.0, self.others_core_s + all_core_s - self.core_s)

    @contextmanager
    def measured(self) -> Generator[None]:
        """Count what the block takes."""
        self.start()
        yield
        self.stop()


def machine_core_s() -> float:
    """Core-seconds that the machine has computed since it began."""
    user, nice, system, _idle, _iowait, *interrupts_and_stolen = (
        int(ticks) for ticks in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
    )
    return (user + nice + system + sum(interrupts_and_stolen)) / os.sysconf("SC_CLK_TCK")


CLOCKS = (time.perf_counter, time.process_time, machine_core_s)


def read(job: EmbedJob, few: str) -> dict[str, Any]:
    """Files to bytes, one after the other."""
    source = source_of(job.source)
    for item in _items(few):
        source.read(item, job.limits.max_bytes)
    items = _items(job.source)
    cost = Cost(len(items), threads=1)
    with cost.measured():
        for item in items:
            source.read(item, job.limits.max_bytes)
    return asdict(cost)


def decode(job: EmbedJob, few: str) -> dict[str, Any]:
    """Bytes to pixels, in threads as in a run."""
    encoder = encoder_of(job)
    for _ in _decoded(job, _items(few), encoder):
        pass
    items = _items(job.source)
    decoded = _decoded(job, items, encoder)  # the bytes are read, and nothing is decoded yet
    cost = Cost(len(items), _workers(job))
    with cost.measured():
        for _ in decoded:
            pass
    return asdict(cost)


def encode(job: EmbedJob, few: str) -> dict[str, Any]:
    """Pixels to vectors, in a run's batches; a few images take turns."""
    import numpy as np

    encoder = encoder_of(job)
    size = encoder.batch_size
    some = [pixels.array for pixels in _decoded(job, _items(few), encoder)]

    def batch(pictures: int) -> np.ndarray:
        return encoder.encode_pixels(np.stack([some[i % len(some)] for i in range(pictures)]))  # (B, D)

    pictures = len(_items(job.source))
    sizes = [min(size, pictures - start) for start in range(0, pictures, size)]
    for warm in (size, sizes[-1], size):
        batch(warm)
    cost = Cost(pictures, _threads(job))
    with cost.measured():
        for taken in sizes:
            batch(taken)
    return asdict(cost) | {"batch_size": size}


def write(job: EmbedJob, few: str) -> dict[str, Any]:  # noqa: ARG001
    """Rows and vectors to Parquet parts, shard by shard, synced to the disk."""
    import numpy as np

    from clip.records import Row, Shard
    from clip.store.manifest import Manifest
    from clip.store.writer import StoreWriter

    encoder = encoder_of(job)
    rows = [Row(item.id, item.path, 40, 30, "JPEG", item.size_bytes) for item in _items(job.source)]
    vectors = np.random.RandomState(0).standard_normal((len(rows), encoder.dim)).astype(np.float32)  # (N, D)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    store = StoreWriter(Path(job.output), Manifest(dim=encoder.dim, dtype=job.policy.dtype))
    store.begin("a bench's")
    store.commit(Shard(0, [], "warm-up"), rows[:WARM_UP], vectors[:WARM_UP], [])
    cost = Cost(len(rows), threads=1)
    with cost.measured():
        for index, start in enumerate(range(0, len(rows), job.policy.shard_size)):
            stop = start + job.policy.shard_size
            store.commit(Shard(index, [], "a bench's"), rows[start:stop], vectors[start:stop], [])
    return asdict(cost)


def pipeline(job: EmbedJob, few: str) -> dict[str, Any]:
    """All stages together in a run, from the end of its listing on; the model is ready when it begins."""
    import clip
    from clip.store.writer import StoreWriter

    encoder = encoder_of(job)
    begin = StoreWriter.begin
    cost = Cost()

    def marked(store: StoreWriter, fingerprint: str, *, update: bool) -> None:  # what a run does after its listing
        cost.start()
        begin(store, fingerprint, update=update)

    with patch("clip.batch.embed.load_encoder", return_value=encoder), patch.object(StoreWriter, "begin", marked):
        clip.embed(replace(job, source=few, output=f"{job.output}-few"))
        cost.pictures = clip.embed(job).written
        cost.stop()
    return asdict(cost)


def encoder_of(job: EmbedJob) -> Encoder:
    """What a run of the job encodes with."""
    from clip.batch.encoders import load_encoder

    return load_encoder(job.model_options)


def _workers(job: EmbedJob) -> int:
    from clip.parallel import available_cores

    return job.workers or available_cores()


def _threads(job: EmbedJob) -> int:
    from clip.parallel import available_cores

    return job.model_options.threads or available_cores()


def source_of(folder: str | Path) -> Source:
    from clip.sources.source import Source

    return Source((str(folder),))


def _items(folder: str | Path) -> list[Item]:
    from clip.records import Item

    shards = source_of(folder).shards(OutputPolicy.shard_size, Counter())
    return [entry for shard in shards for entry in shard.entries if isinstance(entry, Item)]


class _Held:
    """A source whose files are in memory, so that what is left of decoding is nothing else."""

    def __init__(self, items: list[Item]) -> None:
        self._bytes = {item.id: Path(item.path).read_bytes() for item in items}

    def read(self, item: Item, max_bytes: int) -> bytes:  # noqa: ARG002
        return self._bytes[item.id]


def _decoded(job: EmbedJob, items: list[Item], encoder: Encoder) -> Iterator[Pixels]:
    """Images decoded in a run's threads, as far ahead of their consumer as there."""
    from clip.batch.decode import Decoding
    from clip.budgets import ByteBudget
    from clip.jobs.options import DecodeOptions
    from clip.parallel import map_ahead
    from clip.records import Pixels

    budget, workers = ByteBudget(job.decode_budget_bytes), _workers(job)
    decoding = Decoding(cast("Source", _Held(items)), encoder.settings, job.limits, DecodeOptions())

    def pixels_of(item: Item) -> Pixels:
        [outcome] = decoding(item, budget.reserve)
        if not isinstance(outcome, Pixels):
            raise ValueError(f"{item.path}: {outcome.message}, expected an image. Remove the folder of inputs.")
        return outcome

    return map_ahead(pixels_of, items, workers=workers, ahead=2 * encoder.batch_size + workers)


STAGES = {"read": read, "decode": decode, "encode": encode, "write": write}
