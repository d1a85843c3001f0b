"""Weights of PE-Cores: layouts there and back, what is refused by name, nothing assumed. Features: tests/parity."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kit import formula, pe
from kit.configurations import changed
from kit.pe import tiny_networks  # noqa: F401
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import clip
from clip.errors import CheckpointError, InputError, TextTooLongError
from clip.health.check import check_model
from clip.jobs.classify import ClassifyJob
from clip.weights.checkpoints import export, read_checkpoint
from clip.weights.pe import PE_NAMES
from clip.weights.pe_layouts import from_pe, to_pe
from clip.weights.published import META_NAMES

pytestmark = pytest.mark.usefixtures("tiny_networks")


@pytest.mark.parametrize("naming", ["meta", "open_clip"])
@pytest.mark.parametrize("name", pe.TINY_ROWS)
def test_names_go_to_a_library_and_back(naming: Any, name: str) -> None:
    weights = pe.without_bias(pe.state_dict(pe.architecture(name)))
    back = to_pe(from_pe(weights, naming), naming)
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[key], tensor) for key, tensor in weights.items())


def test_meta_has_no_place_for_the_bias_of_the_projection() -> None:
    with pytest.raises(CheckpointError, match="projection of images has a bias"):
        from_pe(pe.state_dict(pe.architecture(pe.TINY)), "meta")


@pytest.mark.parametrize("name", pe.TINY_ROWS)
def test_metas_file_needs_no_configuration_and_gives_open_clips_vectors(name: str, tmp_path: Path) -> None:
    folder = pe.write(tmp_path / "open_clip", name)
    weights = load_file(folder / "open_clip_model.safetensors")
    weights["visual.trunk.head.bias"] *= 0
    save_file(weights, folder / "open_clip_model.safetensors")
    metas = clip.Encoder(pe.write_meta(tmp_path / "weights.pt", name))
    open_clips = clip.Encoder(folder)
    assert metas.architecture == open_clips.architecture
    assert metas.settings == open_clips.settings
    image, texts = formula.picture(0, 64, 43), ["a photo of a cat", "a dog"]
    assert np.abs(metas.embed_images([image]) - open_clips.embed_images([image])).max() < 1e-6
    assert np.abs(metas.embed_texts(texts) - open_clips.embed_texts(texts)).max() < 1e-6


def test_an_exported_file_has_all_that_the_folder_had(tmp_path: Path) -> None:
    folder = pe.write(tmp_path / "model")
    checkpoint = read_checkpoint(folder)
    export(checkpoint, tmp_path / "one.safetensors")
    again = read_checkpoint(tmp_path / "one.safetensors")
    assert (again.architecture, again.preprocess) == (checkpoint.architecture, checkpoint.preprocess)
    image = formula.picture(0, 64, 43)
    whole, one = clip.Encoder(folder), clip.Encoder(tmp_path / "one.safetensors")
    assert np.abs(whole.embed_images([image]) - one.embed_images([image])).max() < 1e-6
    with pytest.raises(CheckpointError, match=r"vision width is 64.* for each of 3 heads"):
        save_with_header(tmp_path, {"vision_heads": 3})


def save_with_header(folder: Path, changes: dict[str, object]) -> None:
    """Write the exported file again with another header, and read it."""
    with safe_open(folder / "one.safetensors", framework="np") as file:
        header = json.loads(file.metadata()["clip-turbo"])
    header["architecture"] |= changes
    weights = load_file(folder / "one.safetensors")
    save_file(weights, folder / "two.safetensors", metadata={"clip-turbo": json.dumps(header)})
    read_checkpoint(folder / "two.safetensors")


def test_weights_of_other_sizes_than_the_published_are_not_guessed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pe.write_meta(tmp_path / "weights.pt")
    row = list(pe.TINY_ROWS[pe.TINY])
    row[3] = 3
    monkeypatch.setattr("clip.weights.pe._NETWORKS", {name: tuple(row) for name in PE_NAMES})
    with pytest.raises(CheckpointError, match="of other sizes than the published"):
        read_checkpoint(path)
    with pytest.raises(CheckpointError, match="vision_layers is 3"):
        read_checkpoint(path, pe.TINY)


@pytest.mark.parametrize("name", [pe.TINY, "PE-Core-T16-384"])
def test_a_network_may_be_named_in_open_clips_words_and_in_metas(name: str, tmp_path: Path) -> None:
    path = pe.write_meta(tmp_path / "weights.pt")
    assert read_checkpoint(path, name).architecture == read_checkpoint(path).architecture
    assert META_NAMES.keys() & PE_NAMES == set()
    assert set(META_NAMES.values()) == set(PE_NAMES)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("model_cfg.vision_cfg.timm_model_name", "vit_pe_spatial_tiny_patch16_512", "timm_model_name"),
        ("model_cfg.vision_cfg.timm_pool", "avg", "timm_pool"),
        ("model_cfg.vision_cfg.timm_proj", "linear", "timm_proj"),
        ("model_cfg.vision_cfg.image_size", 64, "image_resolution is 64"),
        ("model_cfg.text_cfg.pool_type", "last", "pool_type"),
        ("model_cfg.text_cfg.no_causal_mask", True, "no_causal_mask"),
        ("model_cfg.text_cfg.heads", 3, "text width"),
        ("model_cfg.text_cfg.a_new_setting", 1, "a_new_setting"),
        ("model_cfg.quick_gelu", True, "quick_gelu"),
        ("model_cfg.embed_dim", 64, "embed_dim is 64"),
        ("preprocess_cfg.size", 64, "size is 64"),
    ],
)
def test_what_open_clips_configuration_says_and_we_cannot_do_is_refused(
    path: str, value: object, said: str, tmp_path: Path
) -> None:
    pe.write(tmp_path)
    (tmp_path / "open_clip_config.json").write_text(json.dumps(changed(pe.open_clip_config(pe.TINY), path, value)))
    with pytest.raises(CheckpointError, match=said):
        read_checkpoint(tmp_path)


def test_an_entry_of_another_perception_encoder_is_refused(tmp_path: Path) -> None:
    """PE-Spatial and PE-Lang scale what a block adds."""
    weights = from_pe(pe.without_bias(pe.state_dict(pe.architecture(pe.TINY))), "meta")
    weights["visual.transformer.resblocks.0.ls_1.gamma"] = torch.ones(64)
    torch.save(weights, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match=r"of no PE-Core, such as .*ls_1\.gamma"):
        read_checkpoint(tmp_path / "weights.pt")


def test_a_configuration_of_another_network_is_refused(tmp_path: Path) -> None:
    path = pe.write_meta(tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match="describes a CLIP, and the weights are of a PE-Core"):
        read_checkpoint(path, "ViT-B/32")
    with pytest.raises(CheckpointError, match="describes a SigLIP, and the weights are of a PE-Core"):
        read_checkpoint(path, "ViT-B-16-SigLIP2-256")
    torch.save(formula.state_dict(formula.TINY["tiny-vit"]), tmp_path / "clip.pt")
    with pytest.raises(CheckpointError, match="describes a PE-Core, and the weights are of a CLIP"):
        read_checkpoint(tmp_path / "clip.pt", pe.TINY)


def test_a_text_has_room_for_thirty_tokens(tmp_path: Path) -> None:
    encoder = clip.Encoder(pe.write(tmp_path))
    assert encoder.context_length == 32
    assert encoder.tokenize(["cat " * 30]).shape == (1, 32)
    with pytest.raises(TextTooLongError, match="found 33 tokens, expected at most 32"):
        encoder.embed_texts(["cat " * 31])
    model, _ = clip.load(tmp_path, device="cpu")
    assert torch.equal(model.tokenize("cat " * 31, truncate=True), encoder.tokenize("cat " * 31, truncate=True))


def test_it_is_eager_when_loaded_and_cannot_be_told_a_precision(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a network that is eager"):
        clip.load(pe.write(tmp_path), device="cpu", precision="fp32")


def test_it_is_checked_embedded_and_classified(tmp_path: Path) -> None:
    """The whole way: `models --check`, embed, classify, whose probabilities are softmaxes."""
    folder = pe.write(tmp_path / "model")
    assert not [row for row in check_model(str(folder)) if row.passed is False]
    (tmp_path / "photos").mkdir()
    for number in range(3):
        formula.picture(number, 60, 50).save(tmp_path / "photos" / f"{number}.png")
    model = clip.jobs.ModelOptions(str(folder))
    report = clip.embed(clip.EmbedJob(source=tmp_path / "photos", output=tmp_path / "out", model=model))
    assert (report.read, report.written, report.failed) == (3, 3, 0)
    vectors = clip.Store(tmp_path / "out").vectors()
    assert np.abs(vectors - clip.Encoder(folder).embed_images(sorted((tmp_path / "photos").iterdir()))).max() < 1e-6
    classified = clip.classify(ClassifyJob(source=tmp_path / "out", labels=("cat", "dog"), k=2))
    assert [abs(sum(p for _, p in row.top) - 1) < 1e-5 for row in classified.rows] == [True] * 3
