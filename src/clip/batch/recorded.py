"""What a run's manifest records of its job: all that is known before the model is loaded. Needs no torch."""

from __future__ import annotations

import os
from importlib import metadata
from typing import TYPE_CHECKING, Any

from ..images.transform import PREPROCESS_ID
from ..object_paths import is_object_url

if TYPE_CHECKING:
    from pathlib import Path

    from ..jobs.embed import EmbedJob


def record_options(job: EmbedJob) -> dict[str, Any]:
    """Return the fields of `Manifest` that the options of a job decide alone, by name."""
    return {
        "preprocess": f"{PREPROCESS_ID}/pillow-{metadata.version('pillow')}",
        "decode": job.decode,
        "limits": job.limits,
        "normalised": job.policy.normalize,
        "dtype": job.policy.dtype,
        "hashes": job.policy.hashes,
        "long_text": None if job.kind == "images" else job.long_text,
        "stated_architecture": job.model_options.architecture,
        "globs": job.globs,
        "duplicate_ids": job.duplicate_ids,
        "limit": job.limit,
        "shard_size": job.policy.shard_size,
    }


def record_base(base: str, output: str | Path) -> str:
    """Return where the folder of the inputs is from an output; empty where it is on another drive, or on a server."""
    if is_object_url(output):
        return ""
    try:
        return os.path.relpath(base, os.path.abspath(output))  # noqa: PTH100
    except ValueError:
        return ""
