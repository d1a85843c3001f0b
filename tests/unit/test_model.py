"""The network beside numbers of openai/CLIP@d05afc4 and beside slow references written out by hand."""

import math
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from kit import formula
from torch import Tensor, nn

from clip.errors import CheckpointError, CheckpointKeyError
from clip.model import (
    CLIP,
    AttentionPool2d,
    Bottleneck,
    LayerNorm,
    ModifiedResNet,
    QuickGELU,
    ResidualAttentionBlock,
    build_model,
    convert_weights,
)
from clip.network.architecture import infer_architecture
from clip.network.records import Architecture

# Parameters in all and in the image tower, then after convert_weights in fp16 and in fp32; numbers in buffers; keys of
# the state dict; heads of the image tower's attention.
RELEASED = {
    "RN50": (102_007_137, 38_316_896, 76_489_568, 25_517_569, 53_303, 489, 32),
    "RN101": (119_688_033, 56_259_936, 94_118_240, 25_569_793, 105_578, 795, 32),
    "RN50x4": (178_300_601, 87_137_080, 146_278_520, 32_022_081, 109_845, 669, 40),
    "RN50x16": (290_979_217, 167_328_912, 252_296_976, 38_682_241, 194_047, 921, 48),
    "RN50x64": (623_258_305, 420_380_352, 571_316_928, 51_941_377, 410_823, 1353, 64),
    "ViT-B/32": (151_277_313, 87_849_216, 125_836_288, 25_441_025, 0, 302, 12),
    "ViT-B/16": (149_620_737, 86_192_640, 124_066_816, 25_553_921, 0, 302, 12),
    "ViT-L/14": (427_616_513, 303_966_208, 389_207_040, 38_409_473, 0, 446, 16),
    "ViT-L/14@336px": (427_944_193, 304_293_888, 389_207_040, 38_737_153, 0, 446, 16),
}
# D, R, then layers, width and patch of the image tower, then length, vocabulary, width, heads and layers of the text's.
WIDE_VIT = Architecture(64, 64, 2, 128, 8, 77, 2000, 128, 2, 3)
WIDE_RESNET = Architecture(64, 64, (1, 2, 1, 1), 16, None, 77, 2000, 64, 1, 2)
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@cache
def layout(name: str) -> CLIP:
    """Shared: not to be changed."""
    return formula.layout(formula.ARCHITECTURES[name])


@cache
def drawn(architecture: Architecture) -> CLIP:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return CLIP(**vars(architecture))


def count(tensors: Any, dtype: torch.dtype | None = None) -> int:
    return sum(tensor.numel() for tensor in tensors if dtype is None or tensor.dtype == dtype)


# The nine models.


@pytest.mark.parametrize("name", list(RELEASED))
def test_released_models_have_the_parameters_buffers_and_keys_of_the_reference(name: str) -> None:
    model, (total, visual, *_, buffers, keys, _) = layout(name), RELEASED[name]
    parameters = dict(model.named_parameters())
    entries = model.state_dict()
    assert count(parameters.values()) == total
    assert count(model.visual.parameters()) == visual
    assert len(entries) == keys
    assert count(tensor for key, tensor in entries.items() if key not in parameters) == buffers
    assert all(key in entries for key, _ in model.named_buffers(remove_duplicate=False))


@pytest.mark.parametrize("name", list(RELEASED))
def test_convert_weights_makes_of_released_models_what_the_reference_makes_fp16(name: str) -> None:
    model, (_, _, fp16, fp32, *_) = formula.layout(formula.ARCHITECTURES[name]), RELEASED[name]
    convert_weights(model)
    assert count(model.parameters(), torch.float16) == fp16
    assert count(model.parameters(), torch.float32) == fp32
    assert {tensor.dtype for tensor in model.buffers()} <= {torch.float32, torch.int64}
    assert model.dtype == torch.float16


