"""Fold a state dict into the weights of the lean graph: algebra done once instead of for each image.

Each folding is a small function with its algebra beside it. All are exact but for rounding: in float64 each agrees
with the layers it replaces to 1e-12 (tests/unit/engine/test_fold.py). They compute in the dtype of their arguments;
`fold_image_tower` and `fold_text_tower` pass float32 or wider. The order in which the weights are used is graph.py's.

Axes: O outputs, I inputs, W width, H heads, N = W / H channels a head, L tokens, P pixels a patch's side, D embed_dim.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..network.architecture import vision_heads
from ..network.records import BYTE_MAX, Architecture, PeArchitecture, PreprocessSettings, TowerActivation, Triple
from ..parallel import available_cores
from .tower import (
    Block,
    Conv,
    ImageTower,
    LastBlock,
    LeanBottleneck,
    LeanResNet,
    LeanText,
    LeanViT,
    Linear,
    Mlp,
    OneQuery,
    Stack,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Release = Callable[[], None]


QUICK_GELU = 1.702  # x * sigmoid(1.702 x); openai/CLIP@d05afc4 clip/model.py:166
LAYER_NORM_EPS, BATCH_NORM_EPS = 1e-5, 1e-5  # of nn.LayerNorm and nn.BatchNorm2d


def fold_norm(linear: Linear, gain: Tensor, bias: Tensor) -> Linear:
    """Fold a LayerNorm's gain and bias into the linear layer after it.

    W (g * n + b) + c  =  (W diag g) n + (c + W b), with n the normed but unscaled input.
    """
    return Linear(linear.weight * gain, linear.bias + linear.weight @ bias)


def scale_queries(query: Linear, head_width: int) -> Linear:
    """Fold the factor of attention's scores into the queries: (q / sqrt N) . k = (q . k) / sqrt N."""
    factor = head_width**-0.5
    return Linear(query.weight * factor, query.bias * factor)


def order_pairs(layer: Linear, heads: int) -> Linear:
    """Put the first channels of a head's pairs before the second ones, for queries and keys alike.

    Channels n and n + N / 2 are then turned together, which takes whole halves instead of every other number; scores
    are sums over channels, whose order does not matter.
    """
    order = torch.arange(len(layer.weight)).view(heads, -1, 2).transpose(1, 2).flatten()  # (H, N / 2, 2) -> (W,)
    return Linear(layer.weight[order], layer.bias[order])


def drop_key_bias(key: Linear) -> Linear:
    """Drop the bias of keys: softmax_j(q . (k_j + b)) = softmax_j(q . k_j), as q . b is the same for every j."""
    return Linear(key.weight, torch.zeros_like(key.bias))


def move_value_bias(value: Linear, out: Linear) -> tuple[Linear, Linear]:
    """Move the bias of values after attention, whose weights a_j sum to 1.

    O sum_j a_j (v_j + b) + c  =  O sum_j a_j v_j + (c + O b).
    """
    moved = Linear(out.weight, out.bias + out.weight @ value.bias)
    return Linear(value.weight, torch.zeros_like(value.bias)), moved


def one_query(query: Linear, key: Linear, value: Linear, out: Linear, heads: int) -> OneQuery:
    """Fold the weights of keys and values, whose biases must be zero, into attention from one query.

    Per head, q . (K x_j) = (K.T q) . x_j and sum_j a_j (V x_j) = V (sum_j a_j x_j): two products of (W, N) for the one
    query instead of two of (W, W) for each of L tokens.
    """
    keys = key.weight.unflatten(0, (heads, -1))  # (W, W) -> (H, N, W)
    values = value.weight.unflatten(0, (heads, -1)).transpose(1, 2)  # (H, W, N)
    return OneQuery(query, keys.contiguous(), values.contiguous(), out)


def quick_gelu_to_silu(mlp: Mlp) -> Mlp:
    """Turn QuickGELU into SiLU, which every back end fuses, in the memory of these layers.

    P (h sigmoid(1.702 h))  =  (P / 1.702) (h' sigmoid(h'))  with h' = 1.702 h.
    """
    fc, proj = mlp.fc, mlp.proj
    # In place, as these are most of a tower: new tensors would take as much again, and time to get it.
    return Mlp(
        Linear(fc.weight.mul_(QUICK_GELU), fc.bias.mul_(QUICK_GELU)), Linear(proj.weight.div_(QUICK_GELU), proj.bias)
    )


