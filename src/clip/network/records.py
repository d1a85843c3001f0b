"""The records that describe a model: its architecture, its preprocessing, its weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from ..simple_tokenizer import SimpleTokenizer
    from ..tokenizer_file import TokenizerFile

Activation = Literal["quick_gelu", "gelu"]
Gelu = Literal["gelu", "gelu_tanh"]  # exact, or the approximation of it by tanh
TowerActivation = Activation | Gelu
PooledToken = Literal["highest", "last"]  # the token of a text that is read: that of the highest id, or the last one
Interpolation = Literal["bicubic", "bilinear"]
ResizeMode = Literal["shortest", "squash"]  # resize the shorter side to the resolution, or both
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
    # No released model needs these, and the shapes of weights do not show the first two:
    activation: Activation = "quick_gelu"
    vision_heads: int | None = None  # of a ViT; None: one per 64 channels
    vision_mlp_width: int | None = None  # of a ViT; None: four times its width
    transformer_mlp_width: int | None = None  # None: four times the width

    pooled_token: ClassVar[PooledToken] = "highest"


@dataclass(frozen=True)
class SiglipArchitecture:
    """The arguments of `clip.network.siglip.SigLIP`; what both networks have has the name that `Architecture` gives it.

    The shapes of weights show neither the heads nor the activations, nor the pixels at the right and at the bottom that
    are not enough for another patch.
    """

    embed_dim: int
    image_resolution: int  # [Unit: px]
    vision_layers: int
    vision_width: int
    vision_patch_size: int  # [Unit: px]
    vision_heads: int
    vision_mlp_width: int
    context_length: int
    vocab_size: int
    transformer_width: int
    transformer_heads: int
    transformer_layers: int
    transformer_mlp_width: int
    vision_activation: Gelu
    text_activation: Gelu
    network: Literal["siglip"] = "siglip"  # which is what tells its record in a manifest from the other's

    pooled_token: ClassVar[PooledToken] = "last"


@dataclass(frozen=True)
class PeArchitecture:
    """The arguments of `clip.network.pe.PE`; what it has as OpenAI's network has the name that `Architecture` gives it.

    The shapes of weights show no heads.
    """

    embed_dim: int
    image_resolution: int  # [Unit: px]
    vision_layers: int
    vision_width: int
    vision_patch_size: int  # [Unit: px]
    vision_heads: int
    vision_mlp_width: int
    class_token: bool  # whether one goes before the patches
    pool_heads: int
    pool_mlp_width: int
    context_length: int
    vocab_size: int
    transformer_width: int
    transformer_heads: int
    transformer_layers: int
    transformer_mlp_width: int
    network: Literal["pe"] = "pe"  # which is what tells its record in a manifest from the others'

    activation: ClassVar[Gelu] = "gelu"
    pooled_token: ClassVar[PooledToken] = "highest"


AnyArchitecture = Architecture | SiglipArchitecture | PeArchitecture


HEADER_KEY = "clip-turbo"  # of a safetensors file's metadata; its value is the records that `export` writes
BYTE_MAX = 255.0
# Means and standard deviations of the training images, RGB in 0..1. openai/CLIP@d05afc4 clip/clip.py:85.
OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class PreprocessSettings:
    """How the images for a checkpoint are preprocessed."""

    resolution_px: int
    mean: Triple = OPENAI_MEAN
    std: Triple = OPENAI_STD
    interpolation: Interpolation = "bicubic"
    resize_mode: ResizeMode = "shortest"


@dataclass(frozen=True)
class Checkpoint:
    """The weights of a model, with its architecture, preprocessing, vocabulary and origin."""

    architecture: AnyArchitecture
    state_dict: dict[str, torch.Tensor]  # the network's keys; tensors may be views of the file
    preprocess: PreprocessSettings
    source: str  # a path, or "untrained:SEED"; manifests carry it
    files: tuple[Path, ...] = ()  # that the weights were read from
    tokenizer: SimpleTokenizer | TokenizerFile | None = None  # None for the vocabulary of the released models
    seed: int | None = None  # of untrained weights, which were drawn at random
