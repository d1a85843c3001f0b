"""Find a CLIP among the entries of a file, and translate transformers' names of them to OpenAI's, and back.

A CLIP may lie under any prefix, beside heads and whatever a training script keeps. Two names of one thing are known:
OpenAI's, which open_clip has too, and those of transformers' CLIPModel.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from ..errors import CheckpointError, CheckpointKeyError, quote
from .restricted_pickle import MAX_KEY

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor

    from ..network.records import Architecture

Naming = Literal["openai", "transformers", "open_clip_timm"]
# For each naming: entries of the image side, of the text side, and the modules that both consist of.
_SIDES: dict[Naming, tuple[str, str]] = {
    "openai": (
        r"visual\.(?:class_embedding|positional_embedding|proj|conv[123]\.weight)$"
        r"|visual\.(?:ln_pre|ln_post|bn[123]|attnpool|transformer\.resblocks|layer[1-4])\.",
        r"(?:token_embedding\.weight|positional_embedding|text_projection)$|(?:ln_final|transformer\.resblocks)\.",
    ),
    "transformers": (
        r"vision_model\.(?:embeddings|encoder|pre_layrnorm|post_layernorm)\.",
        r"text_model\.(?:embeddings|encoder|final_layer_norm)\.",
    ),
    "open_clip_timm": (
        r"visual\.trunk\.(?:patch_embed|pos_embed|blocks|norm|attn_pool)(?:\.|$)",
        r"text\.(?:token_embedding\.weight|positional_embedding|ln_final|transformer\.resblocks)(?:\.|$)",
    ),
}
_MODULES: dict[Naming, frozenset[str]] = {
    "openai": frozenset({"visual", "transformer", "token_embedding", "ln_final", "text", "text_projection"}),
    "transformers": frozenset({"vision_model", "text_model", "visual_projection", "text_projection"}),
    "open_clip_timm": frozenset({"visual", "text"}),
}
_ENTRY: dict[Naming, re.Pattern[str]] = {
    naming: re.compile(rf"(?P<prefix>(?:[^.]+\.)*?)(?:(?P<image>{image})|(?P<text>{text}))")
    for naming, (image, text) in _SIDES.items()
}
# What else the entries can be of, for the error.
_OTHERS = (
    (r"(?:^|[._])lora_", "LoRA adapters, which are changes to a model"),
    (r"(?:^|\.)visual\.trunk\.", "an open_clip model whose image tower is timm's, as EVA and MobileCLIP"),
    (r"(?:^|\.)text_decoder\.", "a CoCa"),
    (r"(?:^|\.)visual\.blocks\.\d", "an EVA-CLIP"),
    (r"(?:^|\.)prompt_learner\.", "prompts learned for a CLIP, as CoOp's"),
    (r"model\.diffusion_model\.|first_stage_model\.", "a diffusion model"),
    (
        r"(?:^|\.)text\.transformer\.(?:embeddings|encoder|layer)",
        "an open_clip model whose text tower is transformers'",
    ),
    (r"(?:^|\.)text\.(?:token_embedding|transformer)\.", "an open_clip model with a text tower of its own"),
    (r"blocks\.\d+\.attn\.qkv\.", "a ViT of timm or DINO"),
    (r"embeddings\.word_embeddings\.", "a BERT"),
    (r"(?:^|\.)layer4\.\d+\.conv1\.weight", "a ResNet without a text tower"),
    (r"encoder\.layers?\.", "another transformer"),
)


@dataclass(frozen=True)
class Place:
    """Where a CLIP lies among entries: under which prefix, with whose names."""

    naming: Naming
    prefix: str


def find_places(keys: Iterable[object]) -> list[Place]:
    """Return the places at which there are entries of an image and of a text side."""
    sides: dict[Place, set[bool]] = defaultdict(set)
    names = [key for key in keys if isinstance(key, str) and len(key) <= MAX_KEY]
    for naming, pattern in _ENTRY.items():
        for match in filter(None, map(pattern.match, names)):
            sides[Place(naming, match["prefix"])].add(match["image"] is None)
    return [place for place, found in sides.items() if len(found) == 2]


def describe_network(keys: Iterable[object]) -> str:
    """Return which network has these entries, where no CLIP has them all."""
    names = [key for key in keys if isinstance(key, str)]
    for pattern, network in _OTHERS:
        if any(re.search(pattern, name) for name in names):
            return network
    for pattern in _ENTRY.values():
        for match in filter(None, map(pattern.match, names)):
            return f"the {'text' if match['image'] is None else 'image'} tower of a CLIP without the other tower"
    return "no network that we know"


def find_place(keys: Iterable[object]) -> Place:
    """Return the one place of a CLIP.

    Raises:  CheckpointKeyError, which names the network that is there instead, where there is none; CheckpointError
             for several.
    """
    keys = list(keys)
    places = find_places(keys)
    if len(places) > 1:
        found = f"its entries are of several CLIPs, under {' and '.join(quote(place.prefix) for place in places[:3])}"
        raise CheckpointError("weights", found, "one", "Save the state dict of one of them.")
    if not places:
        first = quote(str(next(iter(keys), "")))
        found = f"its {len(keys):,} entries are those of {describe_network(keys)}; the first is {first}"
        raise CheckpointKeyError("weights", found, "a CLIP with OpenAI's or transformers' names", "Pass one.")
    return places[0]


def take_place(entries: Mapping[Any, Any], place: Place) -> tuple[dict[str, Any], list[str]]:
    """Return the entries of a CLIP without their prefix, and the names of those that are of no part of it.

    A head has a module of its own, "classifier.weight". A name inside the CLIP's modules, and a tensor beside them such
    as "logit_bias", belong to the network, and are kept for the comparison with what a CLIP has.
    """
    own: dict[str, Any] = {}
    others: list[str] = []
    for key, value in entries.items():
        name = key[len(place.prefix) :] if isinstance(key, str) and key.startswith(place.prefix) else ""
        module, dot, _ = name.partition(".")
        if name and (module in _MODULES[place.naming] if dot else isinstance(value, torch.Tensor)):
            own[name] = value
        else:
            others.append(str(key))
    return own, others


@dataclass(frozen=True)
class _Theirs:
    """Where transformers has one of OpenAI's tensors: transposed, or in pieces that are joined in this order."""

    names: tuple[str, ...]
    transposed: bool = False


