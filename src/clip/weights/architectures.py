"""The networks that have a name: OpenAI's releases, and the plain CLIPs among open_clip's models.

open_clip's names say what the shapes of its weights leave open. "ViT-B-32" has GELU there, "ViT-B-32-quickgelu"
OpenAI's approximation of it.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from ..errors import InputError
from ..network.records import Architecture
from .releases import RELEASES

QUICK, PLAIN = "-quickgelu", "-gelu"
TEXT_HEAD_WIDTH = 64
# embed_dim, image_resolution, vision_layers, vision_width, vision_patch_size, head width, text width, text layers, and
# the image tower's MLP width where that is not four times its width; open_clip@89fb801 src/open_clip/model_configs.
_VITS: dict[str, tuple[int, ...]] = {
    "ViT-S-32": (384, 224, 12, 384, 32, 64, 384, 12),
    "ViT-S-16": (384, 224, 12, 384, 16, 64, 384, 12),
    "ViT-S-32-alt": (256, 224, 12, 384, 32, 64, 256, 10),
    "ViT-S-16-alt": (256, 224, 12, 384, 16, 64, 256, 10),
    "ViT-M-32": (512, 224, 12, 512, 32, 64, 512, 12),
    "ViT-M-16": (512, 224, 12, 512, 16, 64, 512, 12),
    "ViT-M-32-alt": (384, 224, 12, 512, 32, 64, 384, 12),
    "ViT-B-32": (512, 224, 12, 768, 32, 64, 512, 12),
    "ViT-B-32-256": (512, 256, 12, 768, 32, 64, 512, 12),
    "ViT-B-16": (512, 224, 12, 768, 16, 64, 512, 12),
    "ViT-B-32-plus-256": (640, 256, 12, 896, 32, 64, 640, 12),
    "ViT-B-16-plus": (640, 224, 12, 896, 16, 64, 640, 12),
    "ViT-B-16-plus-240": (640, 240, 12, 896, 16, 64, 640, 12),
    "ViT-L-14": (768, 224, 24, 1024, 14, 64, 768, 12),
    "ViT-L-14-280": (768, 280, 24, 1024, 14, 64, 768, 12),
    "ViT-L-14-336": (768, 336, 24, 1024, 14, 64, 768, 12),
    "ViT-L-16": (768, 224, 24, 1024, 16, 64, 768, 12),
    "ViT-L-16-320": (768, 320, 24, 1024, 16, 64, 768, 12),
    "ViT-H-14": (1024, 224, 32, 1280, 14, 80, 1024, 24),
    "ViT-H-14-378": (1024, 378, 32, 1280, 14, 80, 1024, 24),
    "ViT-H-16": (1024, 224, 32, 1280, 16, 80, 1024, 24),
    "ViT-g-14": (1024, 224, 40, 1408, 14, 88, 1024, 24, 6144),
    "ViT-bigG-14": (1280, 224, 48, 1664, 14, 104, 1280, 32, 8192),
    "ViT-e-14": (1280, 224, 56, 1792, 14, 112, 1280, 36, 15360),
}


def find_architecture(name: str) -> Architecture | None:
    """Return the network of one of OpenAI's names or open_clip's; None for any other text.

    Raises:  InputError for the bare name of a ResNet, which means QuickGELU at OpenAI and GELU at open_clip.
    """
    if name.startswith("RN") and name in RELEASES:
        expected = f"{name}{QUICK} for OpenAI's, or {name}{PLAIN} for open_clip's {name}"
        raise InputError("`architecture`", f"found {name!r}", expected, "Pass one of these.")
    if name in RELEASES:
        return RELEASES[name].architecture
    suffix = next((suffix for suffix in (QUICK, PLAIN) if name.endswith(suffix)), "")
    base = name.removesuffix(suffix)
    plain = _list_plain().get(base)
    return plain and replace(plain, activation="quick_gelu" if suffix == QUICK else "gelu")


def find_relative(architecture: Architecture) -> str | None:
    """Return the model of open_clip that has these shapes where no release of OpenAI's has them."""
    sizes, side = _sizes(architecture), architecture.image_resolution
    released = [r.architecture.image_resolution for r in RELEASES.values() if _sizes(r.architecture) == sizes]
    for name, own in _list_plain().items():
        # Fine-tuning may change the image's size, so of OpenAI's sizes only an image of open_clip's size is a sign.
        if sizes == _sizes(own) and (not released or (side == own.image_resolution and side not in released)):
            return name
    return None


@cache
def _list_plain() -> dict[str, Architecture]:
    """Return open_clip's networks by name, as they are without QuickGELU."""
    vits = {name: _vit(*row) for name, row in _VITS.items()}
    resnets = {name: release.architecture for name, release in RELEASES.items() if name.startswith("RN")}
    return vits | {name: replace(architecture, activation="gelu") for name, architecture in resnets.items()}


def _vit(
    dim: int, px: int, layers: int, width: int, patch: int, head: int, text: int, depth: int, mlp: int | None = None
) -> Architecture:
    heads = None if head == TEXT_HEAD_WIDTH else width // head
    return Architecture(
        dim, px, layers, width, patch, 77, 49408, text, text // TEXT_HEAD_WIDTH, depth, "gelu", heads, mlp
    )


def _sizes(a: Architecture) -> tuple[object, ...]:
    """Return what tells networks apart by shapes, but for the image's size, which training may change."""
    text = (a.transformer_width, a.transformer_layers, a.transformer_mlp_width)
    return (a.embed_dim, a.vision_layers, a.vision_width, a.vision_patch_size, a.vision_mlp_width, *text)
