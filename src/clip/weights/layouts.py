"""Translate the names and configurations of transformers and open_clip to OpenAI's, and back.

transformers' CLIPModel has other key names and a config.json; open_clip has OpenAI's key names and an
open_clip_config.json. They hold what shapes do not show: activation, head width, mean, interpolation. A setting that
this network cannot have is refused by name, and so is one that contradicts the weights.
"""

from __future__ import annotations

import reprlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, get_args

import torch

from ..errors import MAX_SHOWN, CheckpointError
from ..network.architecture import MLP_RATIO, infer_architecture
from ..network.records import Activation, Architecture, Interpolation, PreprocessSettings, ResizeMode, Triple
from ..simple_tokenizer import SimpleTokenizer, make_tokenizer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


EXPORT_AGAIN = "Export the weights again."
LAYER_NORM_EPS = 1e-5
ACTIVATIONS: dict[str, Activation] = {"quick_gelu": "quick_gelu", "gelu": "gelu"}
INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers, as transformers writes them

# Values that transformers omits from a config.json; CLIPTextConfig and CLIPVisionConfig of 5.23.
TEXT_DEFAULTS: dict[str, Any] = {
    "vocab_size": 49408, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12,
    "num_attention_heads": 8, "max_position_embeddings": 77, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
}  # fmt: skip
VISION_DEFAULTS: dict[str, Any] = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "image_size": 224, "patch_size": 32, "num_channels": 3, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
}  # fmt: skip

# Settings of open_clip that change what the network computes, with the one value that this network has.
_SAME_BLOCKS = {
    "ls_init_value": None, "final_ln_after_pool": False, "block_type": None, "qk_norm": False,
    "scaled_cosine_attn": False, "scale_heads": False, "scale_attn_inner": False, "scale_attn": False,
    "scale_fc": False,
}  # fmt: skip
OPEN_CLIP_VISION = _SAME_BLOCKS | {
    "attentional_pool": False, "no_ln_pre": False, "pos_embed_type": "learnable", "pool_type": "tok",
    "global_average_pool": False, "timm_model_name": None,
}  # fmt: skip
OPEN_CLIP_TEXT = _SAME_BLOCKS | {
    "hf_model_name": None, "hf_tokenizer_name": None, "tokenizer_mode": None, "embed_cls": False,
    "no_causal_mask": False, "pool_type": "argmax", "proj_bias": False, "proj_type": "linear",
}  # fmt: skip
OPEN_CLIP_MODEL = {
    "multimodal_cfg": None, "custom_text": False, "init_logit_bias": None, "nonscalar_logit_scale": False,
}  # fmt: skip
# Settings that are read below.
OPEN_CLIP_READ = {"width", "layers", "mlp_ratio", "act_kwargs", "norm_kwargs"}
OPEN_CLIP_VISION_READ = OPEN_CLIP_READ | {"image_size", "head_width", "patch_size"}
OPEN_CLIP_TEXT_READ = OPEN_CLIP_READ | {"context_length", "vocab_size", "heads", "tokenizer_kwargs"}
# Settings that matter only in training, or only together with one of OPEN_CLIP_VISION or OPEN_CLIP_TEXT.
OPEN_CLIP_IDLE = frozenset(
    {"patch_dropout", "attn_pooler_queries", "attn_pooler_heads", "output_tokens", "timm_model_pretrained", "timm_pool",
     "timm_proj", "timm_proj_bias", "timm_drop", "timm_drop_path", "pad_id", "eos_id", "hf_model_pretrained",
     "hf_proj_type", "hf_pooler_type", "init_logit_scale"}
)  # fmt: skip
KINDS = {"multimodal_cfg": "CoCa", "init_logit_bias": "SigLIP", "hf_model_name": "a Hugging Face text tower",
         "timm_model_name": "a timm vision tower"}  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """A state dict with OpenAI's names, and its configuration."""

    state_dict: dict[str, Tensor]
    architecture: Architecture
    preprocess: PreprocessSettings
    tokenizer: SimpleTokenizer | None = None


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