@pytest.mark.parametrize("name", list(RELEASED))
def test_released_models_tell_their_sizes_where_the_reference_does(name: str) -> None:
    model, told = layout(name), formula.ARCHITECTURES[name]
    assert [child for child, _ in model.named_children()] == ["visual", "transformer", "token_embedding", "ln_final"]
    assert (model.context_length, model.vocab_size) == (77, 49408)
    assert (model.visual.input_resolution, model.visual.output_dim) == (told.image_resolution, told.embed_dim)
    assert (model.transformer.width, model.transformer.layers) == (told.transformer_width, 12)
    assert len(model.transformer.resblocks) == 12
    text = model.transformer.resblocks[0]
    assert (text.attn.num_heads, text.attn.batch_first, text.ln_1.eps) == (told.transformer_heads, False, 1e-5)
    if isinstance(told.vision_layers, tuple):
        stages = [getattr(model.visual, f"layer{i}") for i in (1, 2, 3, 4)]
        assert tuple(len(stage) for stage in stages) == told.vision_layers
        assert model.visual.attnpool.num_heads == RELEASED[name][-1]
        assert model.visual._inplanes == told.vision_width * 32
    else:
        assert len(model.visual.transformer.resblocks) == model.visual.transformer.layers == told.vision_layers
        assert model.visual.transformer.resblocks[-1].attn.num_heads == RELEASED[name][-1]
        assert model.visual.transformer.resblocks[-1].mlp.c_fc.out_features == told.vision_width * 4


@pytest.mark.parametrize("name", list(RELEASED))
def test_the_arguments_of_released_models_are_read_off_the_shapes_of_their_weights(name: str) -> None:
    assert infer_architecture(layout(name).state_dict()) == formula.ARCHITECTURES[name]


# What a new model starts from.


@pytest.mark.parametrize(
    ("architecture", "key", "std"),
    [
        (WIDE_VIT, "token_embedding.weight", 0.02),
        (WIDE_VIT, "positional_embedding", 0.01),
        (WIDE_VIT, "text_projection", 128**-0.5),
        (WIDE_VIT, "transformer.resblocks.0.attn.in_proj_weight", 128**-0.5),
        (WIDE_VIT, "transformer.resblocks.1.attn.out_proj.weight", 128**-0.5 * 6**-0.5),
        (WIDE_VIT, "transformer.resblocks.1.mlp.c_fc.weight", 256**-0.5),
        (WIDE_VIT, "transformer.resblocks.2.mlp.c_proj.weight", 128**-0.5 * 6**-0.5),
        (WIDE_VIT, "visual.positional_embedding", 128**-0.5),
        (WIDE_VIT, "visual.proj", 128**-0.5),
        (WIDE_VIT, "visual.transformer.resblocks.0.attn.in_proj_weight", (2 / (128 + 3 * 128)) ** 0.5),  # torch's own
        (WIDE_VIT, "visual.transformer.resblocks.0.mlp.c_fc.weight", (3 * 128) ** -0.5),  # torch's own
        (WIDE_RESNET, "visual.attnpool.positional_embedding", 512**-0.5),
        (WIDE_RESNET, "visual.attnpool.q_proj.weight", 512**-0.5),
        (WIDE_RESNET, "visual.attnpool.k_proj.weight", 512**-0.5),
        (WIDE_RESNET, "visual.attnpool.v_proj.weight", 512**-0.5),
        (WIDE_RESNET, "visual.attnpool.c_proj.weight", 512**-0.5),
    ],
)
def test_start_values_spread_as_the_references(architecture: Architecture, key: str, std: float) -> None:
    weights = drawn(architecture).state_dict()[key]
    assert float(weights.std()) == pytest.approx(std, rel=0.05)
    assert abs(float(weights.mean())) < 0.1 * std


