"""Weights files of the tiny networks by formula, for tests that go through a file. Numbers: tests/formula.py."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import torch

from kit import formula

_state_dict = cache(formula.state_dict)


def write(folder: Path, name: str = "tiny-vit", *, texts: bool = True, projection: float | None = None) -> Path:
    """The path of a new weights file, 13 MB; without `texts` its vocabulary is a word, and it takes 1 MB.

    `projection` fills the last matrix of the image side with one number.
    """
    architecture = formula.TINY[name]
    entries = dict(_state_dict(architecture if texts else replace(architecture, vocab_size=1)))
    if projection is not None:
        entries["visual.proj"] = torch.full_like(entries["visual.proj"], projection)
    path = folder / f"{name}.pt"
    torch.save(entries, path)
    return path
