"""The manifest of a folder that a run writes. Knows nothing about models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from ..atomic_files import atomic_write, translate_os_errors
from ..errors import StoreMismatchError
from .parts import (
    EMBEDDINGS,
    FAILURES,
)

MANIFEST = "manifest.json"
INDEX = "_index"
CALIBRATION = "_calibration.npy"  # the pixels by which an int8 run was quantised, so that it can be gone on with
# What vectors, ids and the borders of shards depend on: a run goes on only where all of these are the same.
FINGERPRINT = (
    "weights_sha256",
    "architecture",
    "preprocess",
    "preprocess_settings",
    "precision",
    "computed_in",
    "calibration",
    "decode",
    "policies",
    "guards",
    "normalised",
    "dtype",
    "dim",
    "hashes",
    "kind",
    "long_text",
    "keep",
    "shard_size",
)
INPUT = "input_fingerprint"  # likewise, and known only when all is listed
MAX_SHOWN = 60  # characters of a value in an error


def check_room(path: Path) -> None:
    """Refuse a folder that holds what a run must not mix with, or must not remove.

    Raises:  StoreMismatchError; StoreError where it cannot be looked at.
    """
    with translate_os_errors(path):
        if path.exists() and not path.is_dir():
            raise StoreMismatchError(
                path,
                "is a file",
                "a folder or nothing",
                "Choose another output.",
            )
        standing = [name for name in (EMBEDDINGS, FAILURES, INDEX) if (path / name).exists()]
        described = (path / MANIFEST).exists()
    if described:
        if read_manifest(path / MANIFEST) is None:
            raise StoreMismatchError(
                path,
                f"holds a {MANIFEST} that is not ours",
                remedy="Choose another output, or move it.",
            )
    elif standing:
        raise StoreMismatchError(
            path,
            f"holds {standing[0]!r} and no {MANIFEST}",
            "an empty folder or one of ours",
            "Choose another output, or move it away.",
        )


def read_calibration(path: Path) -> np.ndarray | None:
    """The pixels by which the run that stands in an output was quantised; None where there are none that are whole.

    Shapes:  uint8 (N, R, R, 3).
    """
    try:
        return np.load(path / CALIBRATION)
    except (OSError, ValueError, EOFError):
        return None


def write_calibration(path: Path, pixels: np.ndarray) -> None:
    """Keep the pixels in an output. Raises: StoreError where it cannot be written."""
    with translate_os_errors(path / CALIBRATION), atomic_write(path / CALIBRATION) as file:
        np.save(file, pixels)


def read_manifest(path: Path) -> dict[str, Any] | None:
    """A manifest of ours; None for anything else, as web applications have files of this name too."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and {"dim", "dtype"} <= content.keys() else None
