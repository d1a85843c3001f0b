"""Floating-point operations of an image, counted from the architecture. Knows nothing about how they are carried out.

A multiply-add counts as 2; only convolutions and matrix products count.

Axes: L tokens, W width, H heads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clip.network.records import Architecture

HEAD_WIDTH = 64  # of all released towers
MLP_RATIO = 4


def full_gflops(architecture: Architecture) -> float:
    """GFLOP of OpenAI's graph: the last block for all tokens, keys and values of the pool for all of them."""
    return _gflops(architecture, lean=False)


def lean_gflops(architecture: Architecture) -> float:
    """GFLOP of what one vector needs: the last block, or the pool, for the one token that leaves it."""
    return _gflops(architecture, lean=True)


def _gflops(architecture: Architecture, *, lean: bool) -> float:
    vit = isinstance(architecture.vision_layers, int)
    multiplies = _vit(architecture, lean=lean) if vit else _resnet(architecture, lean=lean)
    return 2 * multiplies / 1e9


def _vit(architecture: Architecture, *, lean: bool) -> int:
    patch, width, layers = architecture.vision_patch_size, architecture.vision_width, architecture.vision_layers
    if patch is None or not isinstance(layers, int):
        raise ValueError(f"architecture: found {architecture}, expected a ViT's. Pass one with a patch size.")
    patches = (architecture.image_resolution // patch) ** 2
    tokens = patches + 1
    mlp = 2 * MLP_RATIO * width * width
    block = tokens * (4 * width * width + mlp) + 2 * tokens * tokens * width
    last = _one_query(tokens, width, width) + mlp if lean else block
    return patches * 3 * patch * patch * width + (layers - 1) * block + last + width * architecture.embed_dim


def _one_query(tokens: int, width: int, out: int) -> int:
    """Attention of one token: query, keys and values at the query's side, scores and sum over tokens, the way out."""
    heads = width // HEAD_WIDTH
    return 3 * width * width + 2 * heads * tokens * width + width * out


def _resnet(architecture: Architecture, *, lean: bool) -> int:
    stages, width = architecture.vision_layers, architecture.vision_width
    if isinstance(stages, int):
        raise ValueError(f"architecture: found {architecture}, expected a ResNet's. Pass one with four stages.")
    side = architecture.image_resolution // 2
    multiplies = side * side * 9 * (3 * (width // 2) + (width // 2) ** 2 + (width // 2) * width)  # the stem
    side //= 2  # pooled
    channels = width
    for stage, count in enumerate(stages):
        planes = width * 2**stage
        for block in range(count):
            stride = 2 if stage > 0 and block == 0 else 1
            multiplies += side * side * (channels * planes + 9 * planes * planes)  # before its pooling
            side //= stride
            multiplies += side * side * 4 * planes * planes
            if block == 0:
                multiplies += side * side * channels * 4 * planes  # the shortcut
            channels = 4 * planes
    tokens, dim = side * side + 1, architecture.embed_dim
    if lean:
        return multiplies + _one_query(tokens, channels, dim)
    keys_and_values = 2 * tokens * channels * channels
    return multiplies + keys_and_values + channels * channels + 2 * tokens * channels + channels * dim
