"""Compute features from bytes or token ids: the lean graph, written once for every back end.

It computes what model.py computes, on the weights of fold.py, with fewer and larger operations. Each back end has its
own operations (`Ops`): on torch tensors they compute, on OpenVINO nodes they build a model. All of them take and return
the back end's kind of tensor; weights are torch tensors.

Axes: B images, T texts, R pixels a side, P pixels a patch's side, G = R / P, L tokens, W width, H heads, N = W / H
channels a head, C channels, D embed_dim. A 0 in a shape keeps that axis, a -1 takes the rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from .tower import (
    AttentionPool,
    Block,
    Blocks,
    Conv,
    ImageTower,
    LeanBottleneck,
    LeanPe,
    LeanResNet,
    LeanSiglip,
    LeanText,
    LeanViT,
    Linear,
    Mlp,
    OneQuery,
    PatchTower,
    Rotation,
    Stack,
)

if TYPE_CHECKING:
    from torch import Tensor

    from ..network.records import TowerActivation

X = TypeVar("X")  # a back end's tensor


class Ops(Protocol, Generic[X]):
    """The operations a back end has."""

    def to_float(self, x: X) -> X:
        """Bytes, or floats, -> the dtype that the graph computes in."""
        ...

    def linear(self, x: X, layer: Linear) -> X:
        """(..., I) -> (..., O)."""
        ...

    def conv(self, x: X, layer: Conv) -> X:
        """(B, I, R, R) -> (B, O, R', R')."""
        ...

    def norm(self, x: X, eps: float) -> X:
        """(..., W) to mean 0 and variance 1 over W, with `eps` beside the variance."""
        ...

    def add(self, x: X, y: X | Tensor) -> X:
        """Add with broadcasting. Shapes: (L, W) and (..., L, W) -> (..., L, W)."""
        ...

    def multiply(self, x: X, y: Tensor) -> X:
        """Multiply element by element, with broadcasting. Shapes: (..., W) and (W,) -> (..., W)."""
        ...

    def matmul(self, x: X, y: X | Tensor, *, transposed: bool = False) -> X:
        """Multiply matrices. Shapes: (..., L, I) and (..., I, O), or with `transposed` (..., O, I), -> (..., L, O)."""
        ...

    def self_attention(self, qkv: X, heads: int, *, causal: bool, rotation: Rotation | None) -> X:
        """(B, L, 3W), queries scaled -> (B, L, W); queries and keys are turned first where there is a rotation."""
        ...

    def softmax(self, x: X) -> X:
        """Softmax over the last axis. Shapes: (..., L) -> the same."""
        ...

    def activate(self, x: X, activation: TowerActivation) -> X:
        """SiLU for "quick_gelu", whose factor is in the weights (fold.py), or either GELU. Shapes: unchanged."""
        ...

    def relu(self, x: X) -> X:
        """max(x, 0). Shapes: unchanged."""
        ...

    def average(self, x: X, size: int) -> X:
        """(B, C, R, R) -> (B, C, R / size, R / size)."""
        ...

    def mean(self, x: X) -> X:
        """(B, L, C) -> (B, 1, C)."""
        ...

    def crop(self, x: X, side: int) -> X:
        """(B, R, R, 3) -> (B, side, side, 3), from the top left."""
        ...

    def concat(self, x: X, y: X) -> X:
        """(B, L, C) and (B, M, C) -> (B, L + M, C)."""
        ...

    def prepend_zeros(self, x: X) -> X:
        """(B, L, W) -> (B, 1 + L, W)."""
        ...

    def reshape(self, x: X, *shape: int) -> X:
        """The same numbers in another shape."""
        ...

    def transpose(self, x: X, *axes: int) -> X:
        """The axes in another order."""
        ...

    def token(self, x: X, place: int) -> X:
        """(B, L, W) -> (B, W), the token at one place of each."""
        ...

    def tokens_at(self, x: X, places: X) -> X:
        """(T, L, W) and int (T,) -> (T, W), the token at each text's own place."""
        ...

    def look_up(self, table: Tensor, rows: X) -> X:
        """(V, W) and int (...) -> (..., W)."""
        ...