def _map_names(vision_layers: int, text_layers: int) -> dict[str, _Theirs]:
    """Return transformers' names for each of OpenAI's keys."""
    names = {
        "logit_scale": _Theirs(("logit_scale",)),
        "visual.proj": _Theirs(("visual_projection.weight",), transposed=True),
        "text_projection": _Theirs(("text_projection.weight",), transposed=True),
        "visual.class_embedding": _Theirs(("vision_model.embeddings.class_embedding",)),
        "visual.conv1.weight": _Theirs(("vision_model.embeddings.patch_embedding.weight",)),
        "visual.positional_embedding": _Theirs(("vision_model.embeddings.position_embedding.weight",)),
        "token_embedding.weight": _Theirs(("text_model.embeddings.token_embedding.weight",)),
        "positional_embedding": _Theirs(("text_model.embeddings.position_embedding.weight",)),
    }
    modules = {
        "visual.ln_pre": "vision_model.pre_layrnorm",  # spelt so there
        "visual.ln_post": "vision_model.post_layernorm",
        "ln_final": "text_model.final_layer_norm",
    }
    towers = (("visual.transformer", "vision_model", vision_layers), ("transformer", "text_model", text_layers))
    for ours, theirs, layers in towers:
        for n in range(layers):
            block, layer = f"{ours}.resblocks.{n}", f"{theirs}.encoder.layers.{n}"
            for kind in ("weight", "bias"):
                pieces = tuple(f"{layer}.self_attn.{part}_proj.{kind}" for part in "qkv")
                names[f"{block}.attn.in_proj_{kind}"] = _Theirs(pieces)
            modules[f"{block}.attn.out_proj"] = f"{layer}.self_attn.out_proj"
            modules[f"{block}.mlp.c_fc"] = f"{layer}.mlp.fc1"
            modules[f"{block}.mlp.c_proj"] = f"{layer}.mlp.fc2"
            modules[f"{block}.ln_1"] = f"{layer}.layer_norm1"
            modules[f"{block}.ln_2"] = f"{layer}.layer_norm2"
    for ours, theirs in modules.items():
        for kind in ("weight", "bias"):
            names[f"{ours}.{kind}"] = _Theirs((f"{theirs}.{kind}",))
    return names


def from_transformers(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Translate the names of a CLIPModel's weights to OpenAI's. The layers are those that the weights have.

    Raises:  CheckpointError for an entry that a CLIPModel does not have.
    """
    layers = {
        tower: {key.split(".")[3] for key in state_dict if key.startswith(f"{tower}.encoder.layers.")}
        for tower in ("vision_model", "text_model")
    }
    names = _map_names(len(layers["vision_model"]), len(layers["text_model"]))
    used = {name for theirs in names.values() for name in theirs.names}
    more = [key for key in state_dict if key not in used and not key.endswith(".position_ids")]
    if more:
        found = f"{len(more)} of its entries are of no CLIPModel, such as {quote(more[0])}; it is {_name_other(more)}"
        raise CheckpointError("weights", found, remedy="Pass the weights of a CLIPModel.")
    return {ours: _join(state_dict, theirs) for ours, theirs in names.items() if set(theirs.names) <= set(state_dict)}


def _name_other(keys: list[str]) -> str:
    return next((network for pattern, network in _OTHERS for key in keys if re.search(pattern, key)), "another network")


def to_transformers(state_dict: Mapping[str, Tensor], architecture: Architecture) -> dict[str, Tensor]:
    """Translate OpenAI's names to those of a CLIPModel, for a ViT: transformers has no ModifiedResNet."""
    if isinstance(architecture.vision_layers, tuple):
        found = "a ModifiedResNet, which transformers does not have"
        raise CheckpointError("weights", found, "a ViT", "Pass the weights of a ViT.")
    theirs: dict[str, Tensor] = {}
    for ours, place in _map_names(architecture.vision_layers, architecture.transformer_layers).items():
        tensor = state_dict[ours].T if place.transposed else state_dict[ours]
        pieces = tensor.chunk(len(place.names)) if len(place.names) > 1 else (tensor,)
        theirs |= dict(zip(place.names, pieces, strict=True))
    return theirs


def _join(state_dict: Mapping[str, Tensor], theirs: _Theirs) -> Tensor:
    first, *others = [state_dict[name] for name in theirs.names]
    if any(other.shape != first.shape for other in others):
        shapes = " and ".join(str(tuple(state_dict[name].shape)) for name in theirs.names)
        raise CheckpointError("weights", f"entries of {theirs.names[0]!r} have shapes {shapes}", "the same shape")
    if others:
        return torch.cat([first, *others])
    return first.T if theirs.transposed and first.ndim == 2 else first