def fold_batch_norm(weight: Tensor, gain: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    """Fold a BatchNorm in eval mode into the convolution before it; weight (O, I, k, k) -> the same, and its bias.

    g (w * x - m) / s + b  =  (g w / s) * x + (b - g m / s), with s = sqrt(var + eps).
    """
    factor = gain / (var + BATCH_NORM_EPS).sqrt()
    return weight * factor[:, None, None, None], bias - mean * factor


def fold_pixels_into_patches(weight: Tensor, mean: Triple, std: Triple) -> Linear:
    """Fold the normalisation of bytes u into the patches: (W, 3, P, P) -> a layer over a patch's y, x, channel.

    w . (u / 255 - m) / s  =  (w / (255 s)) . u - w . (m / s). Patches are not padded, so this holds at the edges too.
    """
    means, stds = weight.new_tensor(mean).view(3, 1, 1), weight.new_tensor(std).view(3, 1, 1)
    bytes_weight = (weight / (BYTE_MAX * stds)).permute(0, 2, 3, 1).flatten(1)  # (W, 3, P, P) -> (W, P * P * 3)
    return Linear(bytes_weight.contiguous(), -(weight * (means / stds)).sum(dim=(1, 2, 3)))


def fold_pixels_into_stem(weight: Tensor, mean: Triple, std: Triple) -> tuple[Tensor, Tensor]:
    """Fold the scale of normalisation into a convolution that pads: the center of bytes, (3,), and the weight.

    The network pads with zeros after normalising, so only the scale can move: w . (u / 255 - m) / s
    = (w / (255 s)) . (u - 255 m), and u - 255 m is padded with zeros.
    """
    means, stds = weight.new_tensor(mean), weight.new_tensor(std)
    return BYTE_MAX * means, weight / (BYTE_MAX * stds).view(3, 1, 1)


def fold_class_token(class_embedding: Tensor, positions: Tensor) -> Tensor:
    """Fold the class token into the positions: (c + p_0, patches + p_1...) = (0, patches) + (c + p_0, p_1, ...)."""
    return torch.cat([positions[:1] + class_embedding, positions[1:]])


class Weights:
    """The entries of a state dict below a prefix, in float32 or wider; `release` is called when a block is folded."""

    def __init__(self, state_dict: Mapping[str, Tensor], release: Release, prefix: str = "") -> None:
        self._state_dict = state_dict
        self.release = release
        self._prefix = prefix

    def __getitem__(self, name: str) -> Tensor:
        return self._read(name)

    def own(self, name: str) -> Tensor:
        """Copy a tensor that no folding replaces: no tower shares memory with a model in training, or with a file."""
        return self._read(name, copy=True)

    def _read(self, name: str, *, copy: bool = False) -> Tensor:
        tensor = self._state_dict[self._prefix + name].detach()
        # On the CPU, because CUDA may have its products in TF32.
        return tensor.to("cpu", torch.promote_types(tensor.dtype, torch.float32), copy=copy)

    def below(self, prefix: str) -> Weights:
        """Return the entries below a longer prefix."""
        return Weights(self._state_dict, self.release, f"{self._prefix}{prefix}.")

    def linear(self, name: str) -> Linear:
        """Return a layer, whose tensors a folding replaces."""
        return Linear(self[f"{name}.weight"], self[f"{name}.bias"])

    def own_linear(self, name: str) -> Linear:
        """Return a layer in memory of its own."""
        return Linear(self.own(f"{name}.weight"), self.own(f"{name}.bias"))

    def projections(self) -> tuple[Linear, Linear, Linear]:
        """Return the queries, keys and values of an attention, whose tensors a folding replaces."""
        weights, biases = self["attn.in_proj_weight"].chunk(3), self["attn.in_proj_bias"].chunk(3)
        query, key, value = map(Linear, weights, biases)
        return query, key, value

    def head(self, norm: str, projection: str) -> Linear:
        """Fold a tower's last norm into its projection, a matrix (W, D)."""
        weight = self[projection].T.contiguous()
        bare = Linear(weight, weight.new_zeros(len(weight)))
        return fold_norm(bare, self[f"{norm}.weight"], self[f"{norm}.bias"])

    def conv(self, conv: str, norm: str, padding: int = 0) -> Conv:
        """Return a convolution with the norm after it folded in."""
        parts = [self[f"{norm}.{name}"] for name in ("weight", "bias", "running_mean", "running_var")]
        weight, bias = fold_batch_norm(self[f"{conv}.weight"], *parts)
        return Conv(weight, bias, padding=padding)


def keep_pages() -> None:
    """Release nothing."""


def fold_image_tower(
    state_dict: Mapping[str, Tensor],
    architecture: Architecture,
    settings: PreprocessSettings,
    release: Release = keep_pages,
) -> ImageTower:
    """Fold the image tower's weights, on the CPU; the state dict stays as it is.

    `release` is called after each block: what memory holds of a weights file need not be the whole tower.
    """
    weights = Weights(state_dict, release, "visual.")
    if isinstance(architecture.vision_layers, tuple):
        return _fold_resnet(weights, architecture.vision_layers, architecture, settings)
    stack = fold_stack(
        weights.below("transformer.resblocks"),
        architecture.vision_layers,
        vision_heads(architecture),
        architecture.activation,
        weights.head("ln_post", "proj"),
    )
    return LeanViT(
        architecture.image_resolution,
        architecture.vision_patch_size or 0,
        fold_pixels_into_patches(weights["conv1.weight"], settings.mean, settings.std),
        fold_class_token(weights["class_embedding"], weights["positional_embedding"]),
        weights.own("ln_pre.weight"),
        weights.own("ln_pre.bias"),
        stack,
    )


def fold_text_tower(
    state_dict: Mapping[str, Tensor], architecture: Architecture | PeArchitecture, release: Release = keep_pages
) -> LeanText:
    """Fold the text tower's weights like `fold_image_tower`, in which a token sees those before it."""
    weights = Weights(state_dict, release)
    stack = fold_stack(
        weights.below("transformer.resblocks"),
        architecture.transformer_layers,
        architecture.transformer_heads,
        architecture.activation,
        weights.head("ln_final", "text_projection"),
    )
    return LeanText(weights.own("token_embedding.weight"), weights.own("positional_embedding"), stack, causal=True)


def fold_stack(
    weights: Weights, layers: int, heads: int, activation: TowerActivation, head: Linear, eps: float = LAYER_NORM_EPS
) -> Stack:
    """Fold the blocks of a tower of which one token is read, with its projection."""
    blocks = fold_blocks(weights, layers - 1, heads, activation)
    last = LastBlock(
        one_query(*_fold_attention(weights.below(str(layers - 1)), heads), heads),
        fold_mlp(weights.below(str(layers - 1)), activation),
    )
    return Stack(heads, activation, eps, blocks, None, last, head)


def fold_blocks(
    weights: Weights, count: int, heads: int, activation: TowerActivation, *, rotated: bool = False
) -> tuple[Block, ...]:
    """Fold the first `count` blocks of a tower, whose queries and keys are turned by their places if `rotated`."""

    def fold_block(number: int) -> Block:
        return _fold_block(weights.below(str(number)), heads, activation, rotated=rotated)

    with ThreadPoolExecutor(available_cores()) as pool:
        return tuple(pool.map(fold_block, range(count)))


def _fold_attention(weights: Weights, heads: int, *, rotated: bool = False) -> tuple[Linear, Linear, Linear, Linear]:
    """Fold the block's first norm into its queries, keys and values, and return them with the output layer."""
    gain, bias = weights["ln_1.weight"], weights["ln_1.bias"]
    query, key, value = (fold_norm(projection, gain, bias) for projection in weights.projections())
    value, out = move_value_bias(value, weights.own_linear("attn.out_proj"))
    query = scale_queries(query, query.weight.shape[0] // heads)
    if rotated:  # each key's bias is turned by its own place, so it does not drop out
        return order_pairs(query, heads), order_pairs(key, heads), value, out
    return query, drop_key_bias(key), value, out


def fold_mlp(weights: Weights, activation: TowerActivation) -> Mlp:
    """Fold the norm before a block's MLP into it."""
    fc = fold_norm(weights.linear("mlp.c_fc"), weights["ln_2.weight"], weights["ln_2.bias"])
    mlp = Mlp(fc, weights.own_linear("mlp.c_proj"))
    return quick_gelu_to_silu(mlp) if activation == "quick_gelu" else mlp


def _fold_block(weights: Weights, heads: int, activation: TowerActivation, *, rotated: bool) -> Block:
    query, key, value, out = _fold_attention(weights, heads, rotated=rotated)
    qkv = Linear(torch.cat([query.weight, key.weight, value.weight]), torch.cat([query.bias, key.bias, value.bias]))
    mlp = fold_mlp(weights, activation)
    weights.release()
    return Block(qkv, out, mlp)


def _fold_resnet(
    weights: Weights, stages: tuple[int, ...], architecture: Architecture, settings: PreprocessSettings
) -> LeanResNet:
    first = weights.conv("conv1", "bn1", padding=1)
    center, weight = fold_pixels_into_stem(first.weight, settings.mean, settings.std)
    stem = (
        Conv(weight, first.bias, stride=2, padding=1),
        weights.conv("conv2", "bn2", padding=1),
        weights.conv("conv3", "bn3", padding=1),
    )
    blocks = tuple(
        _fold_bottleneck(weights.below(f"layer{stage}.{i}"), shrinks=stage > 1 and i == 0, widens=i == 0)
        for stage, count in enumerate(stages, start=1)
        for i in range(count)
    )
    pool = weights.below("attnpool")
    heads = vision_heads(architecture)
    value, out = move_value_bias(pool.linear("v_proj"), pool.own_linear("c_proj"))
    query = pool.linear("q_proj")
    query = scale_queries(query, query.weight.shape[0] // heads)
    attention = one_query(query, drop_key_bias(pool.own_linear("k_proj")), value, out, heads)
    positions = pool.own("positional_embedding")
    return LeanResNet(architecture.image_resolution, center, stem, blocks, positions, attention)


def _fold_bottleneck(weights: Weights, *, shrinks: bool, widens: bool) -> LeanBottleneck:
    block = LeanBottleneck(
        weights.conv("conv1", "bn1"),
        weights.conv("conv2", "bn2", padding=1),
        weights.conv("conv3", "bn3"),
        weights.conv("downsample.0", "downsample.1") if widens else None,
        pool=2 if shrinks else 1,
    )
    weights.release()
    return block
