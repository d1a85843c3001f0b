"""What a model is: its architecture, the pixels it reads, its weights. Knows nothing about where they come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from ..simple_tokenizer import SimpleTokenizer

Activation = Literal["quick_gelu", "gelu"]
Interpolation = Literal["bicubic", "bilinear"]
ResizeMode = Literal["shortest", "squash"]  # the shorter side becomes the resolution, or both do
Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Architecture:
    """The arguments of `clip.model.CLIP`, in its order and with OpenAI's names."""

    embed_dim: int
    image_resolution: int  # [Unit: px]
    vision_layers: int | tuple[int, int, int, int]  # a tuple means ModifiedResNet
    vision_width: int
    vision_patch_size: int | None  # [Unit: px]; None for ModifiedResNet
    context_length: int
    vocab_size: int
    transformer_width: int
    transformer_heads: int
    transformer_layers: int
    # What no released model needs, and shapes alone do not tell:
    activation: Activation = "quick_gelu"
    vision_heads: int | None = None  # of a ViT; None: one for every 64 channels
    vision_mlp_width: int | None = None  # of a ViT; None: four times its width
    transformer_mlp_width: int | None = None  # None: four times the width


HEADER_KEY = "clip-turbo"  # of a safetensors file's metadata, under which are the records that we write there
BYTE_MAX = 255.0
# Means and standard deviations of the training images, RGB in 0..1. openai/CLIP@d05afc4 clip/clip.py:85.
OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class PreprocessSettings:
    """What a checkpoint asks of the images it is shown."""

    resolution_px: int
    mean: Triple = OPENAI_MEAN
    std: Triple = OPENAI_STD
    interpolation: Interpolation = "bicubic"
    resize_mode: ResizeMode = "shortest"


@dataclass(frozen=True)
class Checkpoint:
    """Weights, and all that is known of where they come from."""

    architecture: Architecture
    state_dict: dict[str, torch.Tensor]  # OpenAI's keys; tensors may be views of the file
    preprocess: PreprocessSettings
    source: str  # a path, or "untrained:SEED"
    files: tuple[Path, ...] = ()  # that the weights were read from
    tokenizer: SimpleTokenizer | None = None  # of a vocabulary of its own; None for that of the released models
