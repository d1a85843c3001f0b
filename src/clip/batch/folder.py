"""Bring the output that belongs to a folder up to date, whatever has become of either since."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ..errors import InputError, StoreMismatchError
from ..jobs.embed import Progress
from ..jobs.options import OutputPolicy
from .embed import embed

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..jobs.embed import EmbedJob, EmbedReport


def embed_folder(job: EmbedJob, progress: Callable[[Progress], None]) -> EmbedReport:
    """Run a job that updates the output of a folder; where its vectors cannot be kept, make all of them anew.

    That is where another release of Pillow makes other pixels, say, or where the folder has none of its images any
    more but others. A folder without images leaves the output as it is.

    Raises:  InputError for a folder without images, or where no image can be read; as `embed`.
    """
    folder = ", ".join(job.inputs)
    try:
        report = embed(job, progress)
    except (StoreMismatchError, InputError) as exc:
        if exc.item != str(job.output):
            raise
        progress(
            Progress(0, 0, 0, message=f"{folder}: indexed anew, as the earlier vectors cannot be kept ({exc.found})")
        )
        report = embed(replace(job, policy=OutputPolicy(overwrite=True)), progress)
    if not report.written:
        raise InputError(folder, f"none of {report.read:,} images can be read", "one", f"Run: clip failures {folder}")
    return report