def is_transformers(state_dict: Mapping[str, object]) -> bool:
    """Return whether these are the keys of a CLIPModel."""
    return "vision_model.embeddings.class_embedding" in state_dict


def from_transformers(
    state_dict: dict[str, Tensor], config: dict[str, Any], preprocessor: dict[str, Any] | None
) -> Layout:
    """Translate a CLIPModel's weights, config.json and preprocessor_config.json.

    Raises:  CheckpointError for another kind of model, an activation or transform that is not CLIP's, and a
             configuration that contradicts the weights.
    """
    if config.get("model_type") != "clip":
        found = f"config.json: model_type is {reprlib.repr(config.get('model_type'))}"
        raise CheckpointError("weights", found, "'clip'", "Pass a CLIPModel.")
    text = TEXT_DEFAULTS | (config.get("text_config") or {})
    vision = VISION_DEFAULTS | (config.get("vision_config") or {})
    for side in (text, vision):
        if side["layer_norm_eps"] != LAYER_NORM_EPS:
            raise _refusal("config.json", "layer_norm_eps", side["layer_norm_eps"], LAYER_NORM_EPS)
    if text["hidden_act"] not in ACTIVATIONS or text["hidden_act"] != vision["hidden_act"]:
        both = (text["hidden_act"], vision["hidden_act"])
        raise _refusal("config.json", "hidden_act of text and vision", both, "quick_gelu or gelu, the same for both")
    names = _map_names(vision["num_hidden_layers"], text["num_hidden_layers"])
    weights = {
        ours: _join(state_dict, theirs) for ours, theirs in names.items() if set(theirs.names) <= set(state_dict)
    }
    used = {name for theirs in names.values() for name in theirs.names}
    more = [key for key in state_dict if key not in used and not key.endswith(".position_ids")]
    if more:
        found = f"config.json: describes {len(names)} tensors, and {len(more)} more were found, such as {more[0]!r}"
        raise CheckpointError("weights", found, remedy="Pass the config.json of these weights.")
    architecture = infer_architecture(
        weights,
        activation=ACTIVATIONS[text["hidden_act"]],
        vision_heads=vision["num_attention_heads"],
        transformer_heads=text["num_attention_heads"],
    )
    configured = {
        "vision_layers": vision["num_hidden_layers"],
        "vision_width": vision["hidden_size"],
        "vision_mlp_width": vision["intermediate_size"],
        "vision_patch_size": vision["patch_size"],
        "image_resolution": vision["image_size"],
        "embed_dim": config.get("projection_dim", 512),
        "context_length": text["max_position_embeddings"],
        "vocab_size": text["vocab_size"],
        "transformer_width": text["hidden_size"],
        "transformer_mlp_width": text["intermediate_size"],
        "transformer_layers": text["num_hidden_layers"],
    }
    _check_agreement("config.json", architecture, configured)
    settings = _read_transformers_preprocess(preprocessor, architecture.image_resolution)
    return Layout(weights, architecture, settings)


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


def _join(state_dict: dict[str, Tensor], theirs: _Theirs) -> Tensor:
    first, *others = [state_dict[name] for name in theirs.names]
    if others:
        return torch.cat([first, *others])
    return first.T if theirs.transposed else first


