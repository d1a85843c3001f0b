"""Read the weights of a SigLIP with its configuration and its vocabulary, in transformers' layout or in open_clip's.

Shapes show neither heads nor activations, and the two libraries differ in activations: transformers has tanh's
approximation of GELU everywhere, open_clip the exact one in most models of SigLIP 1, and in the image side of some of
SigLIP 2. So vectors are those of the library that the configuration is of, and without one nothing is assumed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ..errors import CheckpointError, CheckpointKeyError
from ..network.architecture import check_sizes, infer_siglip
from ..network.records import Checkpoint, Gelu, PreprocessSettings, SiglipArchitecture
from ..tokenizer_file import TOKENIZER_CONFIG, TOKENIZER_FILE, Clean, TokenizerFile, read_tokenizer_file
from .configurations import (
    INTERPOLATIONS,
    MAX_JSON_BYTES,
    OPEN_CLIP_CONFIG,
    OPEN_CLIP_MODEL,
    OPEN_CLIP_TEXT,
    OPEN_CLIP_TEXT_READ,
    OPEN_CLIP_VISION,
    TRANSFORMERS_CONFIG,
    check_settings,
    read_count,
    read_json,
    read_mlp_width,
    read_open_clip_preprocess,
    read_side,
    read_tower,
    read_triple,
    refuse,
)
from .origin import Stated, refuse_network, refuse_origin
from .siglip_layouts import PROBE, SIGLIP_ONLY, SiglipNaming, to_siglip

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from .layouts import Place

LAYER_NORM_EPS = 1e-6
MEAN = STD = (0.5, 0.5, 0.5)
NAFLEX = "a NaFlex model of SigLIP 2, which reads images in their own shape"
FIXED = "a SigLIP of fixed resolution, such as google/siglip2-base-patch16-224"
ACTIVATIONS: dict[str, Gelu] = {"gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}
MAX_TOKENIZER_BYTES = 8 * MAX_JSON_BYTES  # that of SigLIP 2 takes 34 MB
# Values that transformers omits from a config.json; SiglipTextConfig and SiglipVisionConfig of 5.23.
TOWER_DEFAULTS: dict[str, Any] = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": LAYER_NORM_EPS,
}  # fmt: skip
TEXT_DEFAULTS = TOWER_DEFAULTS | {"vocab_size": 32000, "max_position_embeddings": 64, "projection_size": None}
VISION_DEFAULTS = TOWER_DEFAULTS | {"image_size": 224, "patch_size": 16, "num_channels": 3, "vision_use_head": True}
# Settings of open_clip whose values a CLIP has not, each with the one that a SigLIP has; and what is read below.
MODEL_ONLY = {"custom_text": True}
VISION_ONLY = {"timm_pool": "map", "timm_proj": "none"}
TEXT_ONLY: dict[str, Any] = {
    "no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": LAYER_NORM_EPS},
    "tokenizer_kwargs": {"clean": "canonicalize"},
}  # fmt: skip
MODEL_READ = {"embed_dim", "vision_cfg", "text_cfg", "init_logit_bias"}
VISION_READ = {"image_size", "timm_model_name"}
TEXT_READ = OPEN_CLIP_TEXT_READ | {"act_kwargs", "hf_tokenizer_name"}
TIMM_NAME = re.compile(r"vit_(base|large|so400m|giantopt)_patch(14|16|32)_siglip_(\d{3})")
TIMM_HEADS = {"base": 12, "large": 16, "so400m": 16, "giantopt": 16}
TIMM_TANH = re.compile(r"base_patch32|large_patch16_siglip_512|so400m_patch16|giantopt")  # timm 1.0.31; others: exact
# embed_dim, vision_layers, vision_width, vision_mlp_width, text width, text layers, text heads, text MLP width
_WIDTHS = {
    "B": (768, 12, 768, 3072, 768, 12, 12, 3072),
    "L": (1024, 24, 1024, 4096, 1024, 24, 16, 4096),
    "SO400M": (1152, 27, 1152, 4304, 1152, 27, 16, 4304),
    "gopt": (1536, 40, 1536, 6144, 1152, 27, 16, 4304),
}
_TIMM_WIDTHS = {"B": "base", "L": "large", "SO400M": "so400m", "gopt": "giantopt"}
# The sides of images in open_clip's names; 224 is left out of a name. open_clip 3.3.0 model_configs.
_SIDES = {
    "ViT-B-16-SigLIP": (224, 256, 384, 512), "ViT-L-16-SigLIP": (256, 384), "ViT-SO400M-14-SigLIP": (224, 378, 384),
    "ViT-B-32-SigLIP2": (256,), "ViT-B-16-SigLIP2": (224, 256, 384, 512), "ViT-L-16-SigLIP2": (256, 384, 512),
    "ViT-SO400M-14-SigLIP2": (224, 378), "ViT-SO400M-16-SigLIP2": (256, 384, 512), "ViT-gopt-16-SigLIP2": (256, 384),
}  # fmt: skip
SIGLIP_NAMES = {
    base if side == 224 else f"{base}-{side}": (base, side) for base, sides in _SIDES.items() for side in sides
}


@dataclass(frozen=True)
class SiglipConfiguration:
    """What is known of a SigLIP besides its weights."""

    origin: str  # the file or the name that says so, for errors
    vision_heads: int
    transformer_heads: int
    vision_activation: Gelu
    text_activation: Gelu
    sizes: dict[str, Any]  # fields of `SiglipArchitecture` that it states too, by name
    preprocess: PreprocessSettings
    clean: Clean | None  # how texts are cleaned; None: as transformers does

    network = "a SigLIP"  # for errors

    def apply(self, state_dict: Mapping[str, Tensor]) -> tuple[SiglipArchitecture, PreprocessSettings]:
        """Return the architecture of these weights, under our names, and how their pixels are made.

        Raises:  CheckpointError where the shapes are others than the configuration states: one of the two is wrong.
        """
        architecture = infer_siglip(
            state_dict,
            vision_heads=self.vision_heads,
            transformer_heads=self.transformer_heads,
            vision_activation=self.vision_activation,
            text_activation=self.text_activation,
            image_resolution=self.preprocess.resolution_px,
        )
        stated = self.sizes | {"image_resolution": self.preprocess.resolution_px}
        check_sizes(stated, {key: getattr(architecture, key) for key in stated}, self.origin)
        return architecture, self.preprocess


def find_siglip(name: str) -> SiglipArchitecture | None:
    """Return the network of one of open_clip's names; None for any other text."""
    if name not in SIGLIP_NAMES:
        return None
    base, side = SIGLIP_NAMES[name]
    _, size, patch, generation = base.split("-")
    dim, layers, width, mlp_width, text_width, text_layers, text_heads, text_mlp_width = _WIDTHS[size]
    second = generation == "SigLIP2"
    tanh = TIMM_TANH.search(f"{_TIMM_WIDTHS[size]}_patch{patch}_siglip_{side}")
    return SiglipArchitecture(
        embed_dim=dim,
        image_resolution=side,
        vision_layers=layers,
        vision_width=width,
        vision_patch_size=int(patch),
        vision_heads=TIMM_HEADS[_TIMM_WIDTHS[size]],
        vision_mlp_width=mlp_width,
        context_length=16 if name == "ViT-SO400M-14-SigLIP" else 64,
        vocab_size=256000 if second else 32000,
        transformer_width=text_width,
        transformer_heads=text_heads,
        transformer_layers=text_layers,
        transformer_mlp_width=text_mlp_width,
        vision_activation="gelu_tanh" if tanh else "gelu",
        text_activation="gelu_tanh" if second else "gelu",
    )


