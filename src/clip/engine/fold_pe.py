"""Fold PE-Core's state dict into the weights of its lean graph: fold.py's algebra, and SigLIP's pool.

Its text tower is OpenAI's, so `fold_text_tower` folds it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..network.pe import LAYER_NORM_EPS, make_angles
from .fold import Weights, fold_blocks, fold_class_token, fold_pixels_into_patches, keep_pages
from .fold_siglip import fold_pool
from .tower import Blocks, LeanPe, Rotation

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import Tensor

    from ..network.records import PeArchitecture, PreprocessSettings
    from .fold import Release


def fold_pe_image(
    state_dict: Mapping[str, Tensor],
    architecture: PeArchitecture,
    settings: PreprocessSettings,
    release: Release = keep_pages,
) -> LeanPe:
    """Fold the image tower's weights, as `fold_image_tower` does."""
    a, weights = architecture, Weights(state_dict, release, "visual.")
    blocks = fold_blocks(
        weights.below("transformer.resblocks"), a.vision_layers, a.vision_heads, a.activation, rotated=True
    )
    positions = weights.own("positional_embedding")
    tokens = fold_class_token(weights["class_embedding"], positions) if a.class_token else positions
    return LeanPe(
        a.image_resolution,
        a.vision_patch_size,
        fold_pixels_into_patches(weights["conv1.weight"], settings.mean, settings.std),
        a.class_token,
        tokens,
        weights.own("ln_pre.weight"),
        weights.own("ln_pre.bias"),
        Blocks(a.vision_heads, a.activation, LAYER_NORM_EPS, blocks, fold_rotation(a, tokens.dtype)),
        fold_pool(weights, a.pool_heads, a.activation),
        weights.own_linear("proj"),
    )


def fold_rotation(architecture: PeArchitecture, dtype: torch.dtype) -> Rotation:
    """Return the cosines and sines of the angles, computed once: those of pairs, which `order_pairs` took apart."""
    a = architecture
    side, head_width = a.image_resolution // a.vision_patch_size, a.vision_width // a.vision_heads
    angles = make_angles(side, head_width, class_token=a.class_token)
    return Rotation(angles.cos().to(dtype), angles.sin().to(dtype))
