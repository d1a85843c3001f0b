"""Read what a configuration says of a CLIP: what the shapes of its weights leave open, and what they must agree with.

transformers writes a config.json, open_clip an open_clip_config.json. Weights alone show neither the activation nor the
number of heads, nor mean and interpolation of the pixels. A setting that this network cannot have is refused by name,
and so is one that contradicts the weights. Sizes come from the weights: nothing is built from a number in a
configuration.
"""

from __future__ import annotations

import json
import math
import reprlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, get_args

from ..errors import MAX_SHOWN, CheckpointError, quote
from ..network.architecture import HEAD_WIDTH, MLP_RATIO, check_sizes, infer_architecture
from ..network.records import (
    OPENAI_MEAN,
    OPENAI_STD,
    Activation,
    Architecture,
    Interpolation,
    PreprocessSettings,
    ResizeMode,
    Triple,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

OPEN_CLIP_CONFIG, TRANSFORMERS_CONFIG = "open_clip_config.json", "config.json"
# Where transformers writes how pixels are made; the second since version 5, with tokenizer and images in one file.
PREPROCESS_CONFIG, PROCESSOR_CONFIG = "preprocessor_config.json", "processor_config.json"
MAX_JSON_BYTES = 16 * 2**20  # an index of 60,000 tensors takes 8 MB
MAX_NUMBER = 2**31  # no size in a configuration reaches it
LAYER_NORM_EPS = 1e-5
ARGMAX_EOS = 2  # by which transformers means: pool where the highest token id is
ACTIVATIONS: dict[str, Activation] = {"quick_gelu": "quick_gelu", "gelu": "gelu"}
INTERPOLATIONS: dict[int, Interpolation] = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers, as transformers has them
OTHER_LIBRARY = "Use the library that the weights come from: this is another network or transform than CLIP's."

# Values that transformers omits from a config.json; CLIPTextConfig and CLIPVisionConfig of 5.23.
TOWER_DEFAULTS: dict[str, Any] = {
    "num_hidden_layers": 12, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "projection_dim": 512,
}  # fmt: skip
TEXT_DEFAULTS = TOWER_DEFAULTS | {
    "vocab_size": 49408, "hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8,
    "max_position_embeddings": 77, "eos_token_id": 49407,
}  # fmt: skip
VISION_DEFAULTS = TOWER_DEFAULTS | {
    "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "image_size": 224, "patch_size": 32,
    "num_channels": 3,
}  # fmt: skip

# Settings of open_clip that change what the network computes, with the one value that this network has.
SAME_BLOCKS = {
    "ls_init_value": None, "final_ln_after_pool": False, "block_type": None, "qk_norm": False,
    "scaled_cosine_attn": False, "scale_heads": False, "scale_attn_inner": False, "scale_attn": False,
    "scale_fc": False, "act_kwargs": None, "norm_kwargs": None,
}  # fmt: skip
OPEN_CLIP_VISION = SAME_BLOCKS | {
    "attentional_pool": False, "no_ln_pre": False, "pos_embed_type": "learnable", "pool_type": "tok",
    "global_average_pool": False, "timm_model_name": None,
}  # fmt: skip
OPEN_CLIP_TEXT = SAME_BLOCKS | {
    "hf_model_name": None, "hf_tokenizer_name": None, "tokenizer_mode": None, "tokenizer_kwargs": None,
    "embed_cls": False, "no_causal_mask": False, "pool_type": "argmax", "proj_bias": False, "proj_type": "linear",
}  # fmt: skip
OPEN_CLIP_MODEL = {
    "multimodal_cfg": None, "custom_text": False, "init_logit_bias": None, "nonscalar_logit_scale": False,
}  # fmt: skip
OPEN_CLIP_PREPROCESS = {"mode": "RGB", "fill_color": 0}
# Settings that are read below.
OPEN_CLIP_READ = {"width", "layers", "mlp_ratio"}
OPEN_CLIP_VISION_READ = OPEN_CLIP_READ | {"image_size", "head_width", "patch_size"}
OPEN_CLIP_TEXT_READ = OPEN_CLIP_READ | {"context_length", "vocab_size", "heads"}
OPEN_CLIP_PREPROCESS_READ = {"size", "mean", "std", "interpolation", "resize_mode"}
# Settings that matter only in training, or only together with one of OPEN_CLIP_VISION or OPEN_CLIP_TEXT.
OPEN_CLIP_IDLE = frozenset(
    {"patch_dropout", "attn_pooler_queries", "attn_pooler_heads", "output_tokens", "timm_model_pretrained", "timm_pool",
     "timm_proj", "timm_proj_bias", "timm_drop", "timm_drop_path", "pad_id", "eos_id", "hf_model_pretrained",
     "hf_proj_type", "hf_pooler_type", "init_logit_scale"}
)  # fmt: skip
KINDS = {"multimodal_cfg": "CoCa", "init_logit_bias": "SigLIP", "hf_model_name": "a Hugging Face text tower",
         "timm_model_name": "a timm vision tower"}  # fmt: skip


@dataclass(frozen=True)
class Configuration:
    """What is known of a CLIP besides its weights."""

    origin: str  # the file or the name that says so, for errors
    activation: Activation
    vision_heads: int | None  # None for a ResNet
    transformer_heads: int
    sizes: dict[str, Any]  # fields of `Architecture` that it states too, by name
    preprocess: PreprocessSettings | None = None  # None: OpenAI's

    network = "a CLIP"  # for errors

    @classmethod
    def of_architecture(cls, name: str, a: Architecture) -> Configuration:
        """Return what the name of a network says. Training may change the size of images, texts and vocabulary."""
        kept = ("embed_dim", "vision_layers", "vision_width", "vision_patch_size", "transformer_width",
                "transformer_layers")  # fmt: skip
        sizes = {field: getattr(a, field) for field in kept} | _mlp_widths(a)
        heads = None if isinstance(a.vision_layers, tuple) else a.vision_heads or a.vision_width // HEAD_WIDTH
        return cls(name, a.activation, heads, a.transformer_heads, sizes)

    def apply(self, state_dict: Mapping[str, Tensor]) -> tuple[Architecture, PreprocessSettings]:
        """Return the architecture of these weights, and how their pixels are made.

        Raises:  CheckpointError where the shapes are others than the configuration states: one of the two is wrong.
        """
        architecture = infer_architecture(
            state_dict,
            activation=self.activation,
            vision_heads=self.vision_heads,
            transformer_heads=self.transformer_heads,
        )
        shapes = vars(architecture) | _mlp_widths(architecture)
        check_sizes(self.sizes, shapes, self.origin)
        return architecture, self.preprocess or PreprocessSettings(architecture.image_resolution)


def _mlp_widths(a: Architecture) -> dict[str, int]:
    vision = {} if isinstance(a.vision_layers, tuple) else {"vision_mlp_width": a.vision_mlp_width}
    widths = {"vision": a.vision_width, "transformer": a.transformer_width}
    stated = vision | {"transformer_mlp_width": a.transformer_mlp_width}
    return {key: value or widths[key.partition("_")[0]] * MLP_RATIO for key, value in stated.items()}


def load_json(path: Path) -> Any:
    """Return the value in a file. Raises: CheckpointError where it is not JSON, or above 16 MiB."""
    if path.stat().st_size > MAX_JSON_BYTES:
        found = f"{path.name} takes {path.stat().st_size:,} bytes"
        raise CheckpointError(path.parent, found, f"a configuration of at most {MAX_JSON_BYTES:,}", "Fetch it again.")
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as exc:
        found = f"{path.name} is not JSON ({quote(str(exc))})"
        raise CheckpointError(path.parent, found, "a configuration", "Fetch it again.") from exc


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a file. Raises: CheckpointError for anything else."""
    content = load_json(path)
    if not isinstance(content, dict):
        found = f"{path.name} holds a {type(content).__name__}"
        raise CheckpointError(path.parent, found, "an object", "Fetch it again.")
    return content


def read_configuration(file: Path) -> Configuration:
    """Return what a config.json, an open_clip_config.json or a model file of open_clip says, by its content.

    Raises:  CheckpointError for any other file, and for a network or transform that is not CLIP's.
    """
    content = read_json(file)
    if "model_cfg" in content:
        return from_open_clip(content, file.name)
    if "vision_cfg" in content:
        return from_open_clip({"model_cfg": content}, file.name)
    return from_transformers_config(content, read_preprocess(file.parent), file.name)


def read_preprocess(folder: Path) -> tuple[str, dict[str, Any]]:
    """Return the name and content of the file in which transformers says how pixels are made; of none, nothing."""
    file, processor = folder / PREPROCESS_CONFIG, folder / PROCESSOR_CONFIG
    content = read_json(processor).get("image_processor") if processor.is_file() else None
    if isinstance(content, dict):  # it wins in transformers too
        return processor.name, content
    return file.name, read_json(file) if file.is_file() else {}


def from_transformers_config(
    config: dict[str, Any], preprocess: tuple[str, dict[str, Any]], file: str = TRANSFORMERS_CONFIG
) -> Configuration:
    """Read the configuration of a CLIPModel, as transformers itself reads it.

    Raises:  CheckpointError for another kind of model, and a network or transform that is not CLIP's.
    """
    if config.get("model_type") != "clip":
        found = f"{file}: model_type is {reprlib.repr(config.get('model_type'))}"
        raise CheckpointError("weights", found, "'clip'", "Pass a CLIPModel.")
    text = read_tower(file, config, "text_config", TEXT_DEFAULTS)
    vision = read_tower(file, config, "vision_config", VISION_DEFAULTS)
    dim = read_count(file, config, "projection_dim", 512)
    for tower in (text, vision):
        _check_tower(file, tower, dim)
    _check_pooling(file, text)
    if text["hidden_act"] not in list(ACTIVATIONS) or text["hidden_act"] != vision["hidden_act"]:
        both = (text["hidden_act"], vision["hidden_act"])
        raise refuse(file, "hidden_act of text and vision", both, "quick_gelu or gelu, the same for both")
    if vision["num_channels"] != 3:
        raise refuse(file, "num_channels", vision["num_channels"], 3)
    for key in ("hidden_act", "layer_norm_eps", "eos_token_id"):  # transformers reads them of the towers alone
        if config.get(key) not in (None, text[key]):
            raise refuse(file, key, config[key], f"{reprlib.repr(text[key])}, as in text_config")
    resolution = read_side(file, vision, "image_size")
    sizes = {
        "vision_layers": read_count(file, vision, "num_hidden_layers"),
        "vision_width": read_count(file, vision, "hidden_size"),
        "vision_mlp_width": read_count(file, vision, "intermediate_size"),
        "vision_patch_size": read_side(file, vision, "patch_size"),
        "image_resolution": resolution,
        "embed_dim": dim,
        "context_length": read_count(file, text, "max_position_embeddings"),
        "vocab_size": read_count(file, text, "vocab_size"),
        "transformer_width": read_count(file, text, "hidden_size"),
        "transformer_mlp_width": read_count(file, text, "intermediate_size"),
        "transformer_layers": read_count(file, text, "num_hidden_layers"),
    }
    heads = [read_count(file, tower, "num_attention_heads") for tower in (vision, text)]
    settings = read_transformers_preprocess(*preprocess, resolution)
    return Configuration(file, ACTIVATIONS[text["hidden_act"]], heads[0], heads[1], sizes, settings)


def read_tower(file: str, config: dict[str, Any], name: str, defaults: dict[str, Any]) -> dict[str, Any]:
    """Return a tower's settings. One under `text_config_dict` replaces `text_config` whole, as in transformers."""
    stated = config.get(f"{name}_dict")
    stated = config.get(name) if stated is None else stated
    if not isinstance(stated, (dict, type(None))):
        raise refuse(file, name, stated, "an object")
    return defaults | (stated or {})


def _check_tower(file: str, tower: dict[str, Any], dim: int) -> None:
    if tower["layer_norm_eps"] != LAYER_NORM_EPS:
        raise refuse(file, "layer_norm_eps", tower["layer_norm_eps"], LAYER_NORM_EPS)
    # A CLIPModel projects to the size of its own; transformers used to write 512 into the towers of all models.
    if tower["projection_dim"] not in (dim, TOWER_DEFAULTS["projection_dim"]):
        raise refuse(file, "projection_dim of a tower", tower["projection_dim"], dim)


def _check_pooling(file: str, text: dict[str, Any]) -> None:
    """Refuse another token to pool at than the highest, which is where this network pools."""
    highest = read_count(file, text, "vocab_size") - 1
    if type(text["eos_token_id"]) is not int or text["eos_token_id"] not in (ARGMAX_EOS, highest):
        raise refuse(file, "eos_token_id", text["eos_token_id"], f"{ARGMAX_EOS} or {highest}, the highest token")


def from_open_clip(config: dict[str, Any], file: str = OPEN_CLIP_CONFIG) -> Configuration:
    """Read open_clip's configuration of a model.

    Raises:  CheckpointError that names the setting for SigLIP, CoCa, towers of other libraries and any other setting
             that this network cannot have.
    """
    model = config.get("model_cfg")
    towers = [model.get(side) if isinstance(model, dict) else None for side in ("vision_cfg", "text_cfg")]
    if not isinstance(model, dict) or not all(isinstance(tower, (dict, type(None))) for tower in towers):
        found = f"{file}: has no model_cfg"
        raise CheckpointError("weights", found, remedy="Pass the configuration of an open_clip model.")
    vision, text = (tower or {} for tower in towers)
    check_settings(file, model, OPEN_CLIP_MODEL, {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu"})
    check_settings(file, vision, OPEN_CLIP_VISION, OPEN_CLIP_VISION_READ)
    check_settings(file, text, OPEN_CLIP_TEXT, OPEN_CLIP_TEXT_READ)
    if not isinstance(model.get("quick_gelu", False), bool):
        raise refuse(file, "quick_gelu", model["quick_gelu"], "true or false")
    width, text_width = read_count(file, vision, "width", 768), read_count(file, text, "width", 512)
    head_width, layers = read_count(file, vision, "head_width", HEAD_WIDTH), vision.get("layers", 12)
    resolution = read_side(file, vision, "image_size", 224)
    sizes: dict[str, Any] = {
        "embed_dim": read_count(file, model, "embed_dim"),
        "image_resolution": resolution,
        "vision_width": width,
        "context_length": read_count(file, text, "context_length", 77),
        "vocab_size": read_count(file, text, "vocab_size", 49408),
        "transformer_width": text_width,
        "transformer_mlp_width": read_mlp_width(file, text, text_width),
        "transformer_layers": read_count(file, text, "layers", 12),
    }
    if isinstance(layers, list):
        sizes["vision_layers"] = tuple(layers)
        if head_width != HEAD_WIDTH:
            raise refuse(file, "head_width of a ResNet", head_width, HEAD_WIDTH)
    else:
        sizes["vision_layers"] = read_count(file, vision, "layers", 12)
        sizes["vision_patch_size"] = read_side(file, vision, "patch_size", 16)
        sizes["vision_mlp_width"] = read_mlp_width(file, vision, width)
    heads = None if isinstance(layers, list) else max(1, width // head_width)
    pixels = config.get("preprocess_cfg")
    return Configuration(
        file,
        "quick_gelu" if model.get("quick_gelu", False) else "gelu",
        heads,
        read_count(file, text, "heads", 8),
        sizes,
        None if pixels is None else read_open_clip_preprocess(pixels, resolution),
    )


def check_settings(file: str, settings: dict[str, Any], only: Mapping[str, Any], read: set[str]) -> None:
    """Raise CheckpointError for a setting with another value than in `only`, and for one that nothing here knows."""
    for key, value in settings.items():
        same = value in (None, {}) or (value == "default" and key == "block_type")
        if key in only and value != only[key] and not same:
            kind = f" ({KINDS[key]})" if key in KINDS else ""
            raise refuse(file, key + kind, value, only[key])
        if key not in only and key not in read and key not in OPEN_CLIP_IDLE:
            raise refuse(file, key, value, "a setting we know")


def refuse(file: str, key: str, value: object, expected: object) -> CheckpointError:
    """Return the error for a setting that makes another network or transform than CLIP's."""
    found = f"{file}: {key[:MAX_SHOWN]} is {reprlib.repr(value)}"
    return CheckpointError("weights", found, str(expected), OTHER_LIBRARY)


def read_count(file: str, settings: Mapping[str, Any], key: str, default: object = None) -> int:
    """Return a whole number above 0. Python would multiply a text or a list by the next one."""
    value = settings.get(key, default)
    if type(value) is not int or not 0 < value < MAX_NUMBER:
        raise refuse(file, key, value, "a whole number above 0")
    return value


def read_side(file: str, settings: Mapping[str, Any], key: str, default: object = None) -> int:
    """Return the side of a square, which may be given as two."""
    value = settings.get(key, default)
    sides: list[Any] = value if isinstance(value, list) else [value]
    if len(sides) not in (1, 2) or any(side != sides[0] for side in sides):
        raise refuse(file, key, value, "one side of a square")
    return read_count(file, {key: sides[0]}, key)


def read_mlp_width(file: str, tower: Mapping[str, Any], width: int) -> int:
    """Return the width of the MLPs of a tower of this width, which open_clip states as a ratio."""
    ratio = tower.get("mlp_ratio", float(MLP_RATIO))
    if type(ratio) not in (int, float) or not 0 < ratio < MAX_NUMBER:
        raise refuse(file, "mlp_ratio", ratio, "a number above 0")
    return int(width * ratio)


def read_triple(file: str, key: str, numbers: object, *, above: float = -math.inf) -> Triple:
    """Return three finite numbers above a bound, for the colours. Raises: CheckpointError for anything else."""
    triple = tuple(map(float, numbers)) if isinstance(numbers, (list, tuple)) and len(numbers) == 3 else ()
    if len(triple) != 3 or not all(math.isfinite(number) and number > above for number in triple):
        raise refuse(file, key, numbers, "three numbers" + (f" above {above:g}" if above > -math.inf else ""))
    return triple


def read_open_clip_preprocess(config: Any, resolution_px: int) -> PreprocessSettings:
    """Read how open_clip makes pixels. Raises: CheckpointError for another transform."""
    file, settings = "preprocess_cfg", PreprocessSettings(resolution_px)
    if not isinstance(config, dict):
        raise refuse(file, "it", config, "an object")
    check_settings(file, config, OPEN_CLIP_PREPROCESS, OPEN_CLIP_PREPROCESS_READ)
    size = config.get("size", resolution_px)
    if read_side(file, {"size": size[-2:] if isinstance(size, list) else size}, "size") != resolution_px:
        raise refuse(file, "size", size, resolution_px)
    interpolation, resize_mode = config.get("interpolation", "bicubic"), config.get("resize_mode", "shortest")
    return replace(
        settings,
        mean=read_triple(file, "mean", config.get("mean", OPENAI_MEAN)),
        std=read_triple(file, "std", config.get("std", OPENAI_STD), above=0),
        interpolation=read_choice(file, "interpolation", interpolation, get_args(Interpolation)),
        resize_mode=read_choice(file, "resize_mode", resize_mode, get_args(ResizeMode)),
    )


def read_transformers_preprocess(file: str, config: dict[str, Any], resolution_px: int) -> PreprocessSettings:
    """Read how transformers makes pixels. Raises: CheckpointError for another transform than CLIP's."""
    for step in ("do_resize", "do_center_crop", "do_normalize", "do_rescale", "do_convert_rgb"):
        if config.get(step, True) is not True:
            raise refuse(file, step, config[step], True)
    if config.get("do_pad"):
        raise refuse(file, "do_pad", config["do_pad"], False)
    factor = config.get("rescale_factor", 1 / 255)
    if type(factor) not in (int, float) or abs(factor - 1 / 255) > 1e-9:
        raise refuse(file, "rescale_factor", factor, 1 / 255)
    for key, names in (("size", {"shortest_edge"}), ("crop_size", {"height", "width"})):
        size = config.get(key, resolution_px)
        same = set(size) == names and set(size.values()) == {resolution_px} if isinstance(size, dict) else None
        if not (size == resolution_px if same is None else same):
            raise refuse(file, key, size, resolution_px)
    resample = config.get("resample", 3)
    if type(resample) is not int or resample not in INTERPOLATIONS:
        raise refuse(file, "resample", resample, INTERPOLATIONS)
    mean = read_triple(file, "image_mean", config.get("image_mean", OPENAI_MEAN))
    std = read_triple(file, "image_std", config.get("image_std", OPENAI_STD), above=0)
    return PreprocessSettings(resolution_px, mean, std, INTERPOLATIONS[resample])


def read_choice(file: str, key: str, value: Any, choices: tuple[str, ...]) -> Any:
    """Return one of the words. Raises: CheckpointError for another."""
    if value not in choices:
        raise refuse(file, key, value, choices)
    return value
