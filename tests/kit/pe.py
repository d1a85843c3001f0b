"""Folders of a PE-Core as open_clip and Meta write them, with the weights of a formula."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from clip.network.pe import PE
from clip.network.records import PeArchitecture
from clip.weights import pe
from clip.weights.pe_layouts import from_pe
from kit.draws import entry

# Small networks under published names, as rows of `pe._NETWORKS`: with a class token and without one.
TINY_ROWS = {
    "PE-Core-T-16-384": (48, 16, 64, 2, 4, 256, True, 128, 32, 2),
    "PE-Core-bigG-14-448": (56, 14, 96, 2, 4, 160, False, 128, 72, 2),
}
TIMM = {"PE-Core-T-16-384": "vit_pe_core_tiny_patch16_384", "PE-Core-bigG-14-448": "vit_pe_core_gigantic_patch14_448"}
TINY, TINY_LARGE = TINY_ROWS
PIXELS = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear", "resize_mode": "squash"}


@pytest.fixture
def tiny_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The published names stand for small networks."""
    monkeypatch.setattr(pe, "_NETWORKS", pe._NETWORKS | TINY_ROWS)


def architecture(name: str) -> PeArchitecture:
    """The network of a name: a small one under `tiny_networks`."""
    found = pe.find_pe(name)
    assert found is not None
    return found


@cache
def state_dict(a: PeArchitecture) -> dict[str, torch.Tensor]:
    """Weights under our names."""
    shapes = {key: tuple(like.shape) for key, like in PE.lay_out(a).state_dict().items()}
    return {key: torch.from_numpy(np.asarray(entry(key, shape), order="C")) for key, shape in shapes.items()}


def without_bias(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights whose projection of images has no bias, as Meta's."""
    return {**weights, "visual.proj.bias": torch.zeros_like(weights["visual.proj.bias"])}


def open_clip_config(name: str) -> dict[str, Any]:
    a = architecture(name)
    text = {"context_length": a.context_length, "vocab_size": a.vocab_size, "width": a.transformer_width}
    text |= {"heads": a.transformer_heads, "layers": a.transformer_layers}
    vision = {"image_size": a.image_resolution, "timm_model_name": TIMM[name], "timm_model_pretrained": False}
    vision |= {"timm_pool": "map", "timm_proj": None}
    model = {"embed_dim": a.embed_dim, "vision_cfg": vision, "text_cfg": text, "custom_text": True}
    return {"model_cfg": model, "preprocess_cfg": PIXELS}


def write(folder: Path, name: str = TINY) -> Path:
    """Fill a folder as open_clip does, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = from_pe(state_dict(architecture(name)), "open_clip")
    save_file({key: one.contiguous().clone() for key, one in weights.items()}, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps(open_clip_config(name)))
    return folder


def write_meta(path: Path, name: str = TINY) -> Path:
    """Write a file as Meta does, and return it."""
    weights = from_pe(without_bias(state_dict(architecture(name))), "meta")
    torch.save({key: one.clone() for key, one in weights.items()}, path)
    return path
