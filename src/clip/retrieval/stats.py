"""stats(job): percentiles of the cosines in an output, which tell what a high score is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..jobs.stats import PERCENTS, Cosines, StatsJob, StatsReport
from ..vectors import unit_vectors
from .near_pairs import sample_cosines
from .search import Index

if TYPE_CHECKING:
    from collections.abc import Callable

SAMPLE_PAIRS = 200_000
ROWS_AT_ONCE = 65_536


def stats(job: StatsJob, tell: Callable[[str], None] = lambda _: None) -> StatsReport:
    """Return percentiles of the cosines of pairs of rows, drawn at random, and of texts to all rows. `tell` is Index's.

    Raises:  as Index; of texts as Encoder, and TextTooLongError.
    """
    index = Index(job.output, exact=True, model=job.model, device=job.device, tell=tell)
    what = "text to text" if index.store.manifest.kind == "texts" else "image to image"
    rows = [_describe(what, sample_cosines(index.codes, SAMPLE_PAIRS))] if len(index) > 1 else []
    if job.texts:
        queries = unit_vectors(index.encoder.encode_text(list(job.texts)).float().cpu().numpy())
        pieces = range(0, len(index), ROWS_AT_ONCE)
        cosines = np.concatenate([index.codes[at : at + ROWS_AT_ONCE].astype(np.float32) @ queries.T for at in pieces])
        rows += [_describe(text, cosines[:, number]) for number, text in enumerate(job.texts)]
    return StatsReport(len(index), tuple(rows))


def _describe(name: str, cosines: np.ndarray) -> Cosines:
    return Cosines(name, len(cosines), tuple(round(float(value), 6) for value in np.percentile(cosines, PERCENTS)))
