"""Translate the names that transformers and open_clip give to SigLIP's weights to the network's, and back.

open_clip's image side is timm's. A table has for each of our names where the other library has it: in pieces that are
joined, as the first part of a tensor, or in another shape.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from ..errors import CheckpointError, CheckpointKeyError, quote

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

SiglipNaming = Literal["transformers", "open_clip"]
PROBE: dict[SiglipNaming, str] = {
    "transformers": "vision_model.head.probe",
    "open_clip": "visual.trunk.attn_pool.latent",
}
# Entries that only a SigLIP has, under transformers' names, which a CLIPModel has too.
SIGLIP_ONLY = (PROBE["transformers"], "vision_model.embeddings.patch_embedding.bias", "text_model.head.weight")


@dataclass(frozen=True)
class _Theirs:
    """Where a library has one of our tensors: in these pieces, joined in this order, each of this shape around it."""

    names: tuple[str, ...]
    around: int = 0  # axes of size 1 before its own


def _map_names(naming: SiglipNaming, vision_layers: int, text_layers: int) -> dict[str, _Theirs]:
    """Return a library's names for each of ours."""
    return (
        _map_transformers(vision_layers, text_layers)
        if naming == "transformers"
        else _map_open_clip(vision_layers, text_layers)
    )


def _both(modules: Mapping[str, str]) -> dict[str, _Theirs]:
    """Return the names of the weights and biases of modules."""
    kinds = ("weight", "bias")
    return {f"{ours}.{kind}": _Theirs((f"{theirs}.{kind}",)) for ours, theirs in modules.items() for kind in kinds}


