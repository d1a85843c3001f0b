"""Infer the arguments of a CLIP from the names and shapes of its weights.

OpenAI's archives carry no configuration: the shapes of the weights are all there is.
"""

from __future__ import annotations

import math
import reprlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError, CheckpointKeyError, quote
from .records import Activation, AnyArchitecture, Architecture, Gelu, PeArchitecture, SiglipArchitecture

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


HEAD_WIDTH = 64  # channels per attention head in every released model; openai/CLIP@d05afc4 clip/model.py:270
POOL_STRIDE = 32  # pixels of the image per cell of a ModifiedResNet's last feature map
MLP_RATIO = 4  # width of a block's MLP over the width of the block, by default
ROTATED = 4  # channels of a head that rotary positions take together: a pair for the column, one for the row
MAX_LAYERS = 1000  # blocks per tower; RN50x64, the deepest released, has 64
MAX_CONTEXT_LENGTH = 4096  # tokens; the causal mask then takes 64 MiB
# Entries of TorchScript archives that are no weights; a CLIP computes them or keeps them as integers.
ARCHIVE_BUFFERS = ("input_resolution", "context_length", "vocab_size", "attn_mask")


def drop_archive_buffers(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights without these entries, in a new dict."""
    return {k: tensor for k, tensor in state_dict.items() if k.rpartition(".")[2] not in ARCHIVE_BUFFERS}


def infer_architecture(
    state_dict: Mapping[str, Tensor],
    *,
    activation: Activation = "quick_gelu",
    vision_heads: int | None = None,
    transformer_heads: int | None = None,
) -> Architecture:
    """Return the arguments of the CLIP that has these weights. The caller passes what names and shapes do not show.

    `vision_heads` and `transformer_heads` default to one per 64 channels, as in every released model.

    Raises:  CheckpointKeyError (a KeyError) for a missing entry, CheckpointError for shapes no CLIP has.
    Source:  openai/CLIP@d05afc4 clip/model.py:399.
    """
    entries = _Entries(state_dict)
    vision_layers: int | tuple[int, int, int, int]
    vision_mlp_width = None
    if not any(key.startswith("visual.layer") for key in state_dict):  # else a ModifiedResNet
        vision_width, _, _, patch_size = entries.shape("visual.conv1.weight", 4)
        entries.shape("visual.proj", 2)
        vision_layers = entries.count("visual.transformer.resblocks.", ".attn.in_proj_weight", part=3)
        resolution = patch_size * entries.grid_side("visual.positional_embedding")
        vision_mlp_width = entries.mlp_width("visual.transformer", vision_width)
    else:
        vision_width = entries.shape("visual.layer1.0.conv1.weight", 4)[0]
        stages = [entries.count(f"visual.layer{stage}.") for stage in (1, 2, 3, 4)]
        vision_layers = (stages[0], stages[1], stages[2], stages[3])
        patch_size = None
        resolution = POOL_STRIDE * entries.grid_side("visual.attnpool.positional_embedding")
    transformer_width = entries.shape("ln_final.weight", 1)[0]
    architecture = Architecture(
        embed_dim=entries.shape("text_projection", 2)[1],
        image_resolution=resolution,
        vision_layers=vision_layers,
        vision_width=vision_width,
        vision_patch_size=patch_size,
        context_length=entries.shape("positional_embedding", 2)[0],
        vocab_size=entries.shape("token_embedding.weight", 2)[0],
        transformer_width=transformer_width,
        transformer_heads=transformer_heads or transformer_width // HEAD_WIDTH,
        transformer_layers=entries.count("transformer.resblocks."),
        activation=activation,
        vision_heads=None if vision_heads == vision_width // HEAD_WIDTH else vision_heads,
        vision_mlp_width=vision_mlp_width,
        transformer_mlp_width=entries.mlp_width("transformer", transformer_width),
    )
    _check_plausible(architecture)
    return architecture


def infer_siglip(
    state_dict: Mapping[str, Tensor],
    *,
    vision_heads: int,
    transformer_heads: int,
    vision_activation: Gelu,
    text_activation: Gelu,
    image_resolution: int | None = None,
) -> SiglipArchitecture:
    """Return the arguments of the SigLIP that has these weights. The caller passes what shapes do not show.

    `image_resolution` has at most the pixels of a patch more than the patches, which is the default.

    Raises:  as `infer_architecture`.
    """
    entries = _Entries(state_dict)
    width, _, _, patch = entries.shape("visual.conv1.weight", 4)
    side = patch * entries.grid_side("visual.positional_embedding", more=0)
    text_width = entries.shape("ln_final.weight", 1)[0]
    architecture = SiglipArchitecture(
        embed_dim=entries.shape("text_projection.weight", 2)[0],
        image_resolution=image_resolution if image_resolution and 0 < image_resolution - side < patch else side,
        vision_layers=entries.count("visual.transformer.resblocks.", part=3),
        vision_width=width,
        vision_patch_size=patch,
        vision_heads=vision_heads,
        vision_mlp_width=entries.shape("visual.attnpool.mlp.c_fc.weight", 2)[0],
        context_length=entries.shape("positional_embedding", 2)[0],
        vocab_size=entries.shape("token_embedding.weight", 2)[0],
        transformer_width=text_width,
        transformer_heads=transformer_heads,
        transformer_layers=entries.count("transformer.resblocks."),
        transformer_mlp_width=entries.shape("transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
        vision_activation=vision_activation,
        text_activation=text_activation,
    )
    if architecture.embed_dim != width:
        found = f"images have {width} features and texts {architecture.embed_dim}"
        raise CheckpointError("weights", found, "the same", "Pass the weights of a SigLIP.")
    _check_sizes(architecture, width, vision_heads, architecture.vision_layers)
    return architecture


def infer_pe(
    state_dict: Mapping[str, Tensor], *, vision_heads: int, pool_heads: int, transformer_heads: int
) -> PeArchitecture:
    """Return the arguments of the PE-Core that has these weights. The caller passes what shapes do not show.

    Raises:  as `infer_architecture`.
    """
    entries = _Entries(state_dict)
    class_token = "visual.class_embedding" in state_dict
    width, _, _, patch = entries.shape("visual.conv1.weight", 4)
    architecture = PeArchitecture(
        embed_dim=entries.shape("text_projection", 2)[1],
        image_resolution=patch * entries.grid_side("visual.positional_embedding", more=int(class_token)),
        vision_layers=entries.count("visual.transformer.resblocks.", part=3),
        vision_width=width,
        vision_patch_size=patch,
        vision_heads=vision_heads,
        vision_mlp_width=entries.shape("visual.transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
        class_token=class_token,
        pool_heads=pool_heads,
        pool_mlp_width=entries.shape("visual.attnpool.mlp.c_fc.weight", 2)[0],
        context_length=entries.shape("positional_embedding", 2)[0],
        vocab_size=entries.shape("token_embedding.weight", 2)[0],
        transformer_width=entries.shape("ln_final.weight", 1)[0],
        transformer_heads=transformer_heads,
        transformer_layers=entries.count("transformer.resblocks."),
        transformer_mlp_width=entries.shape("transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
    )
    if width % (ROTATED * vision_heads) or width % pool_heads:
        found = f"the vision width is {width}, by the weights' shapes"
        expected = f"a multiple of {ROTATED} channels for each of {vision_heads} heads, and of {pool_heads} heads"
        raise CheckpointError("weights", found, expected, "Pass the weights of a PE-Core.")
    _check_sizes(architecture, width, vision_heads, architecture.vision_layers)
    return architecture


@dataclass(frozen=True)
class _Entries:
    """Shapes and counts of a state dict's entries, with errors that name the entry."""

    state_dict: Mapping[str, Tensor]

    def shape(self, key: str, ndim: int) -> tuple[int, ...]:
        if key not in self.state_dict:
            first = quote(next(iter(self.state_dict), ""))
            found = f"entry {key!r} is missing among {len(self.state_dict)}, of which the first is {first}"
            raise CheckpointKeyError("weights", found, "a CLIP with OpenAI's names", "Pass the weights of one.")
        shape = tuple(self.state_dict[key].shape)
        if len(shape) != ndim or 0 in shape:
            remedy = "Pass the weights of a CLIP."
            raise CheckpointError("weights", f"entry {key!r} has shape {shape}", f"{ndim} sizes above 0", remedy)
        return shape

    def grid_side(self, key: str, more: int = 1) -> int:
        """Return the patches a side, where there is a position for each, and for `more` tokens before them."""
        tokens = self.shape(key, 2)[0]
        side = math.isqrt(tokens - more)
        if side == 0 or side**2 + more != tokens:
            found = f"entry {key!r} has {tokens} positions"
            expected = "a square number" + (f" and {more} more" if more else "")
            raise CheckpointError("weights", found, expected, "Pass weights for square images.")
        return side

    def count(self, prefix: str, suffix: str = "", part: int = 2) -> int:
        return len({k.split(".")[part] for k in self.state_dict if k.startswith(prefix) and k.endswith(suffix)})

    def mlp_width(self, transformer: str, width: int) -> int | None:
        """Return the MLP width of the first block; None for four times `width`, or if there is no block."""
        key = f"{transformer}.resblocks.0.mlp.c_fc.weight"
        mlp_width = self.shape(key, 2)[0] if key in self.state_dict else MLP_RATIO * width
        return None if mlp_width == MLP_RATIO * width else mlp_width


def vision_heads(architecture: Architecture) -> int:
    """Return the number of attention heads of the image tower: in a ViT's blocks, or in a ResNet's pool."""
    return architecture.vision_heads or max(1, _attention_width(architecture) // HEAD_WIDTH)


def _attention_width(architecture: Architecture) -> int:
    """Return the channels that the image tower's attention reads: 32 times its first layer's in a ResNet's pool."""
    return architecture.vision_width * (POOL_STRIDE if isinstance(architecture.vision_layers, tuple) else 1)


def _check_plausible(a: Architecture) -> None:
    """Raise CheckpointError for sizes that cost a hostile file nothing to state and us gigabytes to build."""
    layers = a.vision_layers
    _check_sizes(a, _attention_width(a), vision_heads(a), sum(layers) if isinstance(layers, tuple) else layers)


def _check_sizes(a: AnyArchitecture, vision_width: int, in_heads: int, depth: int) -> None:
    heads = a.transformer_heads
    divides = heads and a.transformer_width % heads == 0
    for size, value, fits, expected in (
        ("vision width", vision_width, vision_width % in_heads == 0, f"a multiple of its {in_heads} heads"),
        ("text width", a.transformer_width, divides, f"a multiple of its {heads} heads"),
        ("vision depth", depth, 0 < depth <= MAX_LAYERS, f"1 to {MAX_LAYERS} layers"),
        ("text depth", a.transformer_layers, 0 < a.transformer_layers <= MAX_LAYERS, f"1 to {MAX_LAYERS} layers"),
        ("context length", a.context_length, a.context_length <= MAX_CONTEXT_LENGTH, f"at most {MAX_CONTEXT_LENGTH}"),
    ):
        if not fits:
            found = f"the {size} is {value}, by the weights' shapes"
            raise CheckpointError("weights", found, expected, "Pass the weights of a CLIP.")


def check_sizes(stated: Mapping[str, Any], shown: Mapping[str, Any], origin: str) -> None:
    """Compare the sizes that a configuration states with those of the weights. Raises: CheckpointError."""
    for key, value in stated.items():
        if shown[key] != value:
            found = f"{origin}: {key} is {reprlib.repr(value)}, and {shown[key]} by the weights' shapes"
            remedy = "Pass the configuration of these weights as `architecture`."
            raise CheckpointError("weights", found, "the same", remedy)
