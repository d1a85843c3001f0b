"""PE-Core beside open_clip's and timm's own: names, pixels, tokens, features (tools/make_pe_golden.py)."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kit import formula, pe
from kit.pe import tiny_networks  # noqa: F401

import clip
from clip.clip import load_model
from clip.engine.backend_torch import TorchBackend
from clip.engine.devices import make_backend
from clip.engine.engine import Engine
from clip.network.records import Checkpoint
from clip.weights.checkpoints import read_checkpoint
from clip.weights.pe import PE_NAMES, make_pe_settings
from clip.weights.pe_layouts import from_pe

EAGER, LEAN = 5e-5, 2e-5  # of the RMS of a row
GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent.parent / "golden" / "pe.json").read_text())
BACKENDS = (make_backend(torch.device("cpu"), "fp32"), TorchBackend(torch.device("cpu"), "fp32"))


def worst_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    rms = expected.square().mean(dim=1).sqrt()
    return float(((found - expected).abs().amax(dim=1) / rms).max())


@pytest.mark.usefixtures("tiny_networks")
@pytest.mark.parametrize("name", pe.TINY_ROWS)
def test_an_open_clip_folder_gives_open_clips_features_and_goes_back_the_same(name: str, tmp_path: Path) -> None:
    golden, checkpoint = GOLDEN[name], read_checkpoint(pe.write(tmp_path, name))
    assert checkpoint.architecture == pe.architecture(name)
    assert sorted(from_pe(checkpoint.state_dict, "open_clip")) == golden["names"]
    model, preprocess = clip.load(tmp_path, device="cpu")
    images = torch.stack([preprocess(formula.picture(0, 640, 427)), preprocess(formula.picture(1, 333, 500))])
    assert np.abs(images.double().sum(dim=(1, 2, 3)).numpy() - golden["pixels"]).max() < 2e-3
    tokens = model.tokenize(formula.TEXTS)
    assert tokens.tolist() == golden["tokens"]
    wanted = torch.tensor(golden["image_features"]), torch.tensor(golden["text_features"])
    with torch.no_grad():
        assert worst_error(model.encode_image(images), wanted[0]) < EAGER
        assert worst_error(model.encode_text(tokens), wanted[1]) < EAGER
    for backend in BACKENDS:
        engine = Engine(checkpoint.state_dict, checkpoint.architecture, checkpoint.preprocess, backend)
        assert worst_error(engine.encode_image(images), wanted[0]) < EAGER
        assert worst_error(engine.encode_text(tokens), wanted[1]) < EAGER


@pytest.mark.parametrize("name", [PE_NAMES[0], PE_NAMES[-1]])
def test_the_lean_graph_is_the_network_at_a_published_width(name: str) -> None:
    """Two layers, with a class token and heads of 64, and without one and heads of 96."""
    a = replace(pe.architecture(name), vision_layers=2, transformer_layers=2, vocab_size=600)
    weights, settings = pe.state_dict(a), make_pe_settings(a.image_resolution)
    model = load_model(Checkpoint(a, dict(weights), settings, source=""), torch.device("cpu"))
    draw = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (2, a.image_resolution, a.image_resolution, 3), dtype=torch.uint8, generator=draw)
    tokens = torch.randint(1, a.vocab_size, (3, a.context_length), generator=draw)
    with torch.no_grad():
        image = model.encode_image((pixels.permute(0, 3, 1, 2) / 255 - 0.5) / 0.5)
        text = model.encode_text(tokens)
    for backend in BACKENDS:
        engine = Engine(weights, a, settings, backend)
        assert worst_error(engine.encode_pixels(pixels), image) < LEAN
        assert worst_error(engine.encode_text(tokens), text) < LEAN