def name_siglip(name: str) -> SiglipConfiguration | None:
    """Return what one of open_clip's names says. Training may change the vocabulary, and the length of texts."""
    a = find_siglip(name)
    if a is None:
        return None
    kept = ("embed_dim", "vision_layers", "vision_width", "vision_patch_size", "vision_mlp_width", "transformer_width",
            "transformer_layers", "transformer_mlp_width")  # fmt: skip
    sizes = {field: getattr(a, field) for field in kept}
    settings = make_settings(a.image_resolution)
    return SiglipConfiguration(
        name, a.vision_heads, a.transformer_heads, a.vision_activation, a.text_activation, sizes, settings, "open_clip"
    )


def make_settings(resolution_px: int) -> PreprocessSettings:
    """Return how images are preprocessed for a SigLIP where no file says it."""
    return PreprocessSettings(resolution_px, MEAN, STD, "bicubic", "squash")


def find_naming(place: Place, keys: Mapping[str, object]) -> SiglipNaming | Literal["own"] | None:
    """Return whose names the weights of a SigLIP have; None where they are of another network."""
    if place.naming == "open_clip_timm":
        return "open_clip"
    if place.naming == "transformers":
        return "transformers" if any(key in keys for key in SIGLIP_ONLY) else None
    return "own" if "visual.attnpool.probe" in keys else None


