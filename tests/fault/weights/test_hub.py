"""The Hugging Face Hub on loopback: what is asked of it, what is made of its answers, and how we do without it."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from kit import formula
from kit.configurations import transformers_config
from kit.loopback import Hub, running
from kit.programs import command
from safetensors.torch import save

from clip.clip import load_model
from clip.network.records import Checkpoint, PreprocessSettings
from clip.weights.layouts import to_transformers
from clip.weights.releases import RELEASES

ARCHITECTURE = formula.TINY["tiny-vit"]
CONFIG = {
    "model_cfg": {
        "embed_dim": 32,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
        "text_cfg": {"width": 64, "heads": 1, "layers": 2},
    },
    "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
}


def call(
    hub_url: str, home: Path, *names: str, revision: str = Hub.commit, **environment: str
) -> tuple[list[Any], str]:
    clean = {k: v for k, v in os.environ.items() if "proxy" not in k.lower() and not k.startswith(("HF_", "CLIP_"))}
    network = {"HF_ENDPOINT": hub_url, "HF_HOME": str(home / "hf"), "https_proxy": "http://127.0.0.1:9"}
    ran = subprocess.run(
        command("load_from_hub", home / "cache", revision, *names),
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        env=clean | network | environment,
    )
    return [json.loads(line) for line in ran.stdout.splitlines()][:-1], ran.stderr


@pytest.fixture(scope="module")
def state_dict() -> dict[str, torch.Tensor]:
    return formula.state_dict(ARCHITECTURE)


@pytest.fixture(scope="module")
def wanted(state_dict: dict[str, torch.Tensor]) -> Any:
    settings = PreprocessSettings(32)
    model = load_model(Checkpoint(ARCHITECTURE, dict(state_dict), settings, "test"), torch.device("cpu"))
    with torch.no_grad():
        features = model.encode_image(torch.ones(1, 3, 32, 32))[0].tolist()
    # The images' mean and deviation may differ; the fast path folds them into weights.
    return pytest.approx(features, abs=1e-5)


@pytest.fixture
def repositories(state_dict: dict[str, torch.Tensor]) -> dict[str, dict[str, bytes]]:
    files = {"open_clip_config.json": json.dumps(CONFIG).encode(), "open_clip_model.safetensors": save(state_dict)}
    siglip = {
        "open_clip_config.json": json.dumps({"model_cfg": CONFIG["model_cfg"] | {"init_logit_bias": -10}}).encode()
    }
    return {
        "acme/tiny": files,
        "acme/siglip": siglip | {"open_clip_model.safetensors": files["open_clip_model.safetensors"]},
        "acme/readme": {"README.md": b"nothing else"},
    }


def test_a_repository_by_name_is_fetched_and_then_needs_no_network(
    repositories: dict[str, dict[str, bytes]], wanted: Any, tmp_path: Path
) -> None:
    name = f"hf-hub:acme/tiny@{Hub.commit}"
    with running(Hub(repositories)) as hub:
        (first,), said = call(hub.url, tmp_path, name)
        assert first == {"features": wanted, "mean": [0.5, 0.5, 0.5]}
        assert "Traceback" not in said
        paths = [path for _, path in hub.requests]
        assert all(f"/acme/tiny/resolve/{Hub.commit}/" in path for path in paths), "nothing but the files was asked for"
        hub.requests.clear()
        (again,), _ = call(hub.url, tmp_path, name, HF_HUB_OFFLINE="1")
        assert again == first
        assert hub.requests == []


def test_a_released_name_falls_through_to_the_hub_with_a_line_that_says_so(
    repositories: dict[str, dict[str, bytes]], wanted: Any, tmp_path: Path
) -> None:
    with running(Hub(repositories)) as hub:
        (found,), said = call(hub.url, tmp_path, "ViT-B/32")
    assert found["features"] == wanted
    (line,) = [line for line in said.splitlines() if "trying" in line]
    assert "ViT-B/32" in line
    assert "acme/tiny on the Hugging Face Hub" in line


def test_with_no_source_at_all_the_error_says_what_would_do(tmp_path: Path) -> None:
    with running(Hub({})) as hub:
        (found,), _ = call(hub.url, tmp_path, "ViT-B/32")
    assert found["error"] == "WeightsMissingError"
    release = RELEASES["ViT-B/32"]
    for word in (release.sha256, str(tmp_path / "cache" / "ViT-B-32.pt"), "acme/tiny", release.url):
        assert word in found["message"]


@pytest.mark.parametrize("variable", ["CLIP_OFFLINE", "HF_HUB_OFFLINE"])
def test_a_cold_cache_without_the_network_asks_nobody(
    variable: str, repositories: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    with running(Hub(repositories)) as hub:
        found, _ = call(hub.url, tmp_path, "ViT-B/32", "hf-hub:acme/tiny", **{variable: "1"})
        assert [answer["error"] for answer in found] == ["WeightsMissingError", "DownloadError"]
        assert hub.requests == []


def test_what_is_not_there_or_not_ours_is_refused_by_name(
    repositories: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    with running(Hub(repositories)) as hub:
        names = ["hf-hub:acme/none", "hf-hub:acme/readme", "hf-hub:acme/siglip", "hf-hub:not a name"]
        none, readme, siglip, malformed = call(hub.url, tmp_path, *names)[0]
    assert (none["error"], readme["error"], malformed["error"]) == ("DownloadError",) * 3
    assert "has no open_clip model and no CLIPModel" in readme["message"]
    assert siglip["error"] == "CheckpointError"
    assert "init_logit_bias (SigLIP)" in siglip["message"]


def test_parts_and_the_folders_of_sentence_transformers_are_fetched(
    state_dict: dict[str, torch.Tensor], wanted: Any, tmp_path: Path
) -> None:
    theirs = {key: tensor.contiguous() for key, tensor in to_transformers(state_dict, ARCHITECTURE).items()}
    names = {key: f"model-0000{n % 2 + 1}-of-00002.safetensors" for n, key in enumerate(theirs)}
    config = json.dumps(transformers_config(ARCHITECTURE)).encode()
    index = json.dumps({"weight_map": names}).encode()
    parts = {name: save({k: v for k, v in theirs.items() if names[k] == name}) for name in set(names.values())}
    modules = json.dumps([{"path": "0_CLIPModel", "type": "sentence_transformers.models.CLIPModel"}]).encode()
    repositories = {
        "acme/parts": {"config.json": config, "model.safetensors.index.json": index, **parts},
        "acme/sentences": {
            "modules.json": modules, "0_CLIPModel/config.json": config, "0_CLIPModel/pytorch_model.bin": b"",
            "0_CLIPModel/model.safetensors": save(theirs),
        },
    }  # fmt: skip
    with running(Hub(repositories)) as hub:
        found, _ = call(hub.url, tmp_path, "hf-hub:acme/parts", "hf-hub:acme/sentences")
    assert [answer.get("features", answer) for answer in found] == [wanted] * 2


def test_a_hub_that_cuts_the_file_leaves_no_model(repositories: dict[str, dict[str, bytes]], tmp_path: Path) -> None:
    with running(Hub(repositories)) as hub:
        hub.cut = True
        (found,), _ = call(hub.url, tmp_path, f"hf-hub:acme/tiny@{Hub.commit}")
    assert found["error"] == "DownloadError"
    assert not list((tmp_path / "hf").rglob("snapshots/*/open_clip_model.safetensors"))
