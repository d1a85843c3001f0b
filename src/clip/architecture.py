"""The names and shapes of a state dict -> the arguments of a CLIP. Knows nothing about the network itself.

OpenAI's archives carry no configuration: a model is what its weights' shapes say it is.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from clip.errors import CheckpointError, CheckpointKeyError
from clip.items import Architecture

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

HEAD_WIDTH = 64  # channels an attention head reads in every released model; openai/CLIP@d05afc4 clip/model.py:270
POOL_STRIDE = 32  # pixels of the picture behind one cell of a ModifiedResNet's last feature map
MAX_LAYERS = 1000  # blocks a tower; RN50x64, the deepest released, has 64
MAX_CONTEXT_LENGTH = 4096  # tokens; the causal mask then takes 64 MiB
# Entries that TorchScript archives carry beside the weights; a CLIP computes them or keeps them as integers.
ARCHIVE_BUFFERS = ("input_resolution", "context_length", "vocab_size", "attn_mask")


def drop_archive_buffers(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights alone, in a new dict."""
    return {k: tensor for k, tensor in state_dict.items() if k.rpartition(".")[2] not in ARCHIVE_BUFFERS}


def infer_architecture(state_dict: Mapping[str, Tensor]) -> Architecture:
    """Read a CLIP's arguments off the names and shapes of its weights.

    Raises:  CheckpointKeyError (a KeyError) for a missing entry, CheckpointError for shapes no CLIP has.
    Source:  openai/CLIP@d05afc4 clip/model.py:399.
    """

    def shape(key: str, ndim: int) -> tuple[int, ...]:
        if key not in state_dict:
            raise CheckpointKeyError(
                f"weights: entry {key!r} is missing, expected a CLIP with OpenAI's names. "
                f"Pass one; the {len(state_dict)} entries found start with {list(state_dict)[:3]}."
            )
        found = tuple(state_dict[key].shape)
        if len(found) != ndim or 0 in found:
            raise CheckpointError(
                f"weights: entry {key!r} has shape {found}, expected {ndim} sizes above 0. Pass the weights of a CLIP."
            )
        return found

    def grid_side(key: str) -> int:
        tokens = shape(key, 2)[0]
        side = math.isqrt(tokens - 1)
        if side == 0 or side**2 + 1 != tokens:
            raise CheckpointError(
                f"weights: entry {key!r} has {tokens} positions, expected a square number and 1 more. "
                "Pass weights for square pictures."
            )
        return side

    def count(prefix: str, suffix: str = "", part: int = 2) -> int:
        return len({k.split(".")[part] for k in state_dict if k.startswith(prefix) and k.endswith(suffix)})

    vision_layers: int | tuple[int, int, int, int]
    if "visual.proj" in state_dict:
        vision_width, _, _, patch_size = shape("visual.conv1.weight", 4)
        vision_layers = count("visual.transformer.resblocks.", ".attn.in_proj_weight", part=3)
        resolution = patch_size * grid_side("visual.positional_embedding")
    else:
        vision_width = shape("visual.layer1.0.conv1.weight", 4)[0]
        stages = [count(f"visual.layer{stage}.") for stage in (1, 2, 3, 4)]
        vision_layers = (stages[0], stages[1], stages[2], stages[3])
        patch_size = None
        resolution = POOL_STRIDE * grid_side("visual.attnpool.positional_embedding")

    transformer_width = shape("ln_final.weight", 1)[0]
    architecture = Architecture(
        embed_dim=shape("text_projection", 2)[1],
        image_resolution=resolution,
        vision_layers=vision_layers,
        vision_width=vision_width,
        vision_patch_size=patch_size,
        context_length=shape("positional_embedding", 2)[0],
        vocab_size=shape("token_embedding.weight", 2)[0],
        transformer_width=transformer_width,
        transformer_heads=transformer_width // HEAD_WIDTH,
        transformer_layers=count("transformer.resblocks."),
    )
    _check_plausible(architecture)
    return architecture


def _check_plausible(architecture: Architecture) -> None:
    """Refuse what would cost a hostile file nothing to state and us gigabytes to lay out."""
    layers = architecture.vision_layers
    # What attention splits into heads of 64: the ViT's width, or the 32 times wider map a ResNet pools.
    vision_width = architecture.vision_width * (POOL_STRIDE if isinstance(layers, tuple) else 1)
    depth = sum(layers) if isinstance(layers, tuple) else layers
    for what, found, fits, expected in (
        ("vision width", vision_width, vision_width % HEAD_WIDTH == 0, f"a multiple of {HEAD_WIDTH}"),
        (
            "text width",
            architecture.transformer_width,
            architecture.transformer_width % HEAD_WIDTH == 0,
            f"a multiple of {HEAD_WIDTH}",
        ),
        ("vision depth", depth, 0 < depth <= MAX_LAYERS, f"1 to {MAX_LAYERS} layers"),
        (
            "text depth",
            architecture.transformer_layers,
            0 < architecture.transformer_layers <= MAX_LAYERS,
            f"1 to {MAX_LAYERS} layers",
        ),
        (
            "context length",
            architecture.context_length,
            architecture.context_length <= MAX_CONTEXT_LENGTH,
            f"at most {MAX_CONTEXT_LENGTH} tokens",
        ),
    ):
        if not fits:
            raise CheckpointError(
                f"weights: the {what} their shapes tell is {found}, expected {expected}. Pass the weights of a CLIP."
            )
