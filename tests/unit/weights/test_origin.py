"""Weights without a configuration: OpenAI's network is assumed where nothing points elsewhere, else nothing is."""

import argparse
import importlib.util
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from kit import formula
from kit.archives import model_of, script_archive
from kit.configurations import open_clip_config, transformers_config
from kit.in_process import Run
from safetensors.torch import load_file, save_file

import clip
from clip.errors import CheckpointError, InputError
from clip.network.records import OPENAI_MEAN, Architecture
from clip.weights.architectures import find_architecture, find_relative
from clip.weights.checkpoints import export, read_checkpoint
from clip.weights.configurations import Configuration, read_configuration
from clip.weights.layouts import to_transformers
from clip.weights.releases import RELEASES

# GELU and heads of 80 channels, as of open_clip's ViT-H-14; the shapes would give QuickGELU and five heads of 64.
UNUSUAL = Architecture(64, 32, 2, 320, 8, 77, 600, 128, 2, 2, "gelu", 4)
ASSUMED = replace(UNUSUAL, activation="quick_gelu", vision_heads=None)
WEIGHTS = formula.state_dict(UNUSUAL)
TRAINED = {
    "epoch": 3,
    "name": "2026_11_28-10_00_00-model_ViT-H-14-lr_0.001-b_64-j_4-p_amp",
    "state_dict": {f"module.{key}": tensor for key, tensor in WEIGHTS.items()},
    "optimizer": {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(4)}}, "param_groups": [{"lr": 0.1}]},
    "scaler": {"scale": 65536.0},
}


