"""Checkpoints of transformers and open_clip, read as they are saved, beside transformers' own features."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from kit import formula
from kit.configurations import open_clip_config
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel

import clip
from clip.clip import load_model
from clip.errors import CheckpointError
from clip.network.records import Architecture
from clip.weights import architectures
from clip.weights.checkpoints import read_checkpoint
from clip.weights.layouts import to_transformers
from clip.weights.releases import RELEASES

TOLERANCE = 5e-5  # of the RMS of a row
OPENAI = {name: release.architecture for name, release in RELEASES.items() if name.startswith("ViT")}
# One at its full depth, two layers of the others: names and shapes differ by width and patch, and layers are alike.
VITS = {
    name: architecture if name == "ViT-B/32" else replace(architecture, vision_layers=2, transformer_layers=2)
    for name, architecture in OPENAI.items()
}
# Two layers of the widths that LAION trained, which have another activation, other heads and other MLPs.
LAION = {
    "H/14": Architecture(1024, 224, 2, 1280, 14, 77, 49408, 1024, 16, 2, "gelu", 16),
    "g/14": Architecture(1024, 224, 2, 1408, 14, 77, 49408, 1024, 16, 2, "gelu", 16, 6144),
    "bigG/14": Architecture(1280, 224, 2, 1664, 14, 77, 49408, 1280, 20, 2, "gelu", 16, 8192),
    "gelu, heads of 32": Architecture(64, 32, 2, 128, 8, 77, 49408, 128, 4, 2, "gelu", 4, 200, 300),
}


def their_model(a: Architecture) -> CLIPModel:
    def tower(width: int, heads: int, layers: int, mlp_width: int | None) -> dict[str, object]:
        shape = {"hidden_size": width, "intermediate_size": mlp_width or 4 * width, "num_attention_heads": heads}
        return shape | {"num_hidden_layers": layers, "projection_dim": a.embed_dim, "hidden_act": a.activation}

    text = {"vocab_size": a.vocab_size, "max_position_embeddings": a.context_length, "eos_token_id": 49407}
    vision = {"image_size": a.image_resolution, "patch_size": a.vision_patch_size}
    heads, text_layers = a.vision_heads or a.vision_width // 64, a.transformer_layers
    config = CLIPConfig(
        text_config=tower(a.transformer_width, a.transformer_heads, text_layers, a.transformer_mlp_width) | text,
        vision_config=tower(a.vision_width, heads, a.vision_layers, a.vision_mlp_width) | vision,
        projection_dim=a.embed_dim,
    )
    torch.manual_seed(0)
    model = CLIPModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # they start with norms of 1 and biases of 0, which would hide a swap
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return model


def worst_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    rms = expected.square().mean(dim=1).sqrt()
    return float(((found - expected).abs().amax(dim=1) / rms).max())


def features(model: Any, resolution: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    images, tokens = torch.randn(2, 3, resolution, resolution), clip.tokenize(formula.TEXTS)
    with torch.no_grad():
        if isinstance(model, CLIPModel):
            image, text = model.get_image_features(images), model.get_text_features(tokens.long())
            return (image, text) if isinstance(image, torch.Tensor) else (image.pooler_output, text.pooler_output)
        return model.encode_image(images), model.encode_text(tokens)


@pytest.mark.parametrize("architecture", (VITS | LAION).values(), ids=(VITS | LAION).keys())
def test_a_clipmodels_folder_gives_its_features_and_goes_back_the_same(
    architecture: Architecture, tmp_path: Path
) -> None:
    theirs = their_model(architecture)
    theirs.save_pretrained(tmp_path)
    checkpoint = read_checkpoint(tmp_path)
    assert checkpoint.architecture == architecture
    back = to_transformers(checkpoint.state_dict, architecture)
    assert all(torch.equal(back[key], tensor) for key, tensor in theirs.state_dict().items())
    assert len(back) == len(theirs.state_dict())

    ours = load_model(checkpoint, torch.device("cpu"))
    wanted, found = features(theirs, architecture.image_resolution), features(ours, architecture.image_resolution)
    assert worst_error(found[0], wanted[0]) < TOLERANCE
    assert worst_error(found[1], wanted[1]) < TOLERANCE


def save_open_clip(folder: Path, state_dict: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
    save_file({key: tensor.contiguous() for key, tensor in state_dict.items()}, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("name", [*VITS, "RN50", *LAION])
def test_an_open_clip_folder_gives_the_features_of_the_same_weights(name: str, tmp_path: Path) -> None:
    architecture = (formula.ARCHITECTURES | VITS | LAION)[name]
    state_dict = formula.state_dict(architecture)
    save_open_clip(tmp_path, state_dict, open_clip_config(architecture))
    model, _ = clip.load(tmp_path, device="cpu")
    if architecture != formula.ARCHITECTURES.get(name):  # there are no numbers of OpenAI's code
        wanted_by = their_model(architecture)
        wanted_by.load_state_dict(to_transformers(state_dict, architecture))
        wanted = features(wanted_by, architecture.image_resolution)
        found = features(model, architecture.image_resolution)
    else:
        row = json.loads((Path(__file__).parent.parent / "golden" / "features.json").read_text())["features"][name]
        preprocess = clip.clip._transform(architecture.image_resolution)
        images = torch.stack([preprocess(formula.picture(0, 640, 427)), preprocess(formula.picture(1, 333, 500))])
        with torch.no_grad():
            found = model.encode_image(images), model.encode_text(clip.tokenize(formula.TEXTS))
        wanted = torch.tensor(row["image_features"]), torch.tensor(row["text_features"])
    assert worst_error(found[0], wanted[0]) < TOLERANCE
    assert worst_error(found[1], wanted[1]) < TOLERANCE


def test_a_checkpoint_of_open_clips_training_script_gives_its_features_once_its_network_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GELU and heads of 80: taken for OpenAI's network, features would be of cosine 0.96 to the right ones."""
    architecture = LAION["H/14"]
    state_dict = formula.state_dict(architecture)
    content = {"epoch": 1, "name": "run", "state_dict": {f"module.{key}": one for key, one in state_dict.items()}}
    torch.save(content | {"optimizer": {"state": {}}}, tmp_path / "epoch_1.pt")
    with pytest.raises(CheckpointError, match=r"Pass architecture, such as ViT-H-14"):
        clip.load(tmp_path / "epoch_1.pt", device="cpu")
    by_name = dict(architectures._VITS) | {"ViT-H-14": (1024, 224, 2, 1280, 14, 80, 1024, 2)}  # of two layers, as here
    monkeypatch.setattr(architectures, "_VITS", by_name)
    architectures._list_plain.cache_clear()
    ours, _ = clip.load(tmp_path / "epoch_1.pt", device="cpu", architecture="ViT-H-14")
    architectures._list_plain.cache_clear()
    theirs = their_model(architecture)
    theirs.load_state_dict(to_transformers(state_dict, architecture))
    wanted, found = features(theirs, architecture.image_resolution), features(ours, architecture.image_resolution)
    assert worst_error(found[0], wanted[0]) < TOLERANCE
    assert worst_error(found[1], wanted[1]) < TOLERANCE
