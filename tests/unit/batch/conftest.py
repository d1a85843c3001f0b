"""Encoders of jobs are made once for all tests: hundreds of jobs run, and each would compile the same tiny network."""

from pathlib import Path

import pytest

import clip
from clip.batch import embed as embed_module
from clip.batch.encoders import load_encoder
from clip.jobs.options import ModelOptions, PixelMode

_made: dict[tuple[object, ...], clip.Encoder] = {}


def load_shared(options: ModelOptions, decode: PixelMode = "exact") -> clip.Encoder:
    path = Path(options.name)
    version = (path.stat().st_mtime_ns, path.stat().st_size) if path.is_file() else None
    encoder = _made.get((options, decode, version)) or load_encoder(options, decode)
    if not encoder.needs_calibration:  # else a job changes it
        _made[options, decode, version] = encoder
    return encoder


@pytest.fixture(autouse=True)
def encoders_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embed_module, "load_encoder", load_shared)
