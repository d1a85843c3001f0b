"""Weights of SigLIPs: layouts there and back, what is refused by name, nothing assumed. Features: tests/parity."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kit import formula, siglip
from kit.configurations import changed
from safetensors.torch import load_file, save_file

import clip
from clip.errors import CheckpointError, InputError, MissingExtraError, TextTooLongError
from clip.jobs.classify import ClassifyJob
from clip.weights.checkpoints import draw_checkpoint, export, read_checkpoint
from clip.weights.siglip_layouts import from_siglip, to_siglip

NAMINGS = ("transformers", "open_clip")


@pytest.mark.parametrize("naming", NAMINGS)
def test_names_go_to_a_library_and_back(naming: Any) -> None:
    weights = siglip.state_dict(siglip.TINY)
    back = to_siglip(from_siglip(weights, naming), naming)
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[key], tensor) for key, tensor in weights.items())


@pytest.mark.parametrize("naming", NAMINGS)
def test_an_exported_file_has_all_that_the_folder_had(naming: str, tmp_path: Path) -> None:
    folder = siglip.write(tmp_path / "model", naming)
    checkpoint = read_checkpoint(folder)
    export(checkpoint, tmp_path / "one.safetensors")
    again = read_checkpoint(tmp_path / "one.safetensors")
    assert (again.architecture, again.preprocess) == (checkpoint.architecture, checkpoint.preprocess)
    whole, one = clip.Encoder(folder), clip.Encoder(tmp_path / "one.safetensors")
    texts = ["a photo of a cat", "A Dog!"]
    assert np.array_equal(whole.embed_texts(texts), one.embed_texts(texts))
    image = formula.picture(0, 64, 43)
    assert np.array_equal(whole.embed_images([image]), one.embed_images([image]))
    assert np.array_equal(pickle.loads(pickle.dumps(whole)).embed_texts(texts), whole.embed_texts(texts))


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("model_type", "siglip2", "NaFlex"),
        ("model_type", "siglip_vision_model", "siglip_vision_model"),
        ("vision_config.vision_use_head", False, "vision_use_head"),
        ("vision_config.hidden_act", "relu", "hidden_act is 'relu'"),
        ("text_config.layer_norm_eps", 1e-5, "layer_norm_eps is 1e-05"),
        ("vision_config.image_size", 40, "40"),
        ("vision_config.num_attention_heads", 7, "vision width"),
        ("text_config.vocab_size", 32000, "vocab_size is 32000"),
    ],
)
def test_what_transformers_configuration_says_and_we_cannot_do_is_refused(
    path: str, value: object, said: str, tmp_path: Path
) -> None:
    siglip.write(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(changed(siglip.transformers_config(siglip.TINY), path, value)))
    if path == "vision_config.image_size":
        (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match=said):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [("image_processor_type", "Siglip2ImageProcessor"), ("do_center_crop", True), ("resample", 1),
     ("size", {"shortest_edge": 30}), ("do_convert_rgb", False), ("rescale_factor", 1.0)],
)  # fmt: skip
def test_a_transform_that_is_not_siglips_is_refused(key: str, value: object, tmp_path: Path) -> None:
    siglip.write(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(siglip.preprocessor(siglip.TINY) | {key: value}))
    with pytest.raises(CheckpointError, match="NaFlex" if key == "image_processor_type" else key):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("model_cfg.vision_cfg.timm_model_name", "naflexvit_base_patch16_siglip", "NaFlex"),
        ("model_cfg.vision_cfg.timm_model_name", "vit_base_patch16_siglip_gap_256", "timm_model_name"),
        ("model_cfg.vision_cfg.timm_pool", "avg", "timm_pool"),
        ("model_cfg.text_cfg.pool_type", "argmax", "pool_type"),
        ("model_cfg.text_cfg.no_causal_mask", False, "no_causal_mask"),
        ("model_cfg.text_cfg.norm_kwargs", {}, "norm_kwargs"),
        ("model_cfg.text_cfg.proj_type", "none", "proj_type"),
        ("model_cfg.text_cfg.a_new_setting", 1, "a_new_setting"),
        ("model_cfg.text_cfg.mlp_ratio", 2, "transformer_mlp_width"),
    ],
)
def test_what_open_clips_configuration_says_and_we_cannot_do_is_refused(
    path: str, value: object, said: str, tmp_path: Path
) -> None:
    siglip.write(tmp_path, "open_clip")
    config = changed(siglip.open_clip_config(siglip.TINY_OPEN_CLIP), path, value)
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=said):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("naming", NAMINGS)
def test_without_a_configuration_nothing_is_assumed(naming: str, tmp_path: Path) -> None:
    siglip.write(tmp_path, naming)
    file = next(tmp_path.glob("*.safetensors"))
    lone = tmp_path / "lone"
    lone.mkdir()
    (lone / file.name).write_bytes(file.read_bytes())
    with pytest.raises(CheckpointError, match=r"weights of a SigLIP without their .*config\.json"):
        read_checkpoint(lone / file.name)
    own = read_checkpoint(tmp_path).state_dict
    save_file({key: one.clone() for key, one in own.items()}, lone / "own.safetensors")
    with pytest.raises(CheckpointError, match="weights of a SigLIP without"):
        read_checkpoint(lone / "own.safetensors")


def test_a_naflex_models_patches_are_refused_by_name(tmp_path: Path) -> None:
    siglip.write(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    key = "vision_model.embeddings.patch_embedding.weight"
    save_file(weights | {key: weights[key].flatten(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="NaFlex"):
        read_checkpoint(tmp_path)


def test_a_configuration_of_the_other_network_is_refused(tmp_path: Path) -> None:
    siglip.write(tmp_path)
    with pytest.raises(CheckpointError, match="describes a CLIP, and the weights are of a SigLIP"):
        read_checkpoint(tmp_path, "ViT-B/32")
    torch.save(formula.state_dict(formula.TINY["tiny-vit"]), tmp_path / "clip.pt")
    with pytest.raises(CheckpointError, match="describes a SigLIP, and the weights are of a CLIP"):
        read_checkpoint(tmp_path / "clip.pt", tmp_path / "config.json")


def test_images_need_no_vocabulary_and_texts_name_it(tmp_path: Path) -> None:
    encoder = clip.Encoder(siglip.write(tmp_path, texts=False))
    assert encoder.embed_images([formula.picture(0, 64, 43)]).shape == (1, 64)
    with pytest.raises(InputError, match=r"no tokenizer\.json"):
        encoder.embed_texts(["a cat"])


def test_a_text_that_is_too_long_is_an_error_unless_it_is_cut(tmp_path: Path) -> None:
    encoder = clip.Encoder(siglip.write(tmp_path))
    with pytest.raises(TextTooLongError, match=r"found \d+ tokens, expected at most 16"):
        encoder.embed_texts(["boats " * 40])
    assert encoder.tokenize(["boats " * 40], truncate=True)[0, -1] == 1  # the end token


def test_without_the_extra_the_message_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = clip.Encoder(siglip.write(tmp_path))
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    with pytest.raises(MissingExtraError, match=r"clip-turbo\[siglip\]"):
        encoder.embed_texts(["a cat"])


def test_open_clip_leaves_out_punctuation_where_transformers_keeps_it(tmp_path: Path) -> None:
    theirs = clip.Encoder(siglip.write(tmp_path / "transformers"))
    open_clips = clip.Encoder(siglip.write(tmp_path / "open_clip", "open_clip"))
    assert not torch.equal(theirs.tokenize("a photo, of_a cat!"), theirs.tokenize("a photo of a cat"))
    assert torch.equal(open_clips.tokenize("A photo, of_a  cat!"), open_clips.tokenize("a photo of a cat"))


def test_a_name_of_open_clip_draws_a_siglip_at_random() -> None:
    with pytest.raises(clip.errors.UnknownModelError, match="ViT-B-16-SigLIP2-256"):
        draw_checkpoint("ViT-B-16-SigLIP3", 0)


def test_a_run_of_pairs_is_embedded_and_its_images_are_classified(tmp_path: Path) -> None:
    """The whole way: embed, verify, classify; every label has its own probability."""
    folder = siglip.write(tmp_path / "model")
    (tmp_path / "photos").mkdir()
    for number in range(3):
        formula.picture(number, 40, 30).save(tmp_path / "photos" / f"{number}.png")
    model = clip.jobs.ModelOptions(str(folder))
    job = clip.EmbedJob(source=tmp_path / "photos", output=tmp_path / "out", model=model)
    report = clip.embed(job)
    assert (report.read, report.written, report.failed) == (3, 3, 0)
    assert "tokenizers" in clip.Store(tmp_path / "out").manifest.versions
    vectors = clip.Store(tmp_path / "out").vectors()
    assert np.abs(vectors - clip.Encoder(folder).embed_images(sorted((tmp_path / "photos").iterdir()))).max() < 1e-6
    classified = clip.classify(ClassifyJob(source=tmp_path / "out", labels=("cat", "dog", "boat"), k=3))
    sums = [sum(probability for _, probability in row.top) for row in classified.rows]
    assert len(sums) == 3
    assert all(abs(total - 1) > 1e-3 for total in sums)
