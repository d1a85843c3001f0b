"""Each folding alone, in float64 on random weights: what it gives equals what it replaces to 1e-12."""

import dataclasses
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from kit import siglip
from torch import Tensor

from clip.engine import fold, graph
from clip.engine.backend_torch import TorchOps
from clip.engine.fold_pe import fold_rotation
from clip.engine.fold_siglip import fold_pool
from clip.engine.tower import Blocks, Linear, Mlp
from clip.network.records import OPENAI_MEAN, OPENAI_STD
from clip.network.siglip import LAYER_NORM_EPS, SigLIP
from clip.weights.pe import find_pe

TOLERANCE = 1e-12  # of the largest number; float64 rounds at 1e-16
WIDTH, HEADS, TOKENS, BATCH = 24, 3, 7, 5


@pytest.fixture
def draw() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def normal(draw: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=draw, dtype=torch.float64)


def linear(draw: torch.Generator, outputs: int = WIDTH, inputs: int = WIDTH) -> Linear:
    return Linear(normal(draw, outputs, inputs), normal(draw, outputs))


def run(layer: Linear, x: Tensor) -> Tensor:
    return F.linear(x, layer.weight, layer.bias)


def assert_equal(found: Tensor, expected: Tensor) -> None:
    assert found.dtype == expected.dtype == torch.float64
    assert found.shape == expected.shape
    assert expected.abs().max() > 1e-3, "nothing was compared"
    assert (found - expected).abs().max() < TOLERANCE * expected.abs().max()


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int = HEADS, scale: float = 1.0) -> Tensor:
    """(B, L, W) each -> (B, L, W), spelt out."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return ((q @ k.mT * scale).softmax(-1) @ v).transpose(1, 2).flatten(2)


def test_a_layer_norm_goes_into_the_layer_after_it(draw: torch.Generator) -> None:
    layer, gain, bias, x = linear(draw), normal(draw, WIDTH), normal(draw, WIDTH), normal(draw, BATCH, WIDTH)
    expected = run(layer, F.layer_norm(x, (WIDTH,), gain, bias))
    assert_equal(run(fold.fold_norm(layer, gain, bias), F.layer_norm(x, (WIDTH,))), expected)


def test_the_scale_of_the_scores_goes_into_the_queries(draw: torch.Generator) -> None:
    query, x, k, v = linear(draw), *(normal(draw, BATCH, TOKENS, WIDTH) for _ in range(3))
    expected = attention(run(query, x), k, v, scale=(WIDTH // HEADS) ** -0.5)
    assert_equal(attention(run(fold.scale_queries(query, WIDTH // HEADS), x), k, v), expected)


def test_the_bias_of_the_keys_drops_out(draw: torch.Generator) -> None:
    key, x, q, v = linear(draw), *(normal(draw, BATCH, TOKENS, WIDTH) for _ in range(3))
    without = fold.drop_key_bias(key)
    assert not without.bias.any()
    assert_equal(attention(q, run(without, x), v), attention(q, run(key, x), v))


def test_the_bias_of_the_values_goes_past_attention(draw: torch.Generator) -> None:
    value, out, x, q, k = linear(draw), linear(draw), *(normal(draw, BATCH, TOKENS, WIDTH) for _ in range(3))
    expected = run(out, attention(q, k, run(value, x)))
    without, moved = fold.move_value_bias(value, out)
    assert not without.bias.any()
    assert_equal(run(moved, attention(q, k, run(without, x))), expected)


def test_one_query_needs_neither_keys_nor_values(draw: torch.Generator) -> None:
    query, key, value, out = (linear(draw) for _ in range(4))
    key, value = (Linear(layer.weight, torch.zeros_like(layer.bias)) for layer in (key, value))
    x = normal(draw, BATCH, TOKENS, WIDTH)
    expected = run(out, attention(run(query, x[:, :1]), run(key, x), run(value, x)))[:, 0]
    folded = fold.one_query(query, key, value, out, HEADS)
    q = run(folded.query, x[:, 0]).unflatten(-1, (HEADS, -1))  # (B, H, N)
    scores = torch.einsum("bhn,hnw,blw->bhl", q, folded.key, x)
    seen = torch.einsum("bhl,blw,hwn->bhn", scores.softmax(-1), x, folded.value)
    assert_equal(run(folded.out, seen.flatten(1)), expected)


def test_quick_gelu_becomes_silu(draw: torch.Generator) -> None:
    mlp, x = Mlp(linear(draw, 4 * WIDTH), linear(draw, WIDTH, 4 * WIDTH)), normal(draw, BATCH, WIDTH)
    hidden = run(mlp.fc, x)
    expected = run(mlp.proj, hidden * torch.sigmoid(1.702 * hidden))
    folded = fold.quick_gelu_to_silu(mlp)
    assert_equal(run(folded.proj, F.silu(run(folded.fc, x))), expected)


def test_a_batch_norm_goes_into_the_convolution_before_it(draw: torch.Generator) -> None:
    weight, x = normal(draw, 6, 4, 3, 3), normal(draw, BATCH, 4, 9, 9)
    gain, bias, mean, var = normal(draw, 6), normal(draw, 6), normal(draw, 6), normal(draw, 6).square() + 0.1
    expected = F.batch_norm(F.conv2d(x, weight, padding=1), mean, var, gain, bias)
    assert_equal(F.conv2d(x, *fold.fold_batch_norm(weight, gain, bias, mean, var), padding=1), expected)


def normalised(pixels: Tensor) -> Tensor:
    """(B, R, R, 3) -> (B, 3, R, R)."""
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in (OPENAI_MEAN, OPENAI_STD))
    return ((pixels / 255 - mean) / std).permute(0, 3, 1, 2)


def pixels(draw: torch.Generator, side: int) -> Tensor:
    return torch.randint(0, 256, (BATCH, side, side, 3), generator=draw).double()


def test_normalisation_goes_into_the_patches(draw: torch.Generator) -> None:
    weight, images = normal(draw, WIDTH, 3, 4, 4), pixels(draw, 8)
    expected = F.conv2d(normalised(images), weight, stride=4).flatten(2).transpose(1, 2)
    patches = images.reshape(BATCH, 2, 4, 2, 4, 3).permute(0, 1, 3, 2, 4, 5).reshape(BATCH, 4, -1)
    assert_equal(run(fold.fold_pixels_into_patches(weight, OPENAI_MEAN, OPENAI_STD), patches), expected)


def test_the_scale_of_normalisation_goes_into_a_stem_that_pads(draw: torch.Generator) -> None:
    weight, images = normal(draw, 6, 3, 3, 3), pixels(draw, 8)
    expected = F.conv2d(normalised(images), weight, stride=2, padding=1)
    center, folded = fold.fold_pixels_into_stem(weight, OPENAI_MEAN, OPENAI_STD)
    assert_equal(F.conv2d((images - center).permute(0, 3, 1, 2), folded, stride=2, padding=1), expected)


def test_the_class_token_goes_into_the_positions(draw: torch.Generator) -> None:
    token, positions, patches = normal(draw, WIDTH), normal(draw, TOKENS, WIDTH), normal(draw, BATCH, TOKENS - 1, WIDTH)
    expected = torch.cat([token.expand(BATCH, 1, -1), patches], dim=1) + positions
    assert_equal(F.pad(patches, (0, 0, 1, 0)) + fold.fold_class_token(token, positions), expected)


def test_a_pool_with_one_query_for_all_images_is_its_attention(draw: torch.Generator) -> None:
    """With the norm before it, in float64, beside the module."""
    a = siglip.TINY
    state_dict = {key: normal(draw, *one.shape, 1)[..., 0] for key, one in siglip.state_dict(a).items()}
    model = SigLIP(a).double()
    model.load_state_dict(state_dict)
    tokens = normal(draw, BATCH, 9, a.vision_width)
    expected = model.visual.attnpool(model.visual.ln_post(tokens))
    pool = fold_pool(fold.Weights(state_dict, fold.keep_pages, "visual."), a.vision_heads, a.vision_activation)
    ops = TorchOps(torch.float64)
    stack = Blocks(a.vision_heads, a.vision_activation, LAYER_NORM_EPS, (), None)
    assert_equal(graph._pool(ops, pool, stack, tokens), expected)


@pytest.mark.parametrize("class_token", [True, False])
def test_pairs_that_are_taken_apart_are_turned_by_halves(draw: torch.Generator, *, class_token: bool) -> None:
    """Scores beside a product of complex numbers, whose angles grow by column in the first half and by row after it."""
    query, key, side, head_width = linear(draw, 16), linear(draw, 16), 3, 8
    published = find_pe("PE-Core-B-16")
    assert published is not None
    a = replace(
        published, image_resolution=3, vision_patch_size=1, vision_width=16, vision_heads=2, class_token=class_token
    )
    tokens = side**2 + class_token
    x, value = normal(draw, BATCH, tokens, WIDTH), normal(draw, BATCH, tokens, 16)
    places = [(n % side + class_token, n // side + class_token) for n in range(side**2)]
    angles = torch.tensor(
        [[0.0] * 4] * class_token + [[c, c / 100, r, r / 100] for c, r in places], dtype=torch.float64
    )
    turns = torch.polar(torch.ones_like(angles), angles)  # (L, N / 2)
    numbers = (torch.view_as_complex(run(one, x).unflatten(-1, (2, -1, 2))) for one in (query, key))  # (B, L, H, N / 2)
    q, k = ((one * turns[:, None]).transpose(1, 2) for one in numbers)  # (B, H, L, N / 2)
    scores = (q @ k.conj().transpose(2, 3)).real
    expected = scores.softmax(dim=-1) @ value.unflatten(-1, (2, -1)).transpose(1, 2)  # (B, H, L, N)
    qkv = torch.cat([run(fold.order_pairs(one, 2), x) for one in (query, key)] + [value], dim=-1)
    rotation = fold_rotation(a, torch.float64)
    assert rotation.cos.shape == (tokens, head_width // 2)
    found = TorchOps(torch.float64).self_attention(qkv, 2, causal=False, rotation=rotation)
    assert_equal(found, expected.transpose(1, 2).flatten(2))


def test_every_folding_has_a_test() -> None:
    """Those that take tensors or layers; the others put them together."""
    foldings = {"fold_norm", "scale_queries", "drop_key_bias", "move_value_bias", "one_query", "quick_gelu_to_silu"}
    foldings |= {
        "fold_batch_norm",
        "fold_pixels_into_patches",
        "fold_pixels_into_stem",
        "fold_class_token",
        "order_pairs",
    }
    public = {name for name, value in vars(fold).items() if callable(value) and value.__module__ == "clip.engine.fold"}
    records = {name for name in public if dataclasses.is_dataclass(getattr(fold, name))}
    together = {"fold_image_tower", "fold_text_tower", "fold_stack", "fold_blocks", "fold_mlp", "Weights", "keep_pages"}
    assert {name for name in public - records if not name.startswith("_")} == foldings | together
