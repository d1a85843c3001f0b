"""Draw images from an input: the first ones to quantise by, and some at random to measure on."""

from __future__ import annotations

import random
from collections import Counter
from contextlib import closing, contextmanager
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from ..budgets import ByteBudget
from ..engine.quantize import Calibration
from ..errors import InputError
from ..jobs.embed import EmbedJob
from ..jobs.tune import MIN_SAMPLE
from ..records import ContainerPart, Failure, Item, Member, Pixels, Tokens, count_bytes
from ..sources.remote.prefetch import prefetch
from .processes import isolate

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

    from .decode import Decoding

CALIBRATION_IMAGES = 256  # by which int8 is quantised
ATTEMPTS = 4  # entries to try for each image that is wanted, as some cannot be decoded
SAMPLE_BYTES = 1_000_000_000  # of members of archives, tables and servers, which a sample holds


def draw_calibration(decoding: Decoding, isolated_s: float | None) -> tuple[Calibration, int]:
    """Return the first images of the source that can be decoded, and how many entries were read for them.

    With `isolated_s` they are decoded in a separate process, in at most so many seconds each.

    Raises:  InputError where there are none.
    """
    pixels: list[np.ndarray] = []
    read = 0
    with _open_decoder(decoding, isolated_s) as decode:
        for entry in islice(_list_images(decoding), ATTEMPTS * CALIBRATION_IMAGES):
            read += 1
            pixels += [outcome.array for outcome in decode(entry) if isinstance(outcome, Pixels)]
            if len(pixels) >= CALIBRATION_IMAGES:
                break
    if not pixels:
        found = f"none of the first {read:,} entries can be decoded"
        remedy = "Check the input, or pass a folder of images as `calibration`."
        raise InputError(", ".join(decoding.source.inputs), found, "images to quantise by", remedy)
    return Calibration(np.stack(pixels[:CALIBRATION_IMAGES])), read


def draw_sample(
    decoding: Decoding, count: int, seed: int, skipped: int, isolated_s: float | None
) -> tuple[list[Item | Member], int]:
    """Draw `count` entries at random; return them, and how many of them are among the first `skipped`.

    The first `skipped` are drawn only where there are too few others. Entries that cannot be decoded are left out. Of a
    large input only the beginning is read, and of large images only as many as SAMPLE_BYTES hold, twice: those before
    and those drawn. Entries on servers come with their bytes. `isolated_s` as in `draw_calibration`.
    """
    entries = _list_images(decoding)
    before = list(_hold(islice(entries, skipped)))
    chosen: list[Item | Member] = []
    spare = count + count // 4  # some cannot be decoded
    generator = random.Random(seed)
    held_bytes = 0
    for place, entry in enumerate(islice(entries, ATTEMPTS * count)):
        at = place if len(chosen) < spare else generator.randrange(place + 1)
        if at >= spare:
            continue
        held_bytes += count_bytes(entry) - (count_bytes(chosen[at]) if at < len(chosen) else 0)
        if held_bytes > SAMPLE_BYTES and len(chosen) >= MIN_SAMPLE:
            break
        chosen[at : at + 1] = [entry]
    taken: list[Item | Member] = []
    overlap = 0
    budget = ByteBudget(SAMPLE_BYTES)
    with _open_decoder(decoding, isolated_s) as decode, closing(budget):
        fetched = prefetch((*chosen, *before), decoding.limits.max_bytes, EmbedJob.readers, budget)
        for place, entry in enumerate(fetched):
            if isinstance(entry, Member):
                entry.release()  # from now on it is a part of the sample, which `_hold` bounds
            if not isinstance(entry, Failure) and any(isinstance(outcome, Pixels) for outcome in decode(entry)):
                taken.append(entry)
                overlap += place >= len(chosen)
            if len(taken) == count or (len(taken) >= MIN_SAMPLE and sum(map(count_bytes, taken)) > SAMPLE_BYTES):
                break
        fetched.close()
    return taken, overlap


def _hold(entries: Iterable[Item | Member]) -> Iterator[Item | Member]:
    """Yield entries that are to be held together, as far as SAMPLE_BYTES go; MIN_SAMPLE whatever their size."""
    held_bytes = 0
    for number, entry in enumerate(entries):
        held_bytes += count_bytes(entry)
        if held_bytes > SAMPLE_BYTES and number >= MIN_SAMPLE:
            return
        yield entry


@contextmanager
def _open_decoder(
    decoding: Decoding, isolated_s: float | None
) -> Generator[Callable[[Item | Member], Sequence[Pixels | Tokens | Failure]]]:
    if isolated_s is None:
        yield decoding
        return
    with isolate(decoding, isolated_s, EmbedJob.decode_budget_bytes) as decode:
        yield decode


def _list_images(decoding: Decoding) -> Iterator[Item | Member]:
    for shard in decoding.source.shards(CALIBRATION_IMAGES, Counter()):
        for entry in shard.entries:
            is_container = isinstance(entry, ContainerPart)
            members = decoding.source.members(entry, decoding.limits.max_bytes, Counter()) if is_container else [entry]
            yield from (member for member in members if isinstance(member, (Item, Member)))
