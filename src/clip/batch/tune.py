"""tune(job): how fast each setting of this machine is, and how far its vectors are from the exact ones.

All is measured, on this machine, with these weights, on images of the user's; the settings take turns, so that what
else the machine does hurts all alike. Knows nothing about Parquet or the command line.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import numpy as np

from ..encoder import Encoder, batched, unit_vectors
from ..engine.devices import resolve_device, usable_precisions
from ..errors import DeviceError, InputError
from ..jobs.tune import SettingRow, TuneReport
from ..parallel import available_cores, map_ahead
from ..records import Pixels
from ..sources.source import Source
from .decode import Decoding
from .sample import drawn, first_pixels

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..jobs.options import PixelMode, Precision
    from ..jobs.tune import TuneJob
    from ..records import Item, Member

ROUNDS = 3  # in which a setting is timed; the median counts
NEIGHBOURS = 10
DECODES: tuple[PixelMode, ...] = ("exact", "fast")


def tune(job: TuneJob, told: Callable[[str], None] | None = None) -> TuneReport:
    """Measure each setting that this machine can run, and name the fastest whose vectors stay within the bound.

    `told` is given a line before what takes time.

    Raises:  InputError for an input without images; what Encoder raises.
    """
    source = Source(job.inputs, job.globs, job.columns, job.root)
    encoders = _encoders(job, tell := told or (lambda _: None))
    several = [_Setting(job, source, encoder, decode) for encoder in encoders.values() for decode in DECODES]
    exact = several[0]
    looked_at = 0
    if quantised := [encoder for encoder in encoders.values() if encoder.needs_calibration]:
        images = Source((str(job.calibration),)) if job.calibration else source
        calibration, looked_at = first_pixels(replace(exact.decoding, source=images), job.isolated_s)
        for encoder in quantised:
            encoder.calibrate(calibration.pixels)
    skipped = 0 if job.calibration else looked_at
    entries, overlap = drawn(exact.decoding, job.images, job.seed, skipped, job.isolated_s)
    if len(entries) < 2:
        raise InputError(
            f"{', '.join(job.inputs)}: found {len(entries)} images that can be decoded, expected at least 2 to "
            "measure on. Pass more."
        )
    for one in several:
        tell(f"measuring {one.encoder.precision}, {one.decode} pixels, on {len(entries):,} images")
        one.vectors = unit_vectors(one.run(entries))  # also makes the graph ready
    for _ in range(ROUNDS):
        for one in several:
            one.time(entries)
    rows = tuple(one.row(exact, len(entries), job.min_cosine) for one in several)
    within = [row for row in rows if row.within]  # the exact one among them
    best = max(within, key=lambda row: row.images_per_s)
    return TuneReport(exact.encoder.model_name, len(entries), overlap, job.min_cosine, rows, best)


def summarise(report: TuneReport) -> str:
    """What was found, in a line."""
    best, exact = report.best, report.rows[0]
    if best == exact:
        return f"nothing faster stays within a cosine of {report.min_cosine:g} on {report.images:,} images: exact"
    faster = f"{best.images_per_s / exact.images_per_s:.1f} times as fast as exact vectors"
    near = f"least cosine to them {best.min_cosine:.6f} on {report.images:,} images"
    return f"took {best.precision}, {best.decode} pixels: {faster}, {near}"


def _encoders(job: TuneJob, tell: Callable[[str], None]) -> dict[Precision, Encoder]:
    """One for each precision that the device has for this model, the exact one first."""
    model = job.model_options
    usable = cast("list[Precision]", usable_precisions(resolve_device(model.device)))
    precisions: list[Precision] = ["reference", *usable[1:]]  # the first is what "reference" means
    found: dict[Precision, Encoder] = {}
    for precision in precisions:
        try:
            found[precision] = Encoder(
                model.name, device=model.device, precision=precision, threads=model.threads, untrained=model.untrained
            )
        except DeviceError as exc:  # as of fp8 with a network that is too narrow for it
            if precision == "reference":
                raise
            tell(f"left out: {exc}")
    return found


class _Setting:
    """One way to make vectors, and what was seen of it."""

    def __init__(self, job: TuneJob, source: Source, encoder: Encoder, decode: PixelMode) -> None:
        self.encoder = encoder
        self.decode: PixelMode = decode
        self.decoding = Decoding(source, encoder.settings, job.limits, replace(job.decode, pixels=decode))
        self.vectors = np.empty((0, self.encoder.dim), np.float32)
        self._workers = job.workers or available_cores()
        self._seconds: list[float] = []

    def run(self, entries: Sequence[Item | Member]) -> np.ndarray:
        """Read, decode and encode. Shapes: float32 (N, D), not normalised."""
        size = self.encoder.batch_size

        def pixels_of(entry: Item | Member) -> np.ndarray:
            for outcome in self.decoding(entry):
                if isinstance(outcome, Pixels):
                    return outcome.array
            raise InputError(
                entry.id,
                "cannot be decoded any more",
                "an image",
                "Measure again.",
            )

        decoded = map_ahead(pixels_of, entries, workers=self._workers, ahead=2 * size + self._workers)
        return np.concatenate([self.encoder.encode_pixels(np.stack(batch)) for batch in batched(decoded, size)])

    def time(self, entries: Sequence[Item | Member]) -> None:
        """Note how long a run takes."""
        began = time.monotonic()
        self.run(entries)
        self._seconds.append(time.monotonic() - began)

    def row(self, exact: _Setting, count: int, min_cosine: float) -> SettingRow:
        """What was seen, beside the exact vectors."""
        cosines = np.einsum("nd,nd->n", self.vectors, exact.vectors, dtype=np.float64).clip(-1, 1)  # (N,)
        least = 1.0 if self is exact else float(cosines.min())
        return SettingRow(
            precision=self.encoder.precision,
            decode=self.decode,
            images_per_s=count / float(np.median(self._seconds)),
            min_cosine=least,
            p1_cosine=1.0 if self is exact else float(np.percentile(cosines, 1)),
            mean_cosine=1.0 if self is exact else float(cosines.mean()),
            max_angle_degrees=float(np.degrees(np.arccos(least))),
            neighbours=_agreement(self.vectors, exact.vectors),
            within=least >= min_cosine,
        )


def _agreement(vectors: np.ndarray, exact: np.ndarray) -> float:
    """Of the nearest neighbours that images have by their exact vectors, the part they have by these too.

    Shapes:  unit vectors (N, D) twice.
    """
    near = [_nearest(one) for one in (vectors, exact)]
    shared = [len(np.intersect1d(ours, theirs)) for ours, theirs in zip(*near, strict=True)]
    return float(np.mean(shared)) / near[0].shape[1]


def _nearest(vectors: np.ndarray) -> np.ndarray:
    scores = vectors @ vectors.T  # (N, N)
    np.fill_diagonal(scores, -np.inf)
    return np.argsort(-scores, axis=1, kind="stable")[:, : min(NEIGHBOURS, len(vectors) - 1)]