def image_features(ops: Ops[X], tower: ImageTower, pixels: X) -> X:
    """Compute the features of images with a tower of any family. Shapes: 0..255, (B, R, R, 3) -> (B, D)."""
    if isinstance(tower, LeanViT):
        return vit_features(ops, tower, pixels)
    if isinstance(tower, LeanPe):
        return pe_features(ops, tower, pixels)
    return siglip_features(ops, tower, pixels) if isinstance(tower, LeanSiglip) else resnet_features(ops, tower, pixels)


def vit_features(ops: Ops[X], tower: LeanViT, pixels: X) -> X:
    """Compute the features of images. Shapes: 0..255, (B, R, R, 3) -> (B, D)."""
    x = ops.prepend_zeros(_patches(ops, tower, pixels))  # (B, L, W)
    x = ops.norm(ops.add(x, tower.tokens), tower.stack.eps)
    x = ops.add(ops.multiply(x, tower.pre_gain), tower.pre_bias)
    x = _blocks(ops, tower.stack, x, causal=False)
    n = ops.norm(x, tower.stack.eps)
    return _last(ops, tower.stack, ops.token(x, 0), ops.token(n, 0), n)


def siglip_features(ops: Ops[X], tower: LeanSiglip, pixels: X) -> X:
    """Compute the features of images. Shapes: 0..255, (B, R, R, 3) -> (B, D)."""
    x = ops.add(_patches(ops, tower, pixels), tower.positions)  # (B, L, W)
    x = _blocks(ops, tower.stack, x, causal=False)
    return _pool(ops, tower.pool, tower.stack, x)


def pe_features(ops: Ops[X], tower: LeanPe, pixels: X) -> X:
    """Compute the features of images. Shapes: 0..255, (B, R, R, 3) -> (B, D)."""
    x = _patches(ops, tower, pixels)
    x = ops.prepend_zeros(x) if tower.class_token else x  # (B, L, W)
    x = ops.norm(ops.add(x, tower.tokens), tower.stack.eps)
    x = ops.add(ops.multiply(x, tower.pre_gain), tower.pre_bias)
    x = _blocks(ops, tower.stack, x, causal=False)
    return ops.linear(_pool(ops, tower.pool, tower.stack, x), tower.head)


def _patches(ops: Ops[X], tower: PatchTower, pixels: X) -> X:
    """Compute the patches of images. Shapes: 0..255, (B, R, R, 3) -> (B, G * G, W)."""
    side, patch = tower.resolution_px // tower.patch_px, tower.patch_px
    if side * patch < tower.resolution_px:
        pixels = ops.crop(pixels, side * patch)
    # Channels come last, as Pillow leaves them: a patch of 32 px is cut in runs of 96 bytes instead of 32.
    x = ops.reshape(pixels, -1, side, patch, side, patch, 3)  # (B, G, P, G, P, 3)
    x = ops.transpose(x, 0, 1, 3, 2, 4, 5)  # (B, G, G, P, P, 3), cheaper while they are bytes
    x = ops.to_float(ops.reshape(x, -1, side * side, patch * patch * 3))  # (B, L-1, P * P * 3)
    return ops.linear(x, tower.patches)


def text_features(ops: Ops[X], tower: LeanText, tokens: X, places: X, ends: X, after_end: X) -> X:
    """Compute the features of texts.

    Shapes:  int (T, L), the places 0 to L - 1 for each text as int (T, L), where each text ends as int (T,), and
             (T, 1, L), 0 up to each text's end and -inf after it -> (T, D).
    """
    x = ops.add(ops.look_up(tower.tokens, tokens), ops.look_up(tower.positions, places))  # (T, L, W)
    x = _blocks(ops, tower.stack, x, causal=tower.causal)
    n = ops.norm(x, tower.stack.eps)
    return _last(ops, tower.stack, ops.tokens_at(x, ends), ops.tokens_at(n, ends), n, after_end)


def resnet_features(ops: Ops[X], tower: LeanResNet, pixels: X) -> X:
    """Compute the features of images. Shapes: 0..255, (B, R, R, 3) -> (B, D)."""
    x = ops.add(ops.to_float(pixels), -tower.center)
    x = ops.transpose(x, 0, 3, 1, 2)  # (B, 3, R, R)
    for layer in tower.stem:
        x = ops.relu(ops.conv(x, layer))  # (B, C, R / 2, R / 2)
    x = ops.average(x, 2)
    for block in tower.blocks:
        x = _bottleneck(ops, block, x)  # in the end (B, C, R / 32, R / 32)
    cells, channels = len(tower.positions) - 1, tower.positions.shape[1]
    x = ops.transpose(ops.reshape(x, 0, channels, cells), 0, 2, 1)  # (B, L-1, C)
    x = ops.add(ops.concat(ops.mean(x), x), tower.positions)  # (B, L, C)
    return _attend_once(ops, tower.attention, ops.token(x, 0), x)


