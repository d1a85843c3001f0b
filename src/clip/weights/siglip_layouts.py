"""Translate the names that transformers and open_clip give to SigLIP's weights to the network's, and back.

open_clip's image side is timm's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from .name_tables import (
    Table,
    Theirs,
    count_blocks,
    name_blocks_of_openai,
    name_blocks_of_timm,
    name_both,
    name_pool_of_timm,
    translate,
    translate_back,
)

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


def _map_names(naming: SiglipNaming, vision_layers: int, text_layers: int) -> Table:
    """Return a library's names for each of ours."""
    return (
        _map_transformers(vision_layers, text_layers)
        if naming == "transformers"
        else _map_open_clip(vision_layers, text_layers)
    )


def _map_transformers(vision_layers: int, text_layers: int) -> Table:
    names = {
        "logit_scale": Theirs(("logit_scale",), around=1),
        "logit_bias": Theirs(("logit_bias",), around=1),
        "visual.positional_embedding": Theirs(("vision_model.embeddings.position_embedding.weight",)),
        "visual.attnpool.probe": Theirs((PROBE["transformers"],), around=2),
        "token_embedding.weight": Theirs(("text_model.embeddings.token_embedding.weight",)),
        "positional_embedding": Theirs(("text_model.embeddings.position_embedding.weight",)),
        "visual.attnpool.attn.in_proj_weight": Theirs(("vision_model.head.attention.in_proj_weight",)),
        "visual.attnpool.attn.in_proj_bias": Theirs(("vision_model.head.attention.in_proj_bias",)),
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
                names[f"{block}.attn.in_proj_{kind}"] = Theirs(pieces)
            own = {"attn.out_proj": "self_attn.out_proj", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
            own |= {"ln_1": "layer_norm1", "ln_2": "layer_norm2"}
            modules |= {f"{block}.{mine}": f"{layer}.{name}" for mine, name in own.items()}
    return names | name_both(modules)


def _map_open_clip(vision_layers: int, text_layers: int) -> Table:
    trunk = "visual.trunk"
    names = {
        "logit_scale": Theirs(("logit_scale",)),
        "logit_bias": Theirs(("logit_bias",)),
        "visual.positional_embedding": Theirs((f"{trunk}.pos_embed",), around=1),
        "token_embedding.weight": Theirs(("text.token_embedding.weight",)),
        "positional_embedding": Theirs(("text.positional_embedding",)),
    }
    modules = {
        "visual.conv1": f"{trunk}.patch_embed.proj",
        "visual.ln_post": f"{trunk}.norm",
        "ln_final": "text.ln_final",
        "text_projection": "text.text_projection",
    }
    return {
        **names,
        **name_both(modules),
        **name_pool_of_timm("visual.attnpool", f"{trunk}.attn_pool"),
        **name_blocks_of_timm("visual.transformer.resblocks", f"{trunk}.blocks", vision_layers),
        **name_blocks_of_openai("transformer.resblocks", "text.transformer.resblocks", text_layers),
    }


BLOCKS: dict[SiglipNaming, tuple[str, str]] = {
    "transformers": ("vision_model.encoder.layers.", "text_model.encoder.layers."),
    "open_clip": ("visual.trunk.blocks.", "text.transformer.resblocks."),
}


def to_siglip(state_dict: Mapping[str, Tensor], naming: SiglipNaming) -> dict[str, Tensor]:
    """Translate a library's names of a SigLIP's weights to ours. The layers are those that the weights have.

    Raises:  as `translate`.
    """
    vision, text = (count_blocks(state_dict, prefix) for prefix in BLOCKS[naming])
    remedy = "Pass the weights of a SiglipModel, or of open_clip's SigLIP."
    return translate(state_dict, _map_names(naming, vision, text), "SigLIP with an attention pool", remedy)


def from_siglip(state_dict: Mapping[str, Tensor], naming: SiglipNaming) -> dict[str, Tensor]:
    """Translate our names of a SigLIP's weights to a library's: the way back of `to_siglip`."""
    vision = count_blocks(state_dict, "visual.transformer.resblocks.")
    text = count_blocks(state_dict, "transformer.resblocks.")
    return translate_back(state_dict, _map_names(naming, vision, text))
