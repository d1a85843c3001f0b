"""The released models with weights by formula, as files for every peer, made on first use. Knows nothing about peers.

    .cache/models/ViT-B-32/openai.pt        OpenAI's names
                           transformers/    a CLIPModel's folder, for the ViTs
                           visual.onnx      made by the driver with the reference's exporter
                           pixels.npy       images in memory, uint8 (N, R, R, 3)

Every number is one that fp16 has, as in OpenAI's archives: their code takes all weights through fp16.
"""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from kit import formula
from peers import BENCH
from safetensors.torch import save_file

from clip.weights.layouts import to_transformers
from clip.weights.releases import RELEASES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from clip.network.records import Architecture

CACHE = BENCH / ".cache"
PIXELS = 32  # images kept in memory; a larger batch repeats them

# Images a batch, so that one takes the reference some seconds on two cores at most.
CPU_BATCHES = {
    "ViT-B/32": 32, "ViT-B/16": 16, "ViT-L/14": 4, "ViT-L/14@336px": 2,
    "RN50": 16, "RN101": 16, "RN50x4": 8, "RN50x16": 4, "RN50x64": 2,
}  # fmt: skip
# Fractions of 1024 that still fill a large GPU.
CUDA_BATCHES = {
    "ViT-B/32": 1024, "ViT-B/16": 1024, "ViT-L/14": 512, "ViT-L/14@336px": 256,
    "RN50": 1024, "RN101": 1024, "RN50x4": 512, "RN50x16": 256, "RN50x64": 128,
}  # fmt: skip
BATCHES = {"cpu": CPU_BATCHES, "cuda": CUDA_BATCHES}


def model_folder(model: str) -> Path:
    """The model's files but visual.onnx."""
    folder = CACHE / "models" / file_name(model)
    if not folder.exists():
        with whole_folder(folder) as part:
            _write(part, RELEASES[model].architecture)
    return folder


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill that gets its name at the end, so that it is there whole or not at all."""
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    yield part
    part.rename(folder)


def file_name(model: str) -> str:
    """A model's name without characters that paths give a meaning to."""
    return model.replace("/", "-").replace("@", "-")


def pixels(resolution_px: int) -> np.ndarray:
    """Images in memory. Shapes: -> uint8 (N, R, R, 3)."""
    return np.stack([np.asarray(formula.picture(i, resolution_px, resolution_px)) for i in range(PIXELS)])


def weights_bytes(model: str) -> int:
    """Bytes of both towers in fp32."""
    return 4 * RELEASES[model].parameters


def _write(folder: Path, architecture: Architecture) -> None:
    weights = {key: _as_released(tensor) for key, tensor in formula.entries(architecture)}
    torch.save(weights, folder / "openai.pt")
    if not isinstance(architecture.vision_layers, tuple):
        _write_transformers(folder / "transformers", weights, architecture)
    np.save(folder / "pixels.npy", pixels(architecture.image_resolution))


def _as_released(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.half() if tensor.is_floating_point() else tensor


def _write_transformers(folder: Path, weights: dict[str, torch.Tensor], architecture: Architecture) -> None:
    folder.mkdir(exist_ok=True)
    theirs = {name: tensor.contiguous().clone() for name, tensor in to_transformers(weights, architecture).items()}
    save_file(theirs, folder / "model.safetensors", metadata={"format": "pt"})
    resolution_px, text_width = architecture.image_resolution, architecture.transformer_width
    config = {
        "model_type": "clip",
        "architectures": ["CLIPModel"],
        "projection_dim": architecture.embed_dim,
        "text_config": {
            "hidden_size": text_width,
            "intermediate_size": 4 * text_width,
            "num_hidden_layers": architecture.transformer_layers,
            "num_attention_heads": architecture.transformer_heads,
            "projection_dim": architecture.embed_dim,
        },
        "vision_config": {
            "hidden_size": architecture.vision_width,
            "intermediate_size": 4 * architecture.vision_width,
            "num_hidden_layers": architecture.vision_layers,
            "num_attention_heads": architecture.vision_width // 64,
            "image_size": resolution_px,
            "patch_size": architecture.vision_patch_size,
            "projection_dim": architecture.embed_dim,
        },
    }
    preprocessor = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": resolution_px},
        "crop_size": {"height": resolution_px, "width": resolution_px},
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2))
