"""Configurations of transformers and open_clip: what is taken from them, what is refused. Features: tests/parity."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from kit import formula
from kit.configurations import changed
from PIL import Image
from safetensors.torch import load_file, save_file

import clip
from clip.errors import CheckpointError
from clip.network.records import Architecture, Checkpoint, PreprocessSettings
from clip.weights.checkpoints import export, read_checkpoint
from clip.weights.layouts import to_transformers

ARCHITECTURE = formula.TINY["tiny-vit"]
WEIGHTS = formula.state_dict(ARCHITECTURE)
OPEN_CLIP: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": 32,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
    },
    "preprocess_cfg": {"size": 32, "mode": "RGB", "mean": [0.5, 0.4, 0.3], "std": [0.5, 0.6, 0.7]},
}
TOWER = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 1}
TRANSFORMERS: dict[str, Any] = {
    "model_type": "clip",
    "projection_dim": 32,
    "text_config": TOWER,
    "vision_config": TOWER | {"image_size": 32, "patch_size": 8},
}
PREPROCESSOR: dict[str, Any] = {
    "do_resize": True,
    "size": {"shortest_edge": 32},
    "crop_size": {"height": 32, "width": 32},
    "resample": 3,
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.5, 0.6, 0.7],
}


def open_clip_folder(folder: Path, config: dict[str, Any] = OPEN_CLIP) -> Path:
    save_file(WEIGHTS, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder


def transformers_folder(
    folder: Path, config: dict[str, Any] = TRANSFORMERS, preprocessor: dict[str, Any] | None = None
) -> Path:
    weights = {key: tensor.contiguous() for key, tensor in to_transformers(WEIGHTS, ARCHITECTURE).items()}
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    if preprocessor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return folder


def test_both_layouts_give_the_same_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = read_checkpoint(open_clip_folder(tmp_path / "a"))
    second = read_checkpoint(transformers_folder(tmp_path / "b", preprocessor=PREPROCESSOR))
    assert first.architecture == second.architecture == ARCHITECTURE
    assert first.preprocess == second.preprocess == PreprocessSettings(32, (0.5, 0.4, 0.3), (0.5, 0.6, 0.7))
    assert first.state_dict.keys() == second.state_dict.keys() == WEIGHTS.keys()
    assert all(torch.equal(first.state_dict[key], second.state_dict[key]) for key in WEIGHTS)
    assert [file.name for file in first.files + second.files] == ["open_clip_model.safetensors", "model.safetensors"]


def test_the_checkpoints_mean_is_the_transforms(tmp_path: Path) -> None:
    _, preprocess = clip.load(open_clip_folder(tmp_path), device="cpu")
    assert preprocess.transforms[-1].mean == (0.5, 0.4, 0.3)
    encoder = clip.Encoder(tmp_path)
    image = formula.picture(0, 50, 40)
    wanted = encoder.encode_image(preprocess(image)[None])[0].numpy()
    assert encoder.embed([image], normalize=False)[0] == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "filter_"), [("bicubic", Image.Resampling.BICUBIC), ("bilinear", Image.Resampling.BILINEAR)]
)
@pytest.mark.parametrize("mode", ["shortest", "squash"])
def test_interpolation_and_resize_mode_are_pillows(
    name: str, filter_: Image.Resampling, mode: str, tmp_path: Path
) -> None:
    config = changed(changed(OPEN_CLIP, "preprocess_cfg.interpolation", name), "preprocess_cfg.resize_mode", mode)
    _, preprocess = clip.load(open_clip_folder(tmp_path, config), device="cpu")
    image = formula.picture(0, 96, 64)
    step = image
    for transform in preprocess.transforms[:3]:
        step = transform(step)
    size = (48, 32) if mode == "shortest" else (32, 32)
    by_hand = image.resize(size, filter_).crop((8, 0, 40, 32) if mode == "shortest" else (0, 0, 32, 32))
    assert step.tobytes() == by_hand.tobytes()


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("model_cfg.init_logit_bias", -10, r"init_logit_bias \(SigLIP\)"),
        ("model_cfg.multimodal_cfg", {"layers": 12}, r"multimodal_cfg \(CoCa\)"),
        ("model_cfg.custom_text", True, "custom_text"),
        ("model_cfg.vision_cfg.timm_model_name", "convnext_base", r"timm_model_name \(a timm vision tower\)"),
        ("model_cfg.text_cfg.hf_model_name", "xlm-roberta-base", r"hf_model_name \(a Hugging Face text tower\)"),
        ("model_cfg.text_cfg.hf_tokenizer_name", "bert", "hf_tokenizer_name"),
        ("model_cfg.text_cfg.no_causal_mask", True, "no_causal_mask"),
        ("model_cfg.text_cfg.tokenizer_kwargs", {"clean": "canonicalize"}, "tokenizer_kwargs"),
        ("model_cfg.text_cfg.pool_type", "last", "pool_type"),
        ("model_cfg.vision_cfg.pool_type", "avg", "pool_type"),
        ("model_cfg.vision_cfg.attentional_pool", True, "attentional_pool"),
        ("model_cfg.vision_cfg.qk_norm", True, "qk_norm"),
        ("model_cfg.vision_cfg.a_new_setting", 1, "a_new_setting is 1, expected a setting we know"),
        ("model_cfg.vision_cfg.norm_kwargs", {"eps": 1e-6}, "norm_kwargs"),
        ("model_cfg.embed_dim", 64, "embed_dim is 64, and 32 by the weights' shapes"),
        ("model_cfg.vision_cfg.layers", 3, "vision_layers is 3"),
        ("model_cfg.vision_cfg.image_size", 64, "size is 32, expected 64"),
        ("model_cfg.vision_cfg.mlp_ratio", 4.5, "vision_mlp_width is 288"),
        ("model_cfg.text_cfg.vocab_size", 32000, "vocab_size is 32000"),
        ("model_cfg.text_cfg.heads", 3, "text width"),
        ("preprocess_cfg.interpolation", "lanczos", "interpolation is 'lanczos'"),
        ("preprocess_cfg.resize_mode", "longest", "resize_mode is 'longest'"),
        ("preprocess_cfg.size", 64, "size is 64"),
        ("preprocess_cfg.mode", "L", "mode is 'L'"),
        ("model_cfg", None, "has no model_cfg"),
    ],
)
def test_what_open_clips_configuration_asks_for_and_we_cannot_do_is_refused_by_name(
    path: str, value: object, said: str, tmp_path: Path
) -> None:
    folder = open_clip_folder(tmp_path, changed(OPEN_CLIP, path, value))
    with pytest.raises(CheckpointError, match=said) as caught:
        read_checkpoint(folder)
    assert str(caught.value).startswith(str(tmp_path))


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("model_type", "siglip", "describes a SigLIP, and the weights are of a CLIP"),
        ("model_type", "chinese_clip", "model_type is 'chinese_clip'"),
        ("text_config.hidden_act", "gelu", "hidden_act of text and vision"),
        ("vision_config.layer_norm_eps", 1e-6, "layer_norm_eps is 1e-06"),
        ("projection_dim", 64, "embed_dim is 64"),
        ("vision_config.patch_size", 16, "vision_patch_size is 16"),
        ("vision_config.num_hidden_layers", 3, "vision_layers is 3|weights"),
        ("text_config.num_hidden_layers", 1, "transformer_layers is 1, and 2 by the weights' shapes"),
        ("text_config.intermediate_size", 128, "transformer_mlp_width is 128"),
        ("vision_config.num_attention_heads", 5, "vision width"),
    ],
)
def test_what_transformers_configuration_says_against_the_weights_is_an_error(
    path: str, value: object, said: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=said):
        read_checkpoint(transformers_folder(tmp_path, changed(TRANSFORMERS, path, value)))


@pytest.mark.parametrize(
    ("key", "value"),
    [("resample", 1), ("do_center_crop", False), ("size", {"shortest_edge": 64}), ("crop_size", 30),
     ("rescale_factor", 1 / 127.5), ("do_normalize", False)],
)  # fmt: skip
def test_a_transform_of_transformers_that_is_not_clips_is_refused(key: str, value: object, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=key):
        read_checkpoint(transformers_folder(tmp_path, preprocessor=PREPROCESSOR | {key: value}))


def test_weights_without_the_configuration_that_they_need_are_refused(tmp_path: Path) -> None:
    open_clip_folder(tmp_path)
    (tmp_path / "open_clip_config.json").unlink()
    with pytest.raises(CheckpointError, match="without their open_clip_config"):
        read_checkpoint(tmp_path / "open_clip_model.safetensors")
    transformers_folder(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"without their config\.json"):
        read_checkpoint(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="a folder without"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff"])
def test_a_broken_configuration_is_named(content: bytes, tmp_path: Path) -> None:
    open_clip_folder(tmp_path)
    (tmp_path / "open_clip_config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"open_clip_config\.json (is not JSON|holds a list)") as caught:
        read_checkpoint(tmp_path)
    assert caught.value.item == str(tmp_path)


def test_weights_in_several_files_are_read_through_their_index(tmp_path: Path) -> None:
    transformers_folder(tmp_path)
    whole = load_file(tmp_path / "model.safetensors")
    names = {key: f"model-0000{n % 2 + 1}-of-00002.safetensors" for n, key in enumerate(whole)}
    for file in set(names.values()):
        save_file({key: whole[key] for key in whole if names[key] == file}, tmp_path / file)
    (tmp_path / "model.safetensors").unlink()
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": names}))
    checkpoint = read_checkpoint(tmp_path)
    assert all(torch.equal(checkpoint.state_dict[key], WEIGHTS[key]) for key in WEIGHTS)
    assert len(checkpoint.files) == 2
    broken = tmp_path / "model-00002-of-00002.safetensors"
    broken.write_bytes(b"nothing")
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(tmp_path)
    assert caught.value.item == str(broken), "which of the files it is"
    index.write_text(json.dumps({"weight_map": {"a": "../../etc/passwd"}}))
    with pytest.raises(CheckpointError, match="names no files of its folder"):
        read_checkpoint(tmp_path)


UNUSUAL = Architecture(64, 32, 2, 128, 8, 77, 49408, 128, 4, 2, "gelu", 4, 200, 300)


@pytest.mark.parametrize(
    "architecture", [ARCHITECTURE, UNUSUAL, formula.TINY["tiny-rn"]], ids=["ViT", "GELU", "ResNet"]
)
def test_an_exported_file_gives_the_same_checkpoint(architecture: Architecture, tmp_path: Path) -> None:
    settings = PreprocessSettings(architecture.image_resolution, (0.5, 0.5, 0.5), interpolation="bilinear")
    weights = formula.state_dict(architecture)
    export(Checkpoint(architecture, weights, settings, source="test"), tmp_path / "a.safetensors")
    again = read_checkpoint(tmp_path / "a.safetensors")
    assert (again.architecture, again.preprocess) == (architecture, settings)
    assert all(torch.equal(again.state_dict[key], tensor) for key, tensor in weights.items())


def test_a_header_that_contradicts_its_weights_is_an_error(tmp_path: Path) -> None:
    wrong = replace(ARCHITECTURE, embed_dim=64)
    export(Checkpoint(wrong, WEIGHTS, PreprocessSettings(32), source="test"), tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="header: describes"):
        read_checkpoint(tmp_path / "a.safetensors")
    save_file(WEIGHTS, tmp_path / "b.safetensors", metadata={"clip-turbo": "{}"})
    with pytest.raises(CheckpointError, match="header: not one that clip-turbo wrote"):
        read_checkpoint(tmp_path / "b.safetensors")
