"""estimate(job): how long a run takes, by embedding some of its images. Nothing is written."""

from __future__ import annotations

import time
import warnings
from typing import TYPE_CHECKING

from ..engine.devices import limit_threads
from ..errors import InputError
from ..jobs.embed import EmbedJob, Estimate, Listing
from ..jobs.options import CALIBRATED_PRECISIONS
from ..parallel import available_cores
from .decode import Decoding
from .encoders import load_encoder
from .opening import open_source
from .sample import draw_sample
from .tune import run_entries

if TYPE_CHECKING:
    from collections.abc import Callable

IMAGES = 256  # drawn at random among the first thousand
MIN_S = 5.0  # as long as images are embedded again and again


def estimate(job: EmbedJob, listing: Listing, clock: Callable[[], float] = time.monotonic) -> Estimate:
    """Embed some images of the job, and say how long all take.

    The model's start is not counted; images of archives and servers are held in memory, so that their transfer is not
    counted either.

    Raises:  InputError for a job that is not of images, or whose precision is quantised or chosen by measuring, which
             `tune` measures; for an input without an image that can be decoded; as Encoder.
    """
    if job.kind != "images":
        raise InputError("`estimate`", f"found {job.kind}", "images", "Embed some of them with `limit`.")
    if job.min_cosine is not None or job.model_options.precision in CALIBRATED_PRECISIONS:
        remedy = "Run `clip tune`, which measures these."
        raise InputError("`estimate`", "found a precision that needs measuring first", "another", remedy)
    source, workers = open_source(job), job.workers or available_cores()
    with limit_threads(job.model_options.threads or available_cores()), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        encoder = load_encoder(job.model_options, job.decode.pixels)
        decoding = Decoding(source, encoder.settings, job.limits, job.decode)
        entries, _ = draw_sample(decoding, IMAGES, 0, 0, job.isolated_s)
        if not entries:
            raise InputError(", ".join(job.inputs), "none of the first images can be decoded", "some to measure on")
        run_entries(decoding, encoder, workers, entries[: encoder.batch_size])  # which also builds the graph
        started, rounds = clock(), 0
        while not rounds or clock() - started < MIN_S:
            run_entries(decoding, encoder, workers, entries)
            rounds += 1
        rate = rounds * len(entries) / max(clock() - started, 1e-9)
    parts = job.share.count if job.share else 1
    return Estimate(len(entries), rate, None if listing.archives else listing.images / rate / parts)