def read_siglip(
    state_dict: Mapping[str, Tensor], naming: SiglipNaming | Literal["own"], file: Path, named: Stated | None
) -> Checkpoint:
    """Read the weights by the configuration that was named or lies beside them.

    Raises:  CheckpointError for another kind of SigLIP, for a configuration of another network, and without any.
    """
    patches = state_dict.get("vision_model.embeddings.patch_embedding.weight")
    if patches is not None and patches.ndim == 2:
        raise CheckpointError("weights", f"the entries are of {NAFLEX}", FIXED, "Pass one.")
    if naming == "open_clip" and PROBE["open_clip"] not in state_dict:
        found = "an open_clip model whose image tower is timm's, without the attention pool of SigLIP"
        raise CheckpointKeyError("weights", found, "a SigLIP", "Use open_clip for it.")
    weights = dict(state_dict) if naming == "own" else to_siglip(state_dict, naming)
    config = file.with_name(TRANSFORMERS_CONFIG if naming == "transformers" else OPEN_CLIP_CONFIG)
    if named is None:
        raise refuse_origin(f"weights of a SigLIP without their {config.name}")
    if not isinstance(named, SiglipConfiguration):
        raise refuse_network(named, SiglipConfiguration.network)
    tokenizer = read_tokenizer(file.parent, named.clean)
    architecture, settings = named.apply(weights)
    return Checkpoint(architecture, weights, settings, source="", tokenizer=tokenizer)


def read_tokenizer(folder: Path, clean: Clean | None) -> TokenizerFile:
    """Return the vocabulary in a folder of weights; one without a file refuses texts, and images need none."""
    file, config = folder / TOKENIZER_FILE, folder / TOKENIZER_CONFIG
    content = None
    if file.is_file():
        if file.stat().st_size > MAX_TOKENIZER_BYTES:
            found = f"takes {file.stat().st_size:,} bytes"
            raise CheckpointError(file, found, f"a vocabulary of at most {MAX_TOKENIZER_BYTES:,}", "Fetch it again.")
        content = file.read_text("utf-8")
    return read_tokenizer_file(content, read_json(config) if config.is_file() else {}, str(file), clean)


def from_transformers_siglip(
    config: dict[str, Any], preprocess: tuple[str, dict[str, Any]], file: str
) -> SiglipConfiguration:
    """Read the configuration of a SiglipModel, as transformers itself reads it.

    Raises:  CheckpointError for a NaFlex model, one tower alone, and a network or transform that is not SigLIP's.
    """
    kind, processor = config["model_type"], preprocess[1].get("image_processor_type")
    if kind == "siglip2" or str(processor).startswith("Siglip2"):
        raise CheckpointError("weights", f"{file} is of {NAFLEX}", FIXED, "Pass one.")
    if kind != "siglip":
        raise refuse(file, "model_type", kind, "siglip")
    text, vision = (
        read_tower(file, config, "text_config", TEXT_DEFAULTS),
        read_tower(file, config, "vision_config", VISION_DEFAULTS),
    )
    for tower in (text, vision):
        if tower["layer_norm_eps"] != LAYER_NORM_EPS:
            raise refuse(file, "layer_norm_eps", tower["layer_norm_eps"], LAYER_NORM_EPS)
        if tower["hidden_act"] not in list(ACTIVATIONS):
            raise refuse(file, "hidden_act", tower["hidden_act"], f"one of {list(ACTIVATIONS)}")
    for key, expected in (("num_channels", 3), ("vision_use_head", True)):
        if vision[key] != expected:
            raise refuse(file, key, vision[key], expected)
    width = read_count(file, text, "hidden_size")
    sizes = {
        "vision_layers": read_count(file, vision, "num_hidden_layers"),
        "vision_width": read_count(file, vision, "hidden_size"),
        "vision_mlp_width": read_count(file, vision, "intermediate_size"),
        "vision_patch_size": read_side(file, vision, "patch_size"),
        "embed_dim": width if text["projection_size"] is None else read_count(file, text, "projection_size"),
        "context_length": read_count(file, text, "max_position_embeddings"),
        "vocab_size": read_count(file, text, "vocab_size"),
        "transformer_width": width,
        "transformer_mlp_width": read_count(file, text, "intermediate_size"),
        "transformer_layers": read_count(file, text, "num_hidden_layers"),
    }
    return SiglipConfiguration(
        file,
        read_count(file, vision, "num_attention_heads"),
        read_count(file, text, "num_attention_heads"),
        ACTIVATIONS[vision["hidden_act"]],
        ACTIVATIONS[text["hidden_act"]],
        sizes,
        read_siglip_preprocess(*preprocess, read_side(file, vision, "image_size")),
        None,
    )


