"""Translate the names that Meta and open_clip give to PE-Core's weights to the network's, and back.

open_clip's image side is timm's, whose projection has a bias; Meta's has none, which is a bias of zero here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from ..errors import CheckpointError
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

PeNaming = Literal["meta", "open_clip"]
# Entries that only a PE-Core has, under Meta's names and under ours, which are OpenAI's but for these.
META_ONLY, OWN_ONLY = "visual.attn_pool.probe", ("visual.attnpool.probe", "visual.ln_pre.weight")
TIMM_ONLY = ("visual.trunk.attn_pool.latent", "visual.trunk.norm_pre.weight")
CLASS_TOKEN: dict[PeNaming, str] = {"meta": "visual.class_embedding", "open_clip": "visual.trunk.cls_token"}
BLOCKS: dict[PeNaming, tuple[str, str]] = {
    "meta": ("visual.transformer.resblocks.", "transformer.resblocks."),
    "open_clip": ("visual.trunk.blocks.", "text.transformer.resblocks."),
}
VISION_BLOCKS, TEXT_BLOCKS = "visual.transformer.resblocks", "transformer.resblocks"


def _map_meta(vision_layers: int, text_layers: int) -> Table:
    pool = "visual.attn_pool"
    same = ("logit_scale", "visual.conv1.weight", "visual.positional_embedding")
    same += ("token_embedding.weight", "positional_embedding", "text_projection")
    modules = {"visual.ln_pre": "visual.ln_pre", "visual.ln_post": "visual.ln_post", "ln_final": "ln_final"}
    modules |= {"visual.attnpool.attn.out_proj": f"{pool}.attn.out_proj", "visual.attnpool.ln_2": f"{pool}.layernorm"}
    modules |= {f"visual.attnpool.mlp.{layer}": f"{pool}.mlp.{layer}" for layer in ("c_fc", "c_proj")}
    joined = {f"visual.attnpool.attn.in_proj_{kind}": f"{pool}.attn.in_proj_{kind}" for kind in ("weight", "bias")}
    return {
        **{name: Theirs((name,)) for name in same},
        **{ours: Theirs((theirs,)) for ours, theirs in joined.items()},
        "visual.attnpool.probe": Theirs((META_ONLY,), around=2),
        "visual.proj.weight": Theirs(("visual.proj",), transposed=True),
        **name_both(modules),
        **name_blocks_of_openai(VISION_BLOCKS, VISION_BLOCKS, vision_layers),
        **name_blocks_of_openai(TEXT_BLOCKS, TEXT_BLOCKS, text_layers),
    }


def _map_open_clip(vision_layers: int, text_layers: int) -> Table:
    trunk = "visual.trunk"
    modules = {"visual.ln_pre": f"{trunk}.norm_pre", "visual.ln_post": f"{trunk}.norm", "visual.proj": f"{trunk}.head"}
    return {
        "logit_scale": Theirs(("logit_scale",)),
        "visual.conv1.weight": Theirs((f"{trunk}.patch_embed.proj.weight",)),
        "visual.positional_embedding": Theirs((f"{trunk}.pos_embed",), around=1),
        "token_embedding.weight": Theirs(("text.token_embedding.weight",)),
        "positional_embedding": Theirs(("text.positional_embedding",)),
        "text_projection": Theirs(("text.text_projection",)),
        **name_both(modules | {"ln_final": "text.ln_final"}),
        **name_pool_of_timm("visual.attnpool", f"{trunk}.attn_pool"),
        **name_blocks_of_timm(VISION_BLOCKS, f"{trunk}.blocks", vision_layers),
        **name_blocks_of_openai(TEXT_BLOCKS, f"text.{TEXT_BLOCKS}", text_layers),
    }


def _map_names(naming: PeNaming, vision_layers: int, text_layers: int, *, class_token: bool) -> Table:
    around = 2 if naming == "open_clip" else 0
    token = {"visual.class_embedding": Theirs((CLASS_TOKEN[naming],), around=around)} if class_token else {}
    return (_map_meta if naming == "meta" else _map_open_clip)(vision_layers, text_layers) | token


def to_pe(state_dict: Mapping[str, Tensor], naming: PeNaming) -> dict[str, Tensor]:
    """Translate a library's names of a PE-Core's weights to ours. The layers are those that the weights have.

    Raises:  as `translate`.
    """
    vision, text = (count_blocks(state_dict, prefix) for prefix in BLOCKS[naming])
    table = _map_names(naming, vision, text, class_token=CLASS_TOKEN[naming] in state_dict)
    remedy = "Pass the weights of Meta's PE-Core, or of open_clip's."
    weights = translate(state_dict, table, "PE-Core", remedy)
    if naming == "meta":
        weights["visual.proj.bias"] = weights["visual.proj.weight"].new_zeros(len(weights["visual.proj.weight"]))
    return weights


def from_pe(state_dict: Mapping[str, Tensor], naming: PeNaming) -> dict[str, Tensor]:
    """Translate our names of a PE-Core's weights to a library's: the way back of `to_pe`.

    Raises:  CheckpointError for a bias of the projection, which Meta's network does not have.
    """
    if naming == "meta" and state_dict["visual.proj.bias"].any():
        found = "the projection of images has a bias"
        raise CheckpointError("weights", found, "none, as in Meta's", "Translate to open_clip's names.")
    vision, text = (count_blocks(state_dict, f"{blocks}.") for blocks in (VISION_BLOCKS, TEXT_BLOCKS))
    table = _map_names(naming, vision, text, class_token="visual.class_embedding" in state_dict)
    return translate_back(state_dict, table)