def saved(content: object, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return path


def in_folder_of(name: str, content: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_text(content)
        return saved(WEIGHTS, folder / "weights.pt")

    return write


def by_metadata(folder: Path) -> Path:
    save_file(WEIGHTS, folder / "a.safetensors", {"source": "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"})
    return folder / "a.safetensors"


def by_log(folder: Path) -> Path:
    (folder / "params.txt").write_text("model: ViT-H-14\n")
    return saved(WEIGHTS, folder / "checkpoints" / "epoch_3.pt")


ARGUMENTS = argparse.Namespace(model="ViT-H-14", pretrained="laion2b_s32b_b79k", data=["a.tar"])
SIGNS: dict[str, Callable[[Path], Path]] = {
    "open_clip's training script": lambda folder: saved(TRAINED, folder / "epoch_3.pt"),
    "the same without its optimizer": lambda folder: saved(
        {"name": "run 7", "state_dict": WEIGHTS}, folder / "epoch_3.pt"
    ),
    "its arguments": lambda folder: saved({"state_dict": WEIGHTS, "args": ARGUMENTS}, folder / "a.pt"),
    "its option": lambda folder: saved({"model": WEIGHTS, "cfg": {"force_quick_gelu": False}}, folder / "a.pt"),
    "its module": lambda folder: saved({f"open_clip.{key}": one for key, one in WEIGHTS.items()}, folder / "a.pt"),
    "the file's name": lambda folder: saved(WEIGHTS, folder / "vit_h_14-laion2b_s32b_b79k.pt"),
    "the folder's name": lambda folder: saved(WEIGHTS, folder / "CLIP-ViT-B-32-DataComp.XL-s13B-b90K" / "model.pt"),
    "the folder's log": by_log,
    "metadata": by_metadata,
    "timm's configuration": in_folder_of("config.json", '{"architecture": "vit_huge_patch14_clip_224"}'),
    "another model's": in_folder_of("config.json", '{"model_type": "siglip"}'),
}


@pytest.mark.parametrize("sign", SIGNS)
def test_where_something_points_elsewhere_nothing_is_assumed_and_the_way_out_is_named(
    sign: str, tmp_path: Path
) -> None:
    path = SIGNS[sign](tmp_path)
    with pytest.raises(CheckpointError, match=r"do not show activation and heads\. Pass architecture") as caught:
        clip.load(path, device="cpu")
    assert caught.value.item == str(path)
    config = tmp_path / "of the model.json"
    config.write_text(json.dumps(open_clip_config(UNUSUAL)["model_cfg"]))  # as open_clip keeps its own
    read = read_checkpoint(path, config)
    assert read.architecture == UNUSUAL
    assert all(torch.equal(read.state_dict[key], tensor) for key, tensor in WEIGHTS.items())


def test_a_configuration_beside_the_weights_is_the_other_way_out(tmp_path: Path) -> None:
    path = SIGNS["open_clip's training script"](tmp_path)
    (tmp_path / "open_clip_config.json").write_text(json.dumps(open_clip_config(UNUSUAL)))
    assert read_checkpoint(path).architecture == UNUSUAL
    assert read_checkpoint(tmp_path).architecture == UNUSUAL, "the folder's only weights"


@pytest.mark.parametrize("naming", ["openai", "transformers"])
def test_a_config_json_is_read_whatever_names_the_weights_have(naming: str, tmp_path: Path) -> None:
    weights = WEIGHTS if naming == "openai" else to_transformers(WEIGHTS, UNUSUAL)
    save_file({key: tensor.contiguous() for key, tensor in weights.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(transformers_config(UNUSUAL)))
    for path in (tmp_path, tmp_path / "model.safetensors"):
        assert read_checkpoint(path).architecture == UNUSUAL


PLAIN: dict[str, Callable[[Path], Path]] = {
    "a state dict": lambda folder: saved(WEIGHTS, folder / "weights.pt"),
    "in fp16": lambda folder: saved({key: one.half() for key, one in WEIGHTS.items()}, folder / "weights.pt"),
    "OpenAI's snippet for training": lambda folder: saved(
        {"epoch": 1, "model_state_dict": WEIGHTS, "optimizer_state_dict": {}, "loss": torch.tensor(1.0)},
        folder / "model_10.pt",
    ),
    "of a class of one's own": lambda folder: saved(
        {"epoch": 3, "state_dict": {f"model.{key}": one for key, one in WEIGHTS.items()}, "args": argparse.Namespace()},
        folder / "last.ckpt",
    ),
    "beside a script's configuration": in_folder_of("config.json", '{"batch_size": 3, "lr": 1e-5}'),
    "beside a broken one": in_folder_of("config.json", "{"),
}


@pytest.mark.parametrize("name", PLAIN)
def test_weights_that_point_nowhere_are_openais_as_ever(name: str, tmp_path: Path) -> None:
    assert read_checkpoint(PLAIN[name](tmp_path)).architecture == ASSUMED


def test_an_archive_shows_its_activation(tmp_path: Path) -> None:
    small = replace(formula.TINY["tiny-vit"], vocab_size=600)
    quick = script_archive(tmp_path / "quick.pt", model_of(small))
    (tmp_path / "open_clip_config.json").write_text(json.dumps(open_clip_config(replace(small, activation="gelu"))))
    assert read_checkpoint(quick).architecture == small, "the configuration is not of OpenAI's archive"
    with pytest.raises(CheckpointError, match="the activation is gelu, expected quick_gelu, as in the archive's code"):
        read_checkpoint(quick, tmp_path)
    other = script_archive(tmp_path / "other.pt", model_of(replace(small, activation="gelu")))
    assert read_checkpoint(other).architecture == replace(small, activation="gelu")
    (tmp_path / "open_clip_config.json").unlink()
    with pytest.raises(CheckpointError, match="a TorchScript archive that calls GELU"):
        read_checkpoint(other)


# Names of networks.


def test_shapes_that_only_open_clip_has_are_a_sign_and_those_of_openai_are_none() -> None:
    assert find_relative(replace(find_architecture("ViT-H-14") or UNUSUAL, vision_heads=None)) == "ViT-H-14"
    assert find_relative(replace(RELEASES["ViT-B/32"].architecture, image_resolution=256)) == "ViT-B-32-256"
    assert find_relative(replace(RELEASES["ViT-B/32"].architecture, image_resolution=448)) is None, "fine-tuned"
    for release in RELEASES.values():
        assert find_relative(release.architecture) is None
    for architecture in (UNUSUAL, *formula.TINY.values()):
        assert find_relative(architecture) is None


def test_a_name_says_what_the_shapes_leave_open(tmp_path: Path) -> None:
    assert find_architecture("ViT-B/32") == RELEASES["ViT-B/32"].architecture == find_architecture("ViT-B-32-quickgelu")
    gelu = replace(RELEASES["ViT-B/32"].architecture, activation="gelu")
    assert find_architecture("ViT-B-32") == gelu == find_architecture("ViT-B-32-gelu")
    assert find_architecture("RN50-quickgelu") == RELEASES["RN50"].architecture
    assert find_architecture("ViT-B-33") is None
    for name in ("RN50", "RN50x64"):
        with pytest.raises(InputError, match=f"{name}-quickgelu for OpenAI's, or {name}-gelu for open_clip's"):
            find_architecture(name)
    path = saved(WEIGHTS, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match="ViT-H-14: embed_dim is 1024, and 64 by the weights' shapes"):
        clip.load(path, device="cpu", architecture="ViT-H-14")
    for wrong in ("ViT-Q/3", tmp_path / "nowhere.json", ""):
        with pytest.raises(InputError, match="architecture: found"):
            clip.load(path, device="cpu", architecture=wrong)
    (tmp_path / "a.json").write_text('{"a": 1}')
    with pytest.raises(CheckpointError, match=r"a\.json: model_type is None"):
        clip.load(path, device="cpu", architecture=tmp_path / "a.json")


def test_a_name_allows_another_size_of_images_texts_and_vocabulary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = replace(UNUSUAL, image_resolution=64, context_length=40, vocab_size=700)
    monkeypatch.setattr("clip.weights.families.find_architecture", lambda _: UNUSUAL)
    assert read_checkpoint(saved(formula.state_dict(other), tmp_path / "a.pt"), "named").architecture == other


def test_weights_of_a_clipmodel_take_a_name_and_the_pixels_that_lie_beside_them(tmp_path: Path) -> None:
    weights = {key: tensor.contiguous() for key, tensor in to_transformers(WEIGHTS, UNUSUAL).items()}
    save_file(weights, tmp_path / "model.safetensors")
    config = tmp_path / "one.json"
    config.write_text(json.dumps({"model_cfg": open_clip_config(UNUSUAL)["model_cfg"]}))
    assert read_checkpoint(tmp_path / "model.safetensors", config).preprocess.mean == OPENAI_MEAN
    beside = tmp_path / "preprocessor_config.json"
    beside.write_text(json.dumps({"image_mean": [0.4] * 3, "size": {"shortest_edge": 32}}))
    raw = tmp_path / "raw.json"
    raw.write_text(json.dumps(open_clip_config(UNUSUAL)["model_cfg"]))
    assert read_checkpoint(tmp_path / "model.safetensors", raw).preprocess.mean == (0.4,) * 3
    beside.unlink()
    theirs = tmp_path / "other"
    theirs.mkdir()
    (theirs / "config.json").write_text(json.dumps(transformers_config(UNUSUAL)))
    pixels = {"image_mean": [0.5, 0.5, 0.5], "resample": 2, "size": {"shortest_edge": 32}}
    (theirs / "processor_config.json").write_text(json.dumps({"image_processor": pixels}))
    for given in (theirs, theirs / "config.json"):
        read = read_checkpoint(tmp_path / "model.safetensors", given)
        assert (read.architecture, read.preprocess.mean) == (UNUSUAL, (0.5, 0.5, 0.5))
        assert read.preprocess.interpolation == "bilinear"


def test_an_exported_file_needs_no_architecture_and_refuses_another(tmp_path: Path) -> None:
    config = tmp_path / "one.json"
    config.write_text(json.dumps(open_clip_config(UNUSUAL)))
    export(read_checkpoint(saved(TRAINED, tmp_path / "a.pt"), config), tmp_path / "laion.safetensors")
    assert read_checkpoint(tmp_path / "laion.safetensors").architecture == UNUSUAL
    assert read_checkpoint(tmp_path / "laion.safetensors", config).architecture == UNUSUAL
    config.write_text(json.dumps(open_clip_config(replace(UNUSUAL, activation="quick_gelu"))))
    with pytest.raises(CheckpointError, match="another activation or other heads than in its header"):
        read_checkpoint(tmp_path / "laion.safetensors", config)


def test_every_verb_takes_an_architecture_and_a_run_remembers_it(run: Run, tmp_path: Path) -> None:
    path, photos, out = saved(TRAINED, tmp_path / "epoch_3.pt"), tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for n in range(3):
        formula.picture(n, 40, 30).save(photos / f"{n}.png")
    code, _, said = run("embed", photos, "-o", out, "-m", path, "--device", "cpu")
    assert code == 1
    assert re.search(r"open_clip's training script.*Pass --architecture, such as ViT-H-14", said)
    config = tmp_path / "one.json"
    config.write_text(json.dumps(open_clip_config(UNUSUAL)))
    assert run("embed", photos, "-o", out, "-m", path, "--architecture", config)[0] == 0
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["stated_architecture"], manifest["architecture"]["vision_heads"]) == (str(config), 4)
    assert run("search", out, "-i", photos / "1.png", "-n", "1", "--plain")[1].endswith("1.png\n")
    assert run("verify", out, "--sample", "3")[0] == 0
    assert run("fetch", path, "--to", tmp_path / "a.safetensors", "--architecture", config)[0] == 0
    assert load_file(tmp_path / "a.safetensors").keys() == WEIGHTS.keys()
    wanted = clip.Encoder(path, device="cpu", architecture=config).embed([photos / "0.png"])
    assert clip.Encoder(tmp_path / "a.safetensors", device="cpu").embed([photos / "0.png"]) == pytest.approx(
        wanted, abs=1e-5
    )

    config.write_text(json.dumps(open_clip_config(replace(UNUSUAL, activation="quick_gelu"))))
    code, _, said = run("search", out, "-i", photos / "1.png")
    assert code == 2
    assert "activation of" in said, "another network than the run's, though the weights are the same"


def test_an_architecture_is_for_weights_alone(tmp_path: Path) -> None:
    model, _ = clip.load(saved(WEIGHTS, tmp_path / "weights.pt"), device="cpu")
    for arguments in ({"model": model}, {"model": "ViT-B/32", "untrained": 1}):
        with pytest.raises(InputError, match="architecture: found"):
            clip.Encoder(**arguments, architecture="ViT-B/32")  # type: ignore[arg-type]


def test_an_encoder_with_an_architecture_can_be_pickled(tmp_path: Path) -> None:
    import pickle

    config = tmp_path / "one.json"
    config.write_text(json.dumps(open_clip_config(UNUSUAL)))
    encoder: Any = clip.Encoder(saved(TRAINED, tmp_path / "a.pt"), device="cpu", architecture=config)
    assert pickle.loads(pickle.dumps(encoder)).architecture == encoder.architecture


def test_the_names_are_all_plain_clips_of_open_clip_with_its_numbers() -> None:
    """Its models are files, so it need not be imported."""
    specification = importlib.util.find_spec("open_clip")
    if specification is None or specification.origin is None:
        pytest.skip("open_clip_torch is not installed")
    plain: set[str] = set()
    for file in sorted((Path(specification.origin).parent / "model_configs").glob("*.json")):
        try:
            configuration = read_configuration(file)
        except CheckpointError:
            continue  # another network
        plain.add(file.stem)
        name = file.stem if not file.stem.startswith("RN") or "-" in file.stem else f"{file.stem}-gelu"
        known = find_architecture(name)
        assert known is not None, name
        own = Configuration.of_architecture(name, known)
        assert (own.activation, own.vision_heads, own.transformer_heads) == (
            configuration.activation, configuration.vision_heads, configuration.transformer_heads
        ), name  # fmt: skip
        sizes = {key: value for key, value in configuration.sizes.items() if key in own.sizes}
        assert (own.sizes | {"vision_patch_size": sizes.get("vision_patch_size")}) == {
            "vision_patch_size": None, **sizes
        }, name  # fmt: skip
        assert known.image_resolution == configuration.sizes["image_resolution"]
    assert len(plain) >= 40