def read_siglip_preprocess(file: str, config: dict[str, Any], resolution_px: int) -> PreprocessSettings:
    """Read how transformers makes pixels for a SigLIP. Raises: CheckpointError for another transform."""
    for step in ("do_resize", "do_normalize", "do_rescale"):
        if config.get(step, True) is not True:
            raise refuse(file, step, config[step], True)
    if config.get("do_convert_rgb") is False:  # None stands in published files
        raise refuse(file, "do_convert_rgb", False, True)
    for step in ("do_center_crop", "do_pad"):
        if config.get(step):
            raise refuse(file, step, config[step], False)
    factor = config.get("rescale_factor", 1 / 255)
    if type(factor) not in (int, float) or abs(factor - 1 / 255) > 1e-9:
        raise refuse(file, "rescale_factor", factor, 1 / 255)
    size = config.get("size", {"height": resolution_px, "width": resolution_px})
    if size != {"height": resolution_px, "width": resolution_px}:
        raise refuse(file, "size", size, f"height and width of {resolution_px}, as the network's")
    resample = config.get("resample", 3)
    if type(resample) is not int or resample not in INTERPOLATIONS:
        raise refuse(file, "resample", resample, INTERPOLATIONS)
    mean = read_triple(file, "image_mean", config.get("image_mean", MEAN))
    std = read_triple(file, "image_std", config.get("image_std", STD), above=0)
    return PreprocessSettings(resolution_px, mean, std, INTERPOLATIONS[resample], "squash")


def check_open_clip(
    file: str, settings: dict[str, Any], others: Mapping[str, Any], only: Mapping[str, Any], read: set[str]
) -> None:
    """Raise CheckpointError as `check_settings`, and for a setting in `only` that is left out: its default is another.

    Settings that the caller has `read` may have any value.
    """
    check_settings(file, settings, {k: v for k, v in {**others, **only}.items() if k not in read}, read)
    for key, value in only.items():
        if settings.get(key) != value:
            raise refuse(file, key, settings.get(key), value)


def from_open_clip_siglip(config: dict[str, Any], file: str) -> SiglipConfiguration:
    """Read open_clip's configuration of a SigLIP, whose image tower is named after timm's.

    Raises:  CheckpointError that names the setting for any that a SigLIP of fixed resolution cannot have.
    """
    model = config["model_cfg"]
    vision, text = model["vision_cfg"], model.get("text_cfg")
    if not isinstance(text, dict):
        raise refuse(file, "text_cfg", text, "an object")
    timm = TIMM_NAME.fullmatch(str(vision["timm_model_name"]))
    if timm is None:
        naflex = "naflex" in str(vision["timm_model_name"])
        raise refuse(file, "timm_model_name", vision["timm_model_name"], f"{FIXED}, not {NAFLEX}" if naflex else FIXED)
    for settings, others, only, read in (
        (model, OPEN_CLIP_MODEL, MODEL_ONLY, MODEL_READ),
        (vision, OPEN_CLIP_VISION, VISION_ONLY, VISION_READ),
        (text, OPEN_CLIP_TEXT, TEXT_ONLY, TEXT_READ),
    ):
        check_open_clip(file, settings, others, only, read)
    act = text.get("act_kwargs") or {}
    if act not in ({}, {"approximate": "tanh"}, {"approximate": "none"}):
        raise refuse(file, "act_kwargs", act, "approximate: tanh or none")
    side = read_side(file, vision, "image_size", int(timm[3]))
    text_width = read_count(file, text, "width", 512)
    sizes = {
        "embed_dim": read_count(file, model, "embed_dim"),
        "vision_patch_size": int(timm[2]),
        "context_length": read_count(file, text, "context_length", 77),
        "vocab_size": read_count(file, text, "vocab_size", 49408),
        "transformer_width": text_width,
        "transformer_mlp_width": read_mlp_width(file, text, text_width),
        "transformer_layers": read_count(file, text, "layers", 12),
    }
    pixels = config.get("preprocess_cfg")
    return SiglipConfiguration(
        file,
        TIMM_HEADS[timm[1]],
        read_count(file, text, "heads", 8),
        "gelu_tanh" if TIMM_TANH.search(timm[0]) else "gelu",
        "gelu_tanh" if act == {"approximate": "tanh"} else "gelu",
        sizes,
        make_settings(side) if pixels is None else read_open_clip_preprocess(pixels, side),
        "open_clip",
    )
