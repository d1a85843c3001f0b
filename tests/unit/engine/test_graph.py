"""The lean graph on torch beside the model, in float64: the whole of it agrees to 1e-12 of a row's RMS."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kit import formula
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from clip.engine.backend_torch import TorchOps, image_features, place
from clip.engine.engine import make_text_inputs
from clip.engine.fold import LeanResNet, fold_image_tower, fold_text_tower
from clip.engine.graph import resnet_features, text_features, vit_features
from clip.images.preprocess import normalize_pixels
from clip.model import CLIP, load_weights
from clip.network.records import Architecture, PreprocessSettings

TOLERANCE = 1e-12
UNUSUAL = {
    "gelu": replace(formula.TINY["tiny-vit"], activation="gelu"),
    "narrow-heads": replace(formula.TINY["tiny-vit"], vision_heads=4),
    "thin-mlp": replace(formula.TINY["tiny-vit"], vision_mlp_width=96, transformer_mlp_width=40),
    "one-layer": replace(formula.TINY["tiny-vit"], vision_layers=1, transformer_layers=1),
}
ARCHITECTURES = formula.TINY | UNUSUAL
SETTINGS = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.25)}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def weights(architecture: Architecture) -> dict[str, Tensor]:
    state_dict = formula.state_dict(architecture)
    return {key: x.double() if x.is_floating_point() else x for key, x in state_dict.items()}


def model_of(architecture: Architecture, state_dict: dict[str, Tensor]) -> CLIP:
    model = load_weights(dict(state_dict), architecture, mixed_fp16=False).double()
    model.load_state_dict(state_dict)
    return model


def error(found: Tensor, expected: Tensor) -> float:
    assert found.dtype == expected.dtype == torch.float64
    assert found.shape == expected.shape
    return float(((found - expected).abs().amax(dim=1) / expected.square().mean(dim=1).sqrt()).max())


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_pictures(name: str) -> None:
    architecture = ARCHITECTURES[name]
    preprocess = PreprocessSettings(architecture.image_resolution, **SETTINGS)
    state_dict = weights(architecture)
    side = architecture.image_resolution
    pixels = torch.randint(0, 256, (3, side, side, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    mean, std = (torch.tensor(SETTINGS[key], dtype=torch.float64) for key in ("mean", "std"))
    images = ((pixels.double() / 255 - mean) / std).permute(0, 3, 1, 2)
    tower = fold_image_tower(state_dict, architecture, preprocess)
    features = resnet_features if isinstance(tower, LeanResNet) else vit_features
    with torch.no_grad():
        expected = model_of(architecture, state_dict).encode_image(images)
        assert error(features(TorchOps(torch.float64), tower, pixels), expected) < TOLERANCE
        # Floats in the units of bytes go the same way.
        assert error(features(TorchOps(torch.float64), tower, pixels.double()), expected) < TOLERANCE
    assert normalize_pixels(pixels, preprocess).shape == images.shape


def texts(lengths: list[int], vocabulary: int = 49408) -> Tensor:
    """Token tables as `clip.tokenize` makes them: start, so many tokens, end, zeros."""
    table = torch.zeros(len(lengths), 77, dtype=torch.int32)
    for row, length in enumerate(lengths):
        table[row, 0] = vocabulary - 2
        table[row, 1 : length + 1] = torch.arange(length) * 37 % (vocabulary - 2)
        table[row, length + 1] = vocabulary - 1
    return table


@pytest.mark.parametrize("name", ["tiny-vit", "tiny-vit-wide", "gelu", "thin-mlp", "one-layer"])
@settings(max_examples=8, deadline=None)
@given(lengths=st.lists(st.integers(0, 75), min_size=1, max_size=5))
def test_texts_cut_behind_the_longest(name: str, lengths: list[int]) -> None:
    architecture = ARCHITECTURES[name]
    model, tower = TEXT_TOWERS.get(name) or (None, None)
    if model is None:
        state_dict = weights(architecture)
        model, tower = model_of(architecture, state_dict), fold_text_tower(state_dict, architecture)
        TEXT_TOWERS[name] = (model, tower)
    tokens = texts(lengths)
    inputs = make_text_inputs(tokens, tokens.argmax(dim=-1))
    assert inputs[0].shape[1] == min(77, -(-(max(lengths) + 2) // 8) * 8)
    with torch.no_grad():
        found = text_features(
            TorchOps(torch.float64), tower, *(x.double() if x.is_floating_point() else x for x in inputs)
        )
        assert error(found, model.encode_text(tokens)) < TOLERANCE


def test_the_inputs_of_texts_have_their_dtypes_whatever_torchs_default_is() -> None:
    tokens = texts([3, 5])
    torch.set_default_dtype(torch.float64)
    try:
        inputs = make_text_inputs(tokens, tokens.argmax(dim=-1))
    finally:
        torch.set_default_dtype(torch.float32)
    assert [x.dtype for x in inputs] == [torch.int32, torch.int32, torch.int32, torch.float32]


TEXT_TOWERS: dict[str, Any] = {}


@pytest.mark.parametrize("name", ["gelu", "tiny-rn"])
def test_towers_share_no_memory_with_the_weights_they_were_made_of(name: str) -> None:
    architecture = ARCHITECTURES[name]
    state_dict = formula.state_dict(architecture)
    theirs = {x.untyped_storage().data_ptr() for x in state_dict.values()}
    ours: list[int] = []
    towers = (
        fold_image_tower(state_dict, architecture, PreprocessSettings(32)),
        fold_text_tower(state_dict, architecture),
    )
    place(towers, lambda x: ours.append(x.untyped_storage().data_ptr()) or x)
    assert len(ours) > 20
    assert not theirs & set(ours)


@pytest.mark.parametrize("name", ["tiny-vit", "tiny-rn"])
def test_the_graph_can_be_compiled_as_a_whole(name: str) -> None:
    """As on CUDA, but without a code generator: one graph, no break, no second compilation for the same shape."""
    architecture = ARCHITECTURES[name]
    tower = fold_image_tower(
        formula.state_dict(architecture), architecture, PreprocessSettings(architecture.image_resolution)
    )
    function = image_features(tower, torch.float32)
    counter = CompileCounter()
    compiled = torch.compile(function, dynamic=False, fullgraph=True, backend=counter)
    side = architecture.image_resolution
    pixels = torch.randint(0, 256, (2, side, side, 3), dtype=torch.uint8)
    with torch.inference_mode():
        for _ in range(2):
            assert torch.allclose(compiled(pixels), function(pixels), atol=1e-5)
    assert counter.frame_count == 1
    torch.compiler.reset()