def _map_transformers(vision_layers: int, text_layers: int) -> dict[str, _Theirs]:
    names = {
        "logit_scale": _Theirs(("logit_scale",), around=1),
        "logit_bias": _Theirs(("logit_bias",), around=1),
        "visual.positional_embedding": _Theirs(("vision_model.embeddings.position_embedding.weight",)),
        "visual.attnpool.probe": _Theirs((PROBE["transformers"],), around=2),
        "token_embedding.weight": _Theirs(("text_model.embeddings.token_embedding.weight",)),
        "positional_embedding": _Theirs(("text_model.embeddings.position_embedding.weight",)),
        "visual.attnpool.attn.in_proj_weight": _Theirs(("vision_model.head.attention.in_proj_weight",)),
        "visual.attnpool.attn.in_proj_bias": _Theirs(("vision_model.head.attention.in_proj_bias",)),
    }
    modules = {
        "visual.conv1": "vision_model.embeddings.patch_embedding",
        "visual.ln_post": "vision_model.post_layernorm",
        "visual.attnpool.attn.out_proj": "vision_model.head.attention.out_proj",
        "visual.attnpool.ln_2": "vision_model.head.layernorm",
        "visual.attnpool.mlp.c_fc": "vision_model.head.mlp.fc1",
        "visual.attnpool.mlp.c_proj": "vision_model.head.mlp.fc2",
        "ln_final": "text_model.final_layer_norm",
        "text_projection": "text_model.head",
    }
    for ours, theirs, layers in (("visual.", "vision_model", vision_layers), ("", "text_model", text_layers)):
        for n in range(layers):
            block, layer = f"{ours}transformer.resblocks.{n}", f"{theirs}.encoder.layers.{n}"
            for kind in ("weight", "bias"):
                pieces = tuple(f"{layer}.self_attn.{part}_proj.{kind}" for part in "qkv")
                names[f"{block}.attn.in_proj_{kind}"] = _Theirs(pieces)
            own = {"attn.out_proj": "self_attn.out_proj", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
            own |= {"ln_1": "layer_norm1", "ln_2": "layer_norm2"}
            modules |= {f"{block}.{mine}": f"{layer}.{name}" for mine, name in own.items()}
    return names | _both(modules)


def _map_open_clip(vision_layers: int, text_layers: int) -> dict[str, _Theirs]:
    trunk, pool = "visual.trunk", "visual.trunk.attn_pool"
    names = {
        "logit_scale": _Theirs(("logit_scale",)),
        "logit_bias": _Theirs(("logit_bias",)),
        "visual.positional_embedding": _Theirs((f"{trunk}.pos_embed",), around=1),
        "visual.attnpool.probe": _Theirs((PROBE["open_clip"],), around=2),
        "token_embedding.weight": _Theirs(("text.token_embedding.weight",)),
        "positional_embedding": _Theirs(("text.positional_embedding",)),
    }
    for kind in ("weight", "bias"):
        names[f"visual.attnpool.attn.in_proj_{kind}"] = _Theirs((f"{pool}.q.{kind}", f"{pool}.kv.{kind}"))
    modules = {
        "visual.conv1": f"{trunk}.patch_embed.proj",
        "visual.ln_post": f"{trunk}.norm",
        "visual.attnpool.attn.out_proj": f"{pool}.proj",
        "visual.attnpool.ln_2": f"{pool}.norm",
        "visual.attnpool.mlp.c_fc": f"{pool}.mlp.fc1",
        "visual.attnpool.mlp.c_proj": f"{pool}.mlp.fc2",
        "ln_final": "text.ln_final",
        "text_projection": "text.text_projection",
    }
    for n in range(vision_layers):
        block, layer = f"visual.transformer.resblocks.{n}", f"{trunk}.blocks.{n}"
        for kind in ("weight", "bias"):
            names[f"{block}.attn.in_proj_{kind}"] = _Theirs((f"{layer}.attn.qkv.{kind}",))
        own = {"attn.out_proj": "attn.proj", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
        own |= {"ln_1": "norm1", "ln_2": "norm2"}
        modules |= {f"{block}.{mine}": f"{layer}.{name}" for mine, name in own.items()}
    for n in range(text_layers):
        block = f"transformer.resblocks.{n}"
        for kind in ("weight", "bias"):
            names[f"{block}.attn.in_proj_{kind}"] = _Theirs((f"text.{block}.attn.in_proj_{kind}",))
        for module in ("attn.out_proj", "mlp.c_fc", "mlp.c_proj", "ln_1", "ln_2"):
            modules[f"{block}.{module}"] = f"text.{block}.{module}"
    return names | _both(modules)


def _count_layers(keys: Mapping[str, Tensor], prefix: str) -> int:
    """Return the blocks below a prefix, whose numbers come next in a name."""
    return len({key.removeprefix(prefix).partition(".")[0] for key in keys if key.startswith(prefix)})


BLOCKS: dict[SiglipNaming, tuple[str, str]] = {
    "transformers": ("vision_model.encoder.layers.", "text_model.encoder.layers."),
    "open_clip": ("visual.trunk.blocks.", "text.transformer.resblocks."),
}


def to_siglip(state_dict: Mapping[str, Tensor], naming: SiglipNaming) -> dict[str, Tensor]:
    """Translate a library's names of a SigLIP's weights to ours. The layers are those that the weights have.

    Raises:  CheckpointKeyError for an entry that is missing, CheckpointError for one that a SigLIP does not have, or
             that has another shape.
    """
    vision, text = (_count_layers(state_dict, prefix) for prefix in BLOCKS[naming])
    names = _map_names(naming, vision, text)
    used = {name for theirs in names.values() for name in theirs.names}
    more = [key for key in state_dict if key not in used and not key.endswith(".position_ids")]
    if more:
        found = f"{len(more)} of its entries are of no SigLIP with an attention pool, such as {quote(more[0])}"
        raise CheckpointError("weights", found, remedy="Pass the weights of a SiglipModel, or of open_clip's SigLIP.")
    missing = [name for name in used if name not in state_dict]
    if missing:
        found = f"{len(missing)} of a SigLIP's entries are missing, such as {quote(min(missing))}"
        raise CheckpointKeyError("weights", found, remedy="Pass the whole state dict of one model.")
    return {ours: _take(state_dict, theirs) for ours, theirs in names.items()}


def _take(state_dict: Mapping[str, Tensor], theirs: _Theirs) -> Tensor:
    pieces = [state_dict[name] for name in theirs.names]
    if any(piece.shape[1:] != pieces[0].shape[1:] for piece in pieces):
        shapes = " and ".join(str(tuple(piece.shape)) for piece in pieces)
        raise CheckpointError("weights", f"entries of {theirs.names[0]!r} have shapes {shapes}", "the same width")
    tensor = torch.cat(pieces) if len(pieces) > 1 else pieces[0]
    for _ in range(theirs.around if tensor.ndim >= theirs.around else 0):
        tensor = tensor.squeeze(0)  # which leaves an axis of another size for the comparison with the network's
    return tensor


def from_siglip(state_dict: Mapping[str, Tensor], naming: SiglipNaming) -> dict[str, Tensor]:
    """Translate our names of a SigLIP's weights to a library's: the way back of `to_siglip`."""
    vision = _count_layers(state_dict, "visual.transformer.resblocks.")
    text = _count_layers(state_dict, "transformer.resblocks.")
    theirs: dict[str, Tensor] = {}
    for ours, place in _map_names(naming, vision, text).items():
        tensor = state_dict[ours]
        width = tensor.shape[0] // 3 if len(place.names) > 1 else 0
        sizes = [width, 2 * width] if len(place.names) == 2 else [width] * 3
        pieces = tensor.split(sizes) if len(place.names) > 1 else (tensor.reshape((1,) * place.around + tensor.shape),)
        theirs |= dict(zip(place.names, pieces, strict=True))
    return theirs
