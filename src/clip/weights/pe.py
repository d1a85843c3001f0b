"""Read the weights of a PE-Core, in Meta's layout or in open_clip's.

Shapes show no heads. Meta's files carry no configuration: the network is the published one that has all their sizes,
and for other sizes nothing is assumed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ..errors import CheckpointError
from ..network.architecture import check_sizes, infer_pe
from ..network.records import Checkpoint, PeArchitecture, PreprocessSettings
from .configurations import (
    OPEN_CLIP_CONFIG,
    OPEN_CLIP_MODEL,
    OPEN_CLIP_TEXT,
    OPEN_CLIP_TEXT_READ,
    OPEN_CLIP_VISION,
    read_count,
    read_mlp_width,
    read_open_clip_preprocess,
    read_side,
    refuse,
)
from .origin import Stated, refuse_network, refuse_origin
from .pe_layouts import META_ONLY, OWN_ONLY, TIMM_ONLY, PeNaming, to_pe
from .published import META_NAMES
from .siglip import check_open_clip

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from .layouts import Place

MEAN = STD = (0.5, 0.5, 0.5)
POOL_HEADS = 8
# What open_clip's names say. image_resolution, patch, vision width, layers, heads, MLP width, class token; embed_dim,
# which is the width of the text side too, context length and text layers. open_clip 3.3.0 model_configs, timm 1.0.31.
_NETWORKS: dict[str, tuple[int, int, int, int, int, int, bool, int, int, int]] = {
    "PE-Core-T-16-384": (384, 16, 192, 12, 3, 768, True, 512, 32, 12),
    "PE-Core-S-16-384": (384, 16, 384, 12, 6, 1536, True, 512, 32, 12),
    "PE-Core-B-16": (224, 16, 768, 12, 12, 3072, True, 1024, 32, 24),
    "PE-Core-L-14-336": (336, 14, 1024, 24, 16, 4096, True, 1024, 32, 24),
    "PE-Core-bigG-14-448": (448, 14, 1536, 50, 16, 8960, False, 1280, 72, 24),
}
PE_NAMES = tuple(_NETWORKS)
# timm's name of the image side -> open_clip's of the model
TIMM_NAMES = {
    f"vit_pe_core_{size}": name
    for size, name in zip(
        ("tiny_patch16_384", "small_patch16_384", "base_patch16_224", "large_patch14_336", "gigantic_patch14_448"),
        PE_NAMES,
        strict=True,
    )
}
TIMM_PE = re.compile(r"vit_pe_\w+")
# Settings of open_clip whose values a CLIP has not, each with the one that a PE-Core has; and what is read below.
MODEL_ONLY, VISION_ONLY = {"custom_text": True}, {"timm_pool": "map"}
MODEL_READ, VISION_READ = {"embed_dim", "vision_cfg", "text_cfg"}, {"image_size", "timm_model_name", "timm_proj"}
# Sizes that training keeps. It may change the images' side and the vocabulary, and the length of texts.
KEPT = ("embed_dim", "vision_layers", "vision_width", "vision_patch_size", "vision_mlp_width", "class_token",
        "pool_mlp_width", "transformer_width", "transformer_layers", "transformer_mlp_width")  # fmt: skip


@dataclass(frozen=True)
class PeConfiguration:
    """What is known of a PE-Core besides its weights."""

    origin: str  # the file or the name that says so, for errors
    vision_heads: int
    transformer_heads: int
    sizes: dict[str, Any]  # fields of `PeArchitecture` that it states too, by name
    preprocess: PreprocessSettings | None  # None: as published, for the side that the weights have

    network = "a PE-Core"  # for errors

    def apply(self, state_dict: Mapping[str, Tensor]) -> tuple[PeArchitecture, PreprocessSettings]:
        """Return the architecture of these weights, under our names, and how their pixels are made.

        Raises:  CheckpointError where the shapes are others than the configuration states: one of the two is wrong.
        """
        architecture = infer_pe(
            state_dict, vision_heads=self.vision_heads, pool_heads=POOL_HEADS, transformer_heads=self.transformer_heads
        )
        check_sizes(self.sizes, {key: getattr(architecture, key) for key in self.sizes}, self.origin)
        return architecture, self.preprocess or make_pe_settings(architecture.image_resolution)


def find_pe(name: str) -> PeArchitecture | None:
    """Return the network of one of open_clip's names, or of Meta's; None for any other text."""
    name = META_NAMES.get(name, name)
    if name not in _NETWORKS:
        return None
    side, patch, width, layers, heads, mlp_width, class_token, dim, length, text_layers = _NETWORKS[name]
    return PeArchitecture(
        embed_dim=dim,
        image_resolution=side,
        vision_layers=layers,
        vision_width=width,
        vision_patch_size=patch,
        vision_heads=heads,
        vision_mlp_width=mlp_width,
        class_token=class_token,
        pool_heads=POOL_HEADS,
        pool_mlp_width=4 * width,
        context_length=length,
        vocab_size=49408,
        transformer_width=dim,
        transformer_heads=dim // 64,
        transformer_layers=text_layers,
        transformer_mlp_width=4 * dim,
    )


def name_pe(name: str) -> PeConfiguration | None:
    """Return what one of open_clip's names or Meta's says; None for any other text."""
    a = find_pe(name)
    if a is None:
        return None
    return PeConfiguration(
        name, a.vision_heads, a.transformer_heads, {field: getattr(a, field) for field in KEPT}, None
    )


def make_pe_settings(resolution_px: int) -> PreprocessSettings:
    """Return how images are preprocessed for a PE-Core where no file says it."""
    return PreprocessSettings(resolution_px, MEAN, STD, "bilinear", "squash")


def find_pe_naming(place: Place, keys: Mapping[str, object]) -> PeNaming | Literal["own"] | None:
    """Return whose names the weights of a PE-Core have; None where they are of another network."""
    if place.naming == "open_clip_timm":
        return "open_clip" if all(key in keys for key in TIMM_ONLY) else None
    if META_ONLY in keys:
        return "meta"
    return "own" if all(key in keys for key in OWN_ONLY) else None


def read_pe(state_dict: Mapping[str, Tensor], naming: PeNaming | Literal["own"], named: Stated | None) -> Checkpoint:
    """Read the weights by the configuration that was named or lies beside them, or by their sizes.

    Raises:  CheckpointError for a configuration of another network, and where nothing says how many heads there are.
    """
    weights = dict(state_dict) if naming == "own" else to_pe(state_dict, naming)
    if named is None:
        named = next(filter(None, (_match(name, weights) for name in PE_NAMES)), None)
    if named is None:
        raise refuse_origin(f"weights of a PE-Core of other sizes than the published, without their {OPEN_CLIP_CONFIG}")
    if not isinstance(named, PeConfiguration):
        raise refuse_network(named, PeConfiguration.network)
    architecture, settings = named.apply(weights)
    return Checkpoint(architecture, weights, settings, source="")


def _match(name: str, weights: Mapping[str, Tensor]) -> PeConfiguration | None:
    """Return what a name says if these weights have all of its sizes."""
    configuration = name_pe(name)
    try:
        if configuration is not None:
            configuration.apply(weights)
    except CheckpointError:
        return None
    return configuration


def from_open_clip_pe(config: dict[str, Any], file: str) -> PeConfiguration:
    """Read open_clip's configuration of a PE-Core, whose image tower is named after timm's.

    Raises:  CheckpointError that names the setting for any that a PE-Core cannot have.
    """
    model = config["model_cfg"]
    vision, text = model["vision_cfg"], model.get("text_cfg")
    if not isinstance(text, dict):
        raise refuse(file, "text_cfg", text, "an object")
    a = find_pe(TIMM_NAMES.get(str(vision["timm_model_name"]), ""))
    if a is None:
        raise refuse(file, "timm_model_name", vision["timm_model_name"], f"one of {list(TIMM_NAMES)}")
    for settings, others, only, read in (
        (model, OPEN_CLIP_MODEL | {"quick_gelu": False}, MODEL_ONLY, MODEL_READ),
        (vision, OPEN_CLIP_VISION, VISION_ONLY, VISION_READ),
        (text, OPEN_CLIP_TEXT, {}, OPEN_CLIP_TEXT_READ),
    ):
        check_open_clip(file, settings, others, only, read)
    if vision.get("timm_proj") is not None:
        raise refuse(file, "timm_proj", vision["timm_proj"], None)
    side = read_side(file, vision, "image_size", a.image_resolution)
    text_width = read_count(file, text, "width", 512)
    image_side = ("vision_layers", "vision_width", "vision_patch_size", "vision_mlp_width", "class_token")
    sizes = {field: getattr(a, field) for field in (*image_side, "pool_mlp_width")} | {
        "image_resolution": side,
        "embed_dim": read_count(file, model, "embed_dim"),
        "context_length": read_count(file, text, "context_length", 77),
        "vocab_size": read_count(file, text, "vocab_size", 49408),
        "transformer_width": text_width,
        "transformer_mlp_width": read_mlp_width(file, text, text_width),
        "transformer_layers": read_count(file, text, "layers", 12),
    }
    pixels = config.get("preprocess_cfg")
    return PeConfiguration(
        file,
        a.vision_heads,
        read_count(file, text, "heads", 8),
        sizes,
        None if pixels is None else read_open_clip_preprocess(pixels, side),
    )
