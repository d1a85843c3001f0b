"""Some images of an input: the first to quantise by, and some at random to measure on. Knows nothing about models."""

from __future__ import annotations

import random
from collections import Counter
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from ..engine.quantize import Calibration
from ..errors import InputError
from ..jobs.embed import EmbedJob
from ..records import ContainerPart, Failure, Item, Member, Pixels
from ..sources.remote.prefetch import prefetch
from .isolate import IsolatedDecoder

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from .decode import Decoding

CALIBRATION_IMAGES = 256  # by which int8 is quantised
ATTEMPTS = 4  # times as many entries are looked at, to find so many that can be decoded


def first_pixels(decoding: Decoding, isolated_s: float | None) -> tuple[Calibration, int]:
    """The first images of the decoding's source that can be decoded, and how many entries were looked at for them.

    With `isolated_s` they are decoded in a process of its own, in so many seconds each.

    Raises:  InputError where there are none.
    """
    pixels: list[np.ndarray] = []
    looked_at = 0
    with _decoder(decoding, isolated_s) as decoded:
        for entry in islice(_images(decoding), ATTEMPTS * CALIBRATION_IMAGES):
            looked_at += 1
            pixels += [outcome.array for outcome in decoded(entry) if isinstance(outcome, Pixels)]
            if len(pixels) >= CALIBRATION_IMAGES:
                break
    if not pixels:
        raise InputError(
            f"{', '.join(decoding.source.inputs)}: found no image that can be decoded among the first {looked_at:,}, "
            "expected some. Check the input, or pass --calibration FOLDER."
        )
    return Calibration(np.stack(pixels[:CALIBRATION_IMAGES])), looked_at


def drawn(
    decoding: Decoding, count: int, seed: int, skipped: int, isolated_s: float | None
) -> tuple[list[Item | Member], int]:
    """`count` entries at random of those behind the first `skipped`, which are taken too where there are no others.

    Images that cannot be decoded are none. Of a large input only the beginning is looked at. Also tells how many of
    the first ones were taken. Those on servers come with their bytes. `isolated_s` as of `first_pixels`.
    """
    entries = _images(decoding)
    before = list(islice(entries, skipped))
    chosen: list[Item | Member] = []
    spare = count + count // 4  # some cannot be decoded
    generator = random.Random(seed)
    for place, entry in enumerate(islice(entries, ATTEMPTS * count)):  # memory holds so many members of archives
        if len(chosen) < spare:
            chosen.append(entry)
        elif (at := generator.randrange(place + 1)) < spare:
            chosen[at] = entry
    taken: list[Item | Member] = []
    overlap = 0
    with _decoder(decoding, isolated_s) as decoded:
        fetched = prefetch((*chosen, *before), decoding.limits.max_bytes, EmbedJob.readers)
        for place, entry in enumerate(fetched):
            if len(taken) == count:
                break
            if not isinstance(entry, Failure) and any(isinstance(outcome, Pixels) for outcome in decoded(entry)):
                taken.append(entry)
                overlap += place >= len(chosen)
        fetched.close()
    return taken, overlap


@contextmanager
def _decoder(
    decoding: Decoding, isolated_s: float | None
) -> Generator[Callable[[Item | Member], list[Pixels | Failure]]]:
    if isolated_s is None:
        yield decoding
        return
    isolated = IsolatedDecoder(decoding, isolated_s)
    try:
        yield isolated
    finally:
        isolated.close()


def _images(decoding: Decoding) -> Iterator[Item | Member]:
    for shard in decoding.source.shards(CALIBRATION_IMAGES, Counter()):
        for entry in shard.entries:
            is_pack = isinstance(entry, ContainerPart)
            found = decoding.source.members(entry, decoding.limits.max_bytes, Counter()) if is_pack else [entry]
            yield from (one for one in found if isinstance(one, (Item, Member)))