def test_each_bottleneck_starts_as_its_shortcut_and_the_stem_does_not() -> None:
    model = drawn(WIDE_RESNET)
    found = {key: weight for key, weight in model.named_parameters() if key.endswith("bn3.weight")}
    assert [key for key, weight in found.items() if not weight.any()] == list(found)[1:]
    assert next(iter(found)) == "visual.bn3.weight"
    assert (found["visual.bn3.weight"] == 1).all()
    assert len(found) == 6


def test_the_temperature_starts_at_one_over_seven_hundredths() -> None:
    scale = drawn(WIDE_VIT).logit_scale.detach()
    assert (scale.shape, scale.dtype) == ((), torch.float32)
    assert float(scale.exp()) == pytest.approx(1 / 0.07, rel=1e-5)


def test_layers_of_the_image_tower_may_come_in_a_list_as_from_json_and_a_vit_needs_its_patch_size() -> None:
    arguments = vars(WIDE_RESNET) | {"vision_layers": [1, 1, 1, 1]}
    with torch.device("meta"):
        assert isinstance(CLIP(**arguments).visual, ModifiedResNet)
    with pytest.raises(CheckpointError, match="vision_patch_size"):
        CLIP(**(vars(WIDE_VIT) | {"vision_patch_size": None}))


# Masks.


@pytest.mark.parametrize("length", [77, 16])
def test_the_mask_is_minus_infinity_above_the_diagonal_and_zero_elsewhere(length: int) -> None:
    mask = formula.layout(replace(WIDE_VIT, context_length=length)).build_attention_mask()
    above = np.arange(length)[None, :] > np.arange(length)[:, None]  # the key stands after the query
    assert np.array_equal(mask.numpy(), np.where(above, -np.inf, 0).astype(np.float32))


def test_text_blocks_have_the_mask_and_image_blocks_have_none() -> None:
    model = drawn(WIDE_VIT)
    for block in model.transformer.resblocks:
        assert torch.equal(block.attn_mask, model.build_attention_mask())
    assert [block.attn_mask for block in model.visual.transformer.resblocks] == [None, None]


def test_no_token_sees_those_after_it() -> None:
    model = drawn(WIDE_VIT).eval()
    x = torch.randn(77, 2, 128, generator=torch.manual_seed(0))
    changed = torch.cat([x[:40], torch.zeros(37, 2, 128)])
    with torch.no_grad():
        difference = (model.transformer(x) - model.transformer(changed)).abs().amax(dim=(1, 2))
    assert difference[:40].max() < 1e-5
    assert difference[40:].min() > 1e-2


# The parts.


def multi_head(x: np.ndarray, block: ResidualAttentionBlock, heads: int) -> np.ndarray:
    """Self-attention of (L, W) under the block's mask, one head and one query at a time."""
    weights = {key: value.numpy() for key, value in block.attn.state_dict().items()}
    q, k, v = np.split(x @ weights["in_proj_weight"].T + weights["in_proj_bias"], 3, axis=1)
    mixed = np.zeros_like(x)
    for head in np.split(np.arange(x.shape[1]), heads):
        for i in range(len(x)):
            scores = k[:, head] @ q[i, head] / math.sqrt(len(head))
            if block.attn_mask is not None:
                scores = scores + block.attn_mask[i].numpy()
            shares = np.exp(scores - scores.max())
            mixed[i, head] = shares @ v[:, head] / shares.sum()
    return mixed @ weights["out_proj.weight"].T + weights["out_proj.bias"]


def normed(x: np.ndarray, norm: nn.LayerNorm) -> np.ndarray:
    centred = x - x.mean(axis=-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5)
    return scaled * norm.weight.detach().numpy() + norm.bias.detach().numpy()


def slow_block(x: np.ndarray, block: ResidualAttentionBlock, heads: int) -> np.ndarray:
    x = x + multi_head(normed(x, block.ln_1), block, heads)
    weights = {key: value.numpy() for key, value in block.mlp.state_dict().items()}
    hidden = normed(x, block.ln_2) @ weights["c_fc.weight"].T + weights["c_fc.bias"]
    hidden = hidden / (1 + np.exp(-1.702 * hidden))
    return x + hidden @ weights["c_proj.weight"].T + weights["c_proj.bias"]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 3), st.integers(1, 3), st.integers(1, 6), st.booleans(), st.integers(0, 99))
