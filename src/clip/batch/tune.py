"""tune(job): measure how fast each setting of this machine is, and how far its vectors are from the exact ones.

Everything is measured: on this machine, with these weights, on the user's images. The settings take turns, so that
other work on the machine slows all of them alike.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import numpy as np

from ..budgets import ByteBudget
from ..encoder import Encoder
from ..engine.devices import resolve_device, usable_precisions
from ..errors import DeviceError, InputError
from ..images.stream import split_batches
from ..jobs.embed import EmbedJob
from ..jobs.tune import SettingRow, TuneJob, TuneReport
from ..parallel import available_cores, map_ahead
from ..records import Item, Member, Pixels
from ..sources.source import Source
from ..vectors import unit_vectors
from .decode import Decoding
from .encoders import load_encoder
from .sample import draw_calibration, draw_sample

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..jobs.options import PixelMode, Precision

ROUNDS = 3  # in which a setting is timed; the median counts
NEIGHBOURS = 10
DECODES: tuple[PixelMode, ...] = ("exact", "fast")


def tune(job: TuneJob, report: Callable[[str], None] | None = None) -> TuneReport:
    """Measure each setting that this machine can run, and name the fastest whose vectors stay within the bound.

    `report` is called with a line before each step that takes time.

    Raises:  InputError for an input without images; what Encoder raises.
    """
    source = Source(job.inputs, job.globs, job.columns, job.root, raw_previews=job.decode.raw_previews)
    say = report or (lambda _: None)
    encoders = _load_encoders(job, say)
    settings = [_Setting(job, source, encoder, decode) for encoder in encoders for decode in DECODES]
    exact = settings[0]
    quantised_by = 0
    if quantised := [encoder for encoder in encoders if encoder.needs_calibration]:
        images = Source((str(job.calibration),)) if job.calibration else source
        calibration, quantised_by = draw_calibration(replace(exact.decoding, source=images), job.isolated_s)
        for encoder in quantised:
            encoder.calibrate(calibration.pixels)
    skipped = 0 if job.calibration else quantised_by
    entries, overlap = draw_sample(exact.decoding, job.images, job.seed, skipped, job.isolated_s)
    if len(entries) < 2:
        found = f"found {len(entries)} images that can be decoded"
        raise InputError(", ".join(job.inputs), found, "at least 2 to measure on", "Pass more.")
    for setting in settings:
        say(f"measuring {setting.encoder.precision}, {setting.decode} pixels, on {len(entries):,} images")
        setting.vectors = unit_vectors(setting.run(entries))  # the first run also builds the graph
    for _ in range(ROUNDS):
        for setting in settings:
            setting.time(entries)
    rows = tuple(setting.summarise(exact, len(entries), job.min_cosine) for setting in settings)
    within = [row for row in rows if row.within]  # the exact one is among them
    best = max(within, key=lambda row: row.images_per_s)
    return TuneReport(exact.encoder.model_name, len(entries), overlap, job.min_cosine, rows, best)


def summarise(report: TuneReport) -> str:
    """Return the result of a measurement in one line."""
    best, exact = report.best, report.rows[0]
    if best == exact:
        return f"nothing faster stays within a cosine of {report.min_cosine:g} on {report.images:,} images: exact"
    faster = f"{best.images_per_s / exact.images_per_s:.1f} times as fast as exact vectors"
    near = f"min cosine to them {best.min_cosine:.6f} on {report.images:,} images"
    return f"took {best.precision}, {best.decode} pixels: {faster}, {near}"


def _load_encoders(job: TuneJob, say: Callable[[str], None]) -> list[Encoder]:
    """Load one encoder for each precision that the device has for this model, the exact one first.

    Both pixel modes share it: an encoder for each of six settings took 8 GB.
    """
    model = job.model_options
    usable = cast("list[Precision]", usable_precisions(resolve_device(model.device)))
    precisions: list[Precision] = ["reference", *usable[1:]]  # the first is what "reference" means
    encoders: list[Encoder] = []
    for precision in precisions:
        try:
            encoder = load_encoder(replace(model, precision=precision, batch_size=None))
        except DeviceError as exc:  # fp8, for example, with a network that is too narrow for it
            if not encoders:
                raise
            say(f"left out: {exc}")
        else:
            encoders.append(encoder)
    return encoders


class _Setting:
    """One way to make vectors, and its measurements."""

    def __init__(self, job: TuneJob, source: Source, encoder: Encoder, decode: PixelMode) -> None:
        self.encoder = encoder
        self.decode: PixelMode = decode
        self.decoding = Decoding(source, encoder.settings, job.limits, replace(job.decode, pixels=decode))
        self.vectors = np.empty((0, self.encoder.dim), np.float32)
        self._workers = job.workers or available_cores()
        self._seconds: list[float] = []

    def run(self, entries: Sequence[Item | Member]) -> np.ndarray:
        """Read, decode and encode. Shapes: float32 (N, D), not normalised."""
        return run_entries(self.decoding, self.encoder, self._workers, entries)

    def time(self, entries: Sequence[Item | Member]) -> None:
        """Note how long a run takes."""
        started = time.monotonic()
        self.run(entries)
        self._seconds.append(time.monotonic() - started)

    def summarise(self, exact: _Setting, count: int, min_cosine: float) -> SettingRow:
        """Return the measurements, compared with the exact vectors."""
        cosines = np.einsum("nd,nd->n", self.vectors, exact.vectors, dtype=np.float64).clip(-1, 1)  # (N,)
        lowest = 1.0 if self is exact else float(cosines.min())
        return SettingRow(
            precision=self.encoder.precision,
            decode=self.decode,
            images_per_s=count / float(np.median(self._seconds)),
            min_cosine=lowest,
            p1_cosine=1.0 if self is exact else float(np.percentile(cosines, 1)),
            mean_cosine=1.0 if self is exact else float(cosines.mean()),
            max_angle_degrees=float(np.degrees(np.arccos(lowest))),
            neighbours=_agreement(self.vectors, exact.vectors),
            within=lowest >= min_cosine,
        )


def run_entries(decoding: Decoding, encoder: Encoder, workers: int, entries: Sequence[Item | Member]) -> np.ndarray:
    """Read, decode and encode images. Shapes: float32 (N, D), not normalised.

    Raises:  InputError for one that cannot be decoded; as Encoder.
    """
    size = encoder.batch_size
    budget = ByteBudget(EmbedJob.decode_budget_bytes)

    def decode(entry: Item | Member) -> np.ndarray:
        for outcome in decoding(entry, budget.reserve):
            if isinstance(outcome, Pixels):
                return outcome.array
        raise InputError(entry.id, "cannot be decoded any more", remedy="Measure again.")

    decoded = map_ahead(decode, entries, workers=workers, ahead=2 * size + workers)
    return np.concatenate([encoder.encode_pixels(np.stack(batch)) for batch in split_batches(decoded, size)])


def _agreement(vectors: np.ndarray, exact: np.ndarray) -> float:
    """Return the part of the images' nearest neighbours by exact vectors that are also nearest by these, 0..1.

    Shapes:  unit vectors (N, D) twice.
    """
    ours, theirs = _find_nearest(vectors), _find_nearest(exact)
    shared = [len(np.intersect1d(*pair)) for pair in zip(ours, theirs, strict=True)]
    return float(np.mean(shared)) / ours.shape[1]


def _find_nearest(vectors: np.ndarray) -> np.ndarray:
    """Shapes: unit vectors (N, D) -> places (N, up to 10)."""
    scores = vectors @ vectors.T  # (N, N)
    np.fill_diagonal(scores, -np.inf)
    return np.argsort(-scores, axis=1, kind="stable")[:, : min(NEIGHBOURS, len(vectors) - 1)]