def _bottleneck(ops: Ops[X], block: LeanBottleneck, x: X) -> X:
    """(B, C, R, R) -> (B, C', R / pool, R / pool)."""
    y = ops.relu(ops.conv(x, block.conv1))
    y = ops.relu(ops.conv(y, block.conv2))
    if block.pool > 1:
        x, y = ops.average(x, block.pool), ops.average(y, block.pool)
    shortcut = ops.conv(x, block.downsample) if block.downsample else x
    return ops.relu(ops.add(ops.conv(y, block.conv3), shortcut))


def _blocks(ops: Ops[X], stack: Blocks, x: X, *, causal: bool) -> X:
    """Apply the blocks that compute all tokens. (B, L, W) -> (B, L, W)."""
    for block in stack.blocks:
        x = _block(ops, stack, block, x, causal=causal)
    return x


def _block(ops: Ops[X], stack: Blocks, block: Block, x: X, *, causal: bool) -> X:
    qkv = ops.linear(ops.norm(x, stack.eps), block.qkv)  # (B, L, 3W)
    seen = ops.self_attention(qkv, stack.heads, causal=causal, rotation=stack.rotation)
    x = ops.add(x, ops.linear(seen, block.out))
    return ops.add(x, _mlp(ops, block.mlp, stack.activation, ops.norm(x, stack.eps)))


def _last(ops: Ops[X], stack: Stack, x: X, query: X, n: X, mask: X | None = None) -> X:
    """Apply the last block and the projection to one token. x and query (B, W), all tokens n (B, L, W) -> (B, D)."""
    x = ops.add(x, _attend_once(ops, stack.last.attention, query, n, mask))
    x = ops.add(x, _mlp(ops, stack.last.mlp, stack.activation, ops.norm(x, stack.eps)))
    return ops.linear(ops.norm(x, stack.eps), stack.head)


def _mlp(ops: Ops[X], mlp: Mlp, activation: TowerActivation, x: X) -> X:
    return ops.linear(ops.activate(ops.linear(x, mlp.fc), activation), mlp.proj)


def _attend_once(ops: Ops[X], attention: OneQuery, query: X, x: X, mask: X | None = None) -> X:
    """Attend from one query (B, W) to all tokens (B, L, W) -> (B, O)."""
    heads, head_width, _ = attention.key.shape
    q = ops.reshape(ops.linear(query, attention.query), -1, heads, head_width)  # (B, H, N)
    q = ops.matmul(ops.transpose(q, 1, 0, 2), attention.key)  # (H, B, N) x (H, N, W) -> (H, B, W)
    scores = ops.matmul(ops.transpose(q, 1, 0, 2), x, transposed=True)  # (B, H, L)
    if mask is not None:
        scores = ops.add(scores, mask)
    return _see(ops, scores, x, attention.value, attention.out)


def _pool(ops: Ops[X], pool: AttentionPool, stack: Blocks, x: X) -> X:
    """Attend from the query of the weights to all tokens, and apply the pool's MLP. (B, L, W) -> (B, W)."""
    n = ops.norm(x, stack.eps)
    scores = ops.transpose(ops.matmul(n, pool.keys, transposed=True), 0, 2, 1)  # (B, L, H) -> (B, H, L)
    seen = _see(ops, scores, n, pool.value, pool.out)
    return ops.add(seen, _mlp(ops, pool.mlp, stack.activation, ops.norm(seen, stack.eps)))


def _see(ops: Ops[X], scores: X, x: X, value: Tensor, out: Linear) -> X:
    """Gather what the heads of one query see. Scores (B, H, L), tokens (B, L, W), value (H, W, N) -> (B, O)."""
    seen = ops.matmul(ops.softmax(scores), x)  # (B, H, W)
    v = ops.matmul(ops.transpose(seen, 1, 0, 2), value)  # (H, B, N)
    return ops.linear(ops.reshape(ops.transpose(v, 1, 0, 2), -1, value.shape[0] * value.shape[2]), out)