def from_open_clip(state_dict: dict[str, Tensor], config: dict[str, Any]) -> Layout:
    """Translate an open_clip model's weights, which have OpenAI's names, and its open_clip_config.json.

    Raises:  CheckpointError that names the setting for SigLIP, CoCa, towers of other libraries and any other setting
             that this network cannot have; and for a configuration that contradicts the weights.
    """
    model = config.get("model_cfg")
    if not isinstance(model, dict):
        found = "open_clip_config.json: has no model_cfg"
        raise CheckpointError("weights", found, remedy="Pass the configuration of an open_clip model.")
    vision, text = model.get("vision_cfg") or {}, model.get("text_cfg") or {}
    _check_settings(model, OPEN_CLIP_MODEL, {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu"})
    _check_settings(vision, OPEN_CLIP_VISION, OPEN_CLIP_VISION_READ)
    _check_settings(text, OPEN_CLIP_TEXT, OPEN_CLIP_TEXT_READ)
    for tower, key in ((vision, "act_kwargs"), (vision, "norm_kwargs"), (text, "act_kwargs"), (text, "norm_kwargs"),
                       (text, "tokenizer_kwargs")):  # fmt: skip
        if tower.get(key):
            raise _refusal("open_clip_config.json", key, tower[key], "none")

    width, layers = vision.get("width", 768), vision.get("layers", 12)
    vit = not isinstance(layers, list)
    architecture = infer_architecture(
        state_dict,
        activation="quick_gelu" if model.get("quick_gelu", False) else "gelu",
        vision_heads=width // vision.get("head_width", 64) if vit else None,
        transformer_heads=text.get("heads", 8),
    )
    configured = {
        "embed_dim": model.get("embed_dim"),
        "image_resolution": vision.get("image_size", 224),
        "vision_layers": layers if vit else tuple(layers),
        "vision_width": width,
        "context_length": text.get("context_length", 77),
        "vocab_size": text.get("vocab_size", 49408),
        "transformer_width": text.get("width", 512),
        "transformer_layers": text.get("layers", 12),
    }
    if vit:
        configured["vision_patch_size"] = vision.get("patch_size", 16)
        configured["vision_mlp_width"] = int(width * vision.get("mlp_ratio", 4.0))
    configured["transformer_mlp_width"] = int(configured["transformer_width"] * text.get("mlp_ratio", 4.0))
    _check_agreement("open_clip_config.json", architecture, configured)
    settings = _read_open_clip_preprocess(config.get("preprocess_cfg") or {}, architecture)
    return Layout(state_dict, architecture, settings)


def from_header(state_dict: dict[str, Tensor], header: dict[str, Any]) -> Layout:
    """Read the records that `checkpoints.export` wrote into the header of weights with OpenAI's names.

    Raises:  CheckpointError for records that are not ours or contradict the weights.
    """
    try:
        arguments = dict(header["architecture"])
        if isinstance(arguments["vision_layers"], list):
            arguments["vision_layers"] = tuple(arguments["vision_layers"])
        stated = Architecture(**arguments)
        preprocess = dict(header["preprocess"])
        preprocess |= {name: _to_triple(preprocess[name]) for name in ("mean", "std")}
        settings = PreprocessSettings(**preprocess)
    except (KeyError, TypeError, ValueError) as exc:
        found = f"header: not one that clip-turbo wrote ({exc})"
        raise CheckpointError("weights", found, "architecture and preprocess", EXPORT_AGAIN) from exc
    if stated.activation not in ACTIVATIONS or settings.interpolation not in INTERPOLATIONS.values():
        both = (stated.activation, settings.interpolation)
        raise _refusal("header", "activation, interpolation", both, "known ones")
    architecture = infer_architecture(
        state_dict,
        activation=stated.activation,
        vision_heads=stated.vision_heads,
        transformer_heads=stated.transformer_heads,
    )
    if architecture != stated:
        found = f"header: describes {stated}, and the weights' shapes {architecture}"
        raise CheckpointError("weights", found, "the same", EXPORT_AGAIN)
    merges = header.get("merges")
    tokenizer = None if merges is None else make_tokenizer(merges, architecture.vocab_size)
    return Layout(state_dict, architecture, settings, tokenizer)


def _check_settings(settings: dict[str, Any], only: dict[str, Any], read: set[str]) -> None:
    """Raise CheckpointError for a setting with another value than in `only`, and for one that nothing here knows."""
    for key, value in settings.items():
        if key in only and value != only[key] and value not in (None, "default"):
            kind = f" ({KINDS[key]})" if key in KINDS else ""
            raise _refusal("open_clip_config.json", key + kind, value, only[key])
        if key not in only and key not in read and key not in OPEN_CLIP_IDLE:
            raise _refusal("open_clip_config.json", key, value, "a setting we know")


def _refusal(file: str, key: str, value: object, expected: object) -> CheckpointError:
    """Return the error for a setting that makes another network or transform than CLIP's."""
    remedy = "Use the library that the weights come from: this is another network or transform than CLIP's."
    return CheckpointError("weights", f"{file}: {key[:MAX_SHOWN]} is {reprlib.repr(value)}", str(expected), remedy)


def _check_agreement(file: str, architecture: Architecture, configured: dict[str, Any]) -> None:
    """Raise CheckpointError where a configuration differs from the shapes: one of the two files is wrong."""
    shapes = vars(architecture) | {
        "vision_mlp_width": architecture.vision_mlp_width or architecture.vision_width * MLP_RATIO,
        "transformer_mlp_width": architecture.transformer_mlp_width or architecture.transformer_width * MLP_RATIO,
    }
    for key, value in configured.items():
        if shapes[key] != value:
            found = f"{file}: {key} is {reprlib.repr(value)}, and {shapes[key]} by the weights' shapes"
            raise CheckpointError("weights", found, "the same", "Pass the configuration of these weights.")


def _read_open_clip_preprocess(config: dict[str, Any], architecture: Architecture) -> PreprocessSettings:
    file, settings = "preprocess_cfg", PreprocessSettings(architecture.image_resolution)
    _check_preprocess(file, config, {"mode": "RGB", "fill_color": 0})
    size = config.get("size", architecture.image_resolution)
    sides = set(size[-2:] if isinstance(size, (list, tuple)) else [size])
    if sides != {architecture.image_resolution}:
        raise _refusal(file, "size", size, architecture.image_resolution)
    interpolation, resize_mode = config.get("interpolation", "bicubic"), config.get("resize_mode", "shortest")
    return replace(
        settings,
        mean=_to_triple(config.get("mean", settings.mean)),
        std=_to_triple(config.get("std", settings.std)),
        interpolation=_check_choice(file, "interpolation", interpolation, get_args(Interpolation)),
        resize_mode=_check_choice(file, "resize_mode", resize_mode, get_args(ResizeMode)),
    )


def _read_transformers_preprocess(config: dict[str, Any] | None, resolution_px: int) -> PreprocessSettings:
    file, settings = "preprocessor_config.json", PreprocessSettings(resolution_px)
    if config is None:
        return settings
    steps = ("do_resize", "do_center_crop", "do_normalize", "do_rescale", "do_convert_rgb")
    _check_preprocess(file, config, dict.fromkeys(steps, True))
    if abs(config.get("rescale_factor", 1 / 255) - 1 / 255) > 1e-9:
        raise _refusal(file, "rescale_factor", config["rescale_factor"], 1 / 255)
    for key, names in (("size", ("shortest_edge",)), ("crop_size", ("height", "width"))):
        size = config.get(key, resolution_px)
        sides = [size] if isinstance(size, int) else [size.get(name) for name in names]
        if set(sides) != {resolution_px}:
            raise _refusal(file, key, size, resolution_px)
    resample = config.get("resample", 3)
    if resample not in INTERPOLATIONS:
        raise _refusal(file, "resample", resample, INTERPOLATIONS)
    return replace(
        settings,
        mean=_to_triple(config.get("image_mean", settings.mean)),
        std=_to_triple(config.get("image_std", settings.std)),
        interpolation=INTERPOLATIONS[resample],
    )


def _check_preprocess(file: str, config: dict[str, Any], only: dict[str, Any]) -> None:
    for key, value in only.items():
        if config.get(key, value) != value:
            raise _refusal(file, key, config[key], value)


def _check_choice(file: str, key: str, value: Any, choices: tuple[str, ...]) -> Any:
    if value not in choices:
        raise _refusal(file, key, value, choices)
    return value


def _to_triple(numbers: Any) -> Triple:
    red, green, blue = (float(number) for number in numbers)
    return (red, green, blue)
