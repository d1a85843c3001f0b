"""The weights of the lean graph, folded: a tower is a few frozen dataclasses of tensors.

fold.py, fold_siglip.py and fold_pe.py make towers of state dicts, graph.py computes with them, and a back end places
them on its device.

Axes: O outputs, I inputs, W width, H heads, N = W / H channels a head, L tokens, P pixels a patch's side, D embed_dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from ..network.records import TowerActivation


@dataclass(frozen=True)
class Linear:
    """x -> x weight.T + bias."""

    weight: Tensor  # (O, I)
    bias: Tensor  # (O,)


@dataclass(frozen=True)
class Conv:
    """A convolution with its bias."""

    weight: Tensor  # (O, I, k, k)
    bias: Tensor  # (O,)
    stride: int = 1
    padding: int = 0


@dataclass(frozen=True)
class OneQuery:
    """Attention for a single query: keys and values are never computed, their weights are applied to the query."""

    query: Linear  # (W, W), scaled
    key: Tensor  # (H, N, W)
    value: Tensor  # (H, W, N)
    out: Linear


@dataclass(frozen=True)
class Mlp:
    """Two linear layers with an activation between them."""

    fc: Linear
    proj: Linear


@dataclass(frozen=True)
class Block:
    """A transformer block for all tokens."""

    qkv: Linear  # (3W, W), queries scaled
    out: Linear
    mlp: Mlp


@dataclass(frozen=True)
class LastBlock:
    """The block after which one token is read: for that token alone."""

    attention: OneQuery
    mlp: Mlp


@dataclass(frozen=True)
class Rotation:
    """By how much queries and keys are turned, in the planes of channels n and n + N / 2 of a head."""

    cos: Tensor  # (L, N / 2)
    sin: Tensor  # (L, N / 2)


@dataclass(frozen=True)
class Blocks:
    """The blocks of a tower that compute all tokens."""

    heads: int
    activation: TowerActivation  # "quick_gelu" is SiLU here
    eps: float  # of the norms
    blocks: tuple[Block, ...]
    rotation: Rotation | None  # the same for all heads and blocks


@dataclass(frozen=True)
class Stack(Blocks):
    """The blocks of a tower, and the projection of the one token that is read after them."""

    last: LastBlock
    head: Linear  # (D, W)


@dataclass(frozen=True)
class AttentionPool:
    """Attention from one query that is the same for all images, and an MLP after it."""

    keys: Tensor  # (H, W): of each head the query times the weights of its keys
    value: Tensor  # (H, W, N)
    out: Linear
    mlp: Mlp


@dataclass(frozen=True)
class LeanViT:
    """The weights of a VisionTransformer's lean graph; it reads bytes."""

    resolution_px: int
    patch_px: int
    patches: Linear  # (W, P * P * 3)
    tokens: Tensor  # (L, W): the class token with its position, then the positions of the patches
    pre_gain: Tensor  # (W,)
    pre_bias: Tensor  # (W,)
    stack: Stack


@dataclass(frozen=True)
class LeanSiglip:
    """The weights of the lean graph of SigLIP's image tower; it reads bytes."""

    resolution_px: int
    patch_px: int
    patches: Linear  # (W, P * P * 3)
    positions: Tensor  # (L, W)
    stack: Blocks
    pool: AttentionPool


@dataclass(frozen=True)
class LeanPe:
    """The weights of the lean graph of PE-Core's image tower; it reads bytes."""

    resolution_px: int
    patch_px: int
    patches: Linear  # (W, P * P * 3)
    class_token: bool  # whether a token goes before the patches
    tokens: Tensor  # (L, W): the class token with its position, if there is one, then the positions of the patches
    pre_gain: Tensor  # (W,)
    pre_bias: Tensor  # (W,)
    stack: Blocks
    pool: AttentionPool
    head: Linear  # (D, W)


@dataclass(frozen=True)
class LeanBottleneck:
    """The weights of a residual block, its norms folded in."""

    conv1: Conv
    conv2: Conv
    conv3: Conv
    downsample: Conv | None
    pool: int  # pixels a side that become one, before conv3 and downsample


@dataclass(frozen=True)
class LeanResNet:
    """The weights of a ModifiedResNet's lean graph; it reads bytes."""

    resolution_px: int
    center: Tensor  # (3,), which is subtracted from bytes
    stem: tuple[Conv, Conv, Conv]
    blocks: tuple[LeanBottleneck, ...]
    positions: Tensor  # (L, C)
    attention: OneQuery


@dataclass(frozen=True)
class LeanText:
    """The weights of the text tower's lean graph; it reads token ids."""

    tokens: Tensor  # (vocabulary, W)
    positions: Tensor  # (L, W)
    stack: Stack
    causal: bool  # whether a token sees those before it only


PatchTower = LeanViT | LeanSiglip | LeanPe  # whose blocks read patches
ImageTower = PatchTower | LeanResNet
