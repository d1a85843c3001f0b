"""Fold SigLIP's state dict into the weights of its lean graph: fold.py's algebra, and a query that is a weight.

The same as there holds: in float64 a folding agrees with the layers it replaces to 1e-12.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..network.siglip import LAYER_NORM_EPS
from .fold import (
    Weights,
    fold_blocks,
    fold_mlp,
    fold_norm,
    fold_pixels_into_patches,
    fold_stack,
    keep_pages,
    move_value_bias,
    scale_queries,
)
from .tower import AttentionPool, Blocks, LeanSiglip, LeanText, Linear

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from ..network.records import Gelu, PreprocessSettings, SiglipArchitecture
    from .fold import Release


def fold_siglip_image(
    state_dict: Mapping[str, Tensor],
    architecture: SiglipArchitecture,
    settings: PreprocessSettings,
    release: Release = keep_pages,
) -> LeanSiglip:
    """Fold the image tower's weights, as `fold_image_tower` does."""
    weights = Weights(state_dict, release, "visual.")
    heads, activation = architecture.vision_heads, architecture.vision_activation
    patches = fold_pixels_into_patches(weights["conv1.weight"], settings.mean, settings.std)
    blocks = fold_blocks(weights.below("transformer.resblocks"), architecture.vision_layers, heads, activation)
    return LeanSiglip(
        architecture.image_resolution,
        architecture.vision_patch_size,
        Linear(patches.weight, patches.bias + weights["conv1.bias"]),
        weights.own("positional_embedding"),
        Blocks(heads, activation, LAYER_NORM_EPS, blocks, None),
        fold_pool(weights, heads, activation),
    )


def fold_pool(weights: Weights, heads: int, activation: Gelu) -> AttentionPool:
    """Fold the attention pool of an image tower, and the norm before it, into its one query.

    The query q is the same for every image, so per head q . (K x_j) = (K.T q) . x_j with K.T q made here, one row a
    head; q . (bias of keys) is the same for every j, so it leaves the softmax as it is.
    """
    pool = weights.below("attnpool")
    gain, bias = weights["ln_post.weight"], weights["ln_post.bias"]
    query, key, value = pool.projections()
    query = scale_queries(query, query.weight.shape[0] // heads)
    q = (query.weight @ pool["probe"] + query.bias).unflatten(0, (heads, 1, -1))  # (H, 1, N)
    keys = (q @ fold_norm(key, gain, bias).weight.unflatten(0, (heads, -1))).squeeze(1)  # (H, N, W) -> (H, W)
    value, out = move_value_bias(fold_norm(value, gain, bias), pool.own_linear("attn.out_proj"))
    values = value.weight.unflatten(0, (heads, -1)).transpose(1, 2)  # (H, W, N)
    return AttentionPool(keys.contiguous(), values.contiguous(), out, fold_mlp(pool, activation))


def fold_siglip_text(
    state_dict: Mapping[str, Tensor], architecture: SiglipArchitecture, release: Release = keep_pages
) -> LeanText:
    """Fold the text tower's weights, as `fold_text_tower` does, in which a token sees all others."""
    weights = Weights(state_dict, release)
    stack = fold_stack(
        weights.below("transformer.resblocks"),
        architecture.transformer_layers,
        architecture.transformer_heads,
        architecture.text_activation,
        fold_norm(weights.linear("text_projection"), weights["ln_final.weight"], weights["ln_final.bias"]),
        LAYER_NORM_EPS,
    )
    return LeanText(weights.own("token_embedding.weight"), weights.own("positional_embedding"), stack, causal=False)
