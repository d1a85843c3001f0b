"""Which output an argument means: one that `clip embed` wrote, or that of a folder which `clip find` has searched."""

from __future__ import annotations

import time
from pathlib import Path

from ..batch.place import find_output
from ..store.manifest import MANIFEST
from .progress import say


def choose_output(name: str) -> str:
    """Return the output that an argument means; of a folder of images say when its output was written."""
    place = find_output(name)
    if place != name:
        written = time.strftime("%Y-%m-%d %H:%M", time.localtime(Path(place, MANIFEST).stat().st_mtime))
        say(f"{name}: its images as of {written}; clip find takes in what is new")
    return place
