"""Encoders of jobs are made once for all tests: hundreds of jobs run, and each would compile the same tiny network."""

from pathlib import Path
from typing import Any

import pytest

import clip
from clip.batch import embed as embed_module

_made: dict[str, clip.Encoder] = {}


def shared_encoder(model: Any, *arguments: Any, **options: Any) -> clip.Encoder:
    path = Path(str(model))
    version = (path.stat().st_mtime_ns, path.stat().st_size) if path.is_file() else None
    key = repr((model, version, arguments, sorted(options.items())))
    encoder = _made.get(key) or clip.Encoder(model, *arguments, **options)
    if not encoder.needs_calibration:  # else a job changes it
        _made[key] = encoder
    return encoder


@pytest.fixture(autouse=True)
def encoders_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embed_module, "Encoder", shared_encoder)