def test_a_block_equals_one_written_out_by_hand(
    length: int, batch: int, heads: int, head_width: int, masked: bool, seed: int
) -> None:
    width, generator = heads * head_width, torch.manual_seed(seed)
    mask = torch.full((length, length), float("-inf")).triu_(1) if masked else None
    block = ResidualAttentionBlock(width, heads, mask).double().eval()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        x = torch.randn(length, batch, width, generator=generator, dtype=torch.float64)
        found = block(x).numpy()
    expected = np.stack([slow_block(x[:, i].numpy(), block, heads) for i in range(batch)], axis=1)
    assert np.abs(found - expected).max() <= 1e-12 * np.abs(expected).max()


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 4), st.integers(1, 3), st.integers(1, 4), st.integers(1, 6), st.none() | st.integers(1, 9), st.data()
)
def test_attention_pooling_equals_torchs_attention_with_the_mean_as_the_query(
    side: int, batch: int, heads: int, head_width: int, output_dim: int | None, data: st.DataObject
) -> None:
    width, generator = heads * head_width, torch.manual_seed(data.draw(st.integers(0, 99)))
    pool = AttentionPool2d(side, width, heads, output_dim).double()
    features = torch.randn(batch, width, side, side, generator=generator, dtype=torch.float64)
    tokens = features.flatten(2).permute(2, 0, 1)  # (R*R, B, C)
    tokens = torch.cat([tokens.mean(0, keepdim=True), tokens]) + pool.positional_embedding[:, None]
    expected, _ = F.multi_head_attention_forward(
        query=tokens[:1],
        key=tokens,
        value=tokens,
        embed_dim_to_check=width,
        num_heads=heads,
        in_proj_weight=None,
        in_proj_bias=torch.cat([pool.q_proj.bias, pool.k_proj.bias, pool.v_proj.bias]),
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0.0,
        out_proj_weight=pool.c_proj.weight,
        out_proj_bias=pool.c_proj.bias,
        use_separate_proj_weight=True,
        q_proj_weight=pool.q_proj.weight,
        k_proj_weight=pool.k_proj.weight,
        v_proj_weight=pool.v_proj.weight,
        need_weights=False,
    )
    found = pool(features)
    assert found.shape == (batch, output_dim or width)
    assert torch.allclose(found, expected[0], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(
    ("inplanes", "stride", "pools"), [(64, 1, False), (32, 1, False), (64, 2, True), (32, 2, True)]
)
def test_a_bottleneck_pools_for_its_stride_and_convolves_its_shortcut_only_where_sizes_change(
    inplanes: int, stride: int, pools: bool
) -> None:
    block = Bottleneck(inplanes, 16, stride).eval()
    x = torch.randn(2, inplanes, 8, 8, generator=torch.manual_seed(0))
    assert block(x).shape == (2, 64, 8 // stride, 8 // stride)
    assert isinstance(block.avgpool, nn.AvgPool2d) is pools
    assert {module.stride for module in block.modules() if isinstance(module, nn.Conv2d)} == {(1, 1)}
    if inplanes == 64 and stride == 1:
        assert block.downsample is None
    else:
        assert [name for name, _ in block.downsample.named_children()] == ["-1", "0", "1"]
    with torch.no_grad():
        block.bn3.weight.zero_()
        shortcut = x if block.downsample is None else block.downsample(x)
        assert torch.equal(block(x), shortcut.relu())


def test_quick_gelu_is_the_sigmoid_approximation_and_not_the_exact_one() -> None:
    x = torch.linspace(-6, 6, 101, dtype=torch.float64)
    found = QuickGELU()(x).numpy()
    assert np.allclose(found, x.numpy() / (1 + np.exp(-1.702 * x.numpy())), rtol=1e-13, atol=0)
    assert 0.01 < np.abs(found - F.gelu(x).numpy()).max() < 0.03


@pytest.mark.parametrize("weights", FLOATS, ids=str)
@pytest.mark.parametrize("inputs", FLOATS, ids=str)
def test_layer_norm_takes_weights_of_any_dtype_and_computes_in_float32_or_wider(
    inputs: torch.dtype, weights: torch.dtype
) -> None:
    generator = torch.manual_seed(0)
    norm = LayerNorm(96).to(weights).requires_grad_(False)
    norm.weight.copy_(1 + 0.1 * torch.randn(96, generator=generator))
    norm.bias.copy_(0.1 * torch.randn(96, generator=generator))
    x = (100 + torch.randn(4, 5, 96, generator=generator)).to(inputs)  # a mean that 16 bits would lose
    found = norm(x)
    wide = torch.float64 if inputs == torch.float64 else torch.float32
    assert found.dtype == inputs
    assert torch.equal(found, F.layer_norm(x.to(wide), (96,), norm.weight.to(wide), norm.bias.to(wide)).to(inputs))
    expected = normed(x.double().numpy(), norm.double())
    assert np.allclose(found.double().numpy(), expected, rtol=2 * torch.finfo(inputs).eps, atol=1e-4)


# convert_weights, and weights that do not fit.


def test_convert_weights_halves_matrices_and_projections_of_any_module_and_nothing_else() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1d, self.conv2d, self.conv3d = (
                nn.Conv1d(2, 2, 1),
                nn.Conv2d(2, 2, 1, bias=False),
                nn.Conv3d(2, 2, 1),
            )
            self.attn = nn.MultiheadAttention(4, 2, add_bias_kv=True, kdim=3, vdim=2)
            self.norm, self.batch_norm, self.embedding = LayerNorm(2), nn.BatchNorm2d(2), nn.Embedding(3, 2)
            self.text_projection = nn.Parameter(torch.ones(2, 2))
            self.positional_embedding = nn.Parameter(torch.ones(2, 2))
            self.proj = nn.Linear(2, 2)  # a layer of this name, as in other networks, is no projection matrix

    model = Mixed()
    convert_weights(model)
    halves = {name for name, parameter in model.named_parameters() if parameter.dtype == torch.float16}
    attn = "q_proj_weight k_proj_weight v_proj_weight in_proj_bias bias_k bias_v out_proj.weight out_proj.bias"
    assert halves == {
        "conv1d.weight",
        "conv1d.bias",
        "conv2d.weight",
        "text_projection",
        "proj.weight",
        "proj.bias",
    } | {f"attn.{name}" for name in attn.split()}


def without(key: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in drawn(WIDE_VIT).state_dict().items() if name != key}


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        ({}, CheckpointKeyError, "'visual.conv1.weight' is missing"),
        (without("text_projection"), CheckpointKeyError, "'text_projection' is missing"),
        (without("ln_final.bias"), CheckpointError, "missing ln_final.bias"),
        (without("") | {"extra": torch.zeros(1)}, CheckpointError, "unexpected 'extra'"),
        (without("") | {"ln_final.bias": torch.zeros(7)}, CheckpointError, r"ln_final.bias is \(7,\)"),
        (without("") | {"visual.positional_embedding": torch.zeros(7, 128)}, CheckpointError, "7 positions"),
    ],
    ids=["nothing", "no projection", "no bias", "an extra entry", "another shape", "no square"],
)
def test_weights_that_do_not_fit_are_refused_with_the_entry_named(
    weights: dict[str, Tensor], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        build_model(weights)
    assert isinstance(caught.value, RuntimeError)
    assert isinstance(caught.value, KeyError) is (error is CheckpointKeyError)
