"""SigLIP beside transformers' own: features, scores, pixels, tokens. open_clip's features: LOG.md, and tests/golden."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kit import formula, siglip
from transformers import Siglip2Tokenizer, SiglipConfig, SiglipModel
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

import clip
from clip.engine.backend_torch import TorchBackend
from clip.engine.devices import make_backend
from clip.engine.engine import Engine
from clip.network.records import SiglipArchitecture
from clip.retrieval.classify import Classifier
from clip.weights.checkpoints import read_checkpoint
from clip.weights.families import read_any_configuration
from clip.weights.siglip import find_siglip
from clip.weights.siglip_layouts import from_siglip

EAGER, LEAN = 5e-5, 2e-5  # of the RMS of a row
TEXTS = [
    "a photo of a cat", "A Photo OF a DOG!", "two red boats,  at sea ", "", "ΣΟΦΟΣ", "日本の写真 😀", "İstanbul",
    "word " * 100, "<eos> in a text", "line\nbreak\tand tab",
]  # fmt: skip


def named(name: str) -> SiglipArchitecture:
    """Two layers of a published width, with a small vocabulary, and transformers' activations."""
    architecture = find_siglip(name)
    assert architecture is not None
    tanh: dict[str, Any] = {"vision_activation": "gelu_tanh", "text_activation": "gelu_tanh"}
    return replace(architecture, vision_layers=2, transformer_layers=2, vocab_size=700, **tanh)


NETWORKS = {
    "tiny": siglip.TINY,
    "exact GELU": replace(siglip.TINY, vision_activation="gelu", text_activation="gelu"),
    **{name: named(name) for name in ("ViT-B-16-SigLIP2-256", "ViT-SO400M-14-SigLIP-384", "ViT-gopt-16-SigLIP2-256")},
}


def worst_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    rms = expected.square().mean(dim=1).sqrt()
    return float(((found - expected).abs().amax(dim=1) / rms).max())


def their_model(folder: Path) -> SiglipModel:
    return SiglipModel.from_pretrained(folder).eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_a_siglipmodels_folder_gives_its_features_and_goes_back_the_same(name: str, tmp_path: Path) -> None:
    architecture = NETWORKS[name]
    siglip.write(tmp_path, a=architecture)
    theirs = their_model(tmp_path)
    checkpoint = read_checkpoint(tmp_path)
    assert checkpoint.architecture == architecture
    back, wanted = from_siglip(checkpoint.state_dict, "transformers"), theirs.state_dict()
    assert back.keys() == wanted.keys()
    assert all(torch.equal(back[key], tensor) for key, tensor in wanted.items())

    draw = torch.Generator().manual_seed(1)
    side = architecture.image_resolution
    pixels = torch.randint(0, 256, (3, side, side, 3), dtype=torch.uint8, generator=draw)
    images = (pixels.permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
    tokens = torch.randint(0, architecture.vocab_size, (4, architecture.context_length), generator=draw)
    model, _ = clip.load(tmp_path, device="cpu")
    with torch.no_grad():
        result = theirs(input_ids=tokens, pixel_values=images)
        image, text = result.vision_model_output.pooler_output, result.text_model_output.pooler_output
        assert worst_error(model.encode_image(images), image) < EAGER
        assert worst_error(model.encode_text(tokens), text) < EAGER
        assert (model(images, tokens)[0] - result.logits_per_image).abs().max() < 1e-4
    for backend in (make_backend(torch.device("cpu"), "fp32"), TorchBackend(torch.device("cpu"), "fp32")):
        engine = Engine(checkpoint.state_dict, architecture, checkpoint.preprocess, backend)
        assert worst_error(engine.encode_pixels(pixels), image) < LEAN
        assert worst_error(engine.encode_image(images), image) < LEAN
        assert worst_error(engine.encode_text(tokens), text) < LEAN


def test_pixels_are_those_of_transformers_own_processor(tmp_path: Path) -> None:
    siglip.write(tmp_path)
    processor = SiglipImageProcessorPil.from_pretrained(tmp_path)
    _, preprocess = clip.load(tmp_path, device="cpu")
    for image in (formula.picture(0, 64, 43), formula.picture(1, 33, 50), formula.picture(2, 30, 30)):
        wanted = processor(image, return_tensors="np").pixel_values[0]
        assert np.abs(preprocess(image).numpy() - wanted).max() < 1e-6


@pytest.mark.parametrize("length", [16, 64])
def test_tokens_are_those_of_transformers_own_tokenizer(length: int, tmp_path: Path) -> None:
    siglip.write(tmp_path)
    theirs = Siglip2Tokenizer.from_pretrained(tmp_path)
    wanted = theirs(TEXTS, padding="max_length", max_length=length, truncation=True).input_ids
    model, _ = clip.load(tmp_path, device="cpu")
    assert model.tokenize(TEXTS, length, truncate=True).tolist() == wanted


def test_the_probabilities_of_classify_are_the_sigmoids_of_transformers(tmp_path: Path) -> None:
    siglip.write(tmp_path)
    theirs, tokenizer = their_model(tmp_path), Siglip2Tokenizer.from_pretrained(tmp_path)
    encoder = clip.Encoder(tmp_path)
    labels = ("cat", "dog", "boat")
    classifier = Classifier(encoder, labels, ("a photo of a {}",))
    images = [formula.picture(0, 64, 43), formula.picture(1, 33, 50)]
    found = np.concatenate(list(classifier.predict(encoder.embed_images(images))))
    texts = [f"a photo of a {label}" for label in labels]
    ids = tokenizer(texts, padding="max_length", max_length=16, return_tensors="pt").input_ids
    pixels = torch.stack([encoder.preprocess(image) for image in images])
    with torch.no_grad():
        wanted = theirs(input_ids=ids, pixel_values=pixels).logits_per_image.sigmoid().numpy()
    assert np.abs(found - wanted).max() < 1e-5
    assert np.abs(found.sum(axis=1) - 1).min() > 1e-3  # each label has a probability of its own


def test_their_defaults_are_those_that_their_configuration_leaves_out(tmp_path: Path) -> None:
    """transformers writes only what differs from its defaults."""
    config = SiglipConfig().to_diff_dict()
    siglip.write(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "preprocessor_config.json").unlink()
    read = read_any_configuration(tmp_path / "config.json")
    full = SiglipConfig()
    assert read.sizes["vision_width"] == full.vision_config.hidden_size
    assert read.sizes["vocab_size"] == full.text_config.vocab_size
    assert read.sizes["context_length"] == full.text_config.max_position_embeddings
    assert read.sizes["embed_dim"] == full.text_config.projection_size
    assert (read.vision_heads, read.preprocess.resolution_px) == (12, full.vision_config.image_size)
    processor = SiglipImageProcessorPil()
    assert list(read.preprocess.mean) == list(processor.image_mean)
    assert read.preprocess.interpolation == {2: "bilinear", 3: "bicubic"}[int(processor.resample)]
