"""Folders of weights whose configurations, indices and headers say anything at all, and what is no file or folder."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import formula
import guard
import pytest
from archives import SMALLEST
from guard import assert_refused
from safetensors.torch import save_file

from clip.checkpoints import export
from clip.items import Checkpoint, PreprocessSettings
from clip.layouts import to_transformers

ARCHITECTURE = SMALLEST["vit"]
TOWER = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 1, "num_attention_heads": 1}
ACT = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
# What there is to be changed: the files of an open_clip folder and of a CLIPModel's that load as they stand here.
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "open_clip_config.json": {
        "model_cfg": {
            "embed_dim": 8,
            "quick_gelu": True,
            "vision_cfg": {
                "image_size": 32,
                "layers": 1,
                "width": 64,
                "head_width": 64,
                "mlp_ratio": 4.0,
                "patch_size": 16,
            },
            "text_cfg": {"context_length": 4, "vocab_size": 8, "width": 64, "heads": 1, "layers": 1, "mlp_ratio": 4.0},
        },
        "preprocess_cfg": {
            "size": [32, 32],
            "mode": "RGB",
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "interpolation": "bicubic",
            "resize_mode": "shortest",
            "fill_color": 0,
        },
    },
    "config.json": {
        "model_type": "clip",
        "projection_dim": 8,
        "text_config": TOWER | ACT | {"max_position_embeddings": 4, "vocab_size": 8},
        "vision_config": TOWER | ACT | {"image_size": 32, "patch_size": 16},
    },
    "preprocessor_config.json": {
        "do_resize": True,
        "size": {"shortest_edge": 32},
        "crop_size": {"height": 32, "width": 32},
        "resample": 3,
        "rescale_factor": 1 / 255,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    },
}
STRANGE = [None, True, [], {}, [[]], {"a": []}, "", "a" * 5_000, "two\nlines", -1, 0, 0.5, 10**9, 10**400, float("nan")]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of each configuration, whole."""
    open_clip, transformers = (tmp_path_factory.mktemp(name) for name in ("open_clip", "transformers"))
    weights = formula.state_dict(ARCHITECTURE)
    save_file(weights, open_clip / "open_clip_model.safetensors")
    theirs = to_transformers(weights, ARCHITECTURE)
    save_file({key: tensor.contiguous() for key, tensor in theirs.items()}, transformers / "model.safetensors")
    found = {name: open_clip if name == "open_clip_config.json" else transformers for name in CONFIGURATIONS}
    for name, folder in found.items():
        (folder / name).write_text(json.dumps(CONFIGURATIONS[name]))
    return found


def paths_of(value: object, at: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Where in a configuration something stands, itself included."""
    yield at
    for key, inner in value.items() if isinstance(value, dict) else ():
        yield from paths_of(inner, (*at, key))


def changed(value: Any, path: tuple[str, ...], new: object) -> Any:
    return new if not path else value | {path[0]: changed(value[path[0]], path[1:], new)}


def assert_loaded_or_refused(path: Path, what: object) -> None:
    if guard.load(path).message != "loaded":
        try:
            assert_refused(path)
        except AssertionError as error:
            raise AssertionError(f"{what!r:.200}: {error}") from None


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_the_configurations_of_this_file_load(name: str, folders: dict[str, Path]) -> None:
    assert guard.load(folders[name]).message == "loaded"


@pytest.mark.parametrize(
    ("name", "path"),
    [(name, path) for name, value in CONFIGURATIONS.items() for path in paths_of(value)],
    ids=lambda value: value if isinstance(value, str) else ".".join(value) or "all",
)
def test_a_configuration_that_says_anything_at_all_loads_or_is_refused(
    name: str, path: tuple[str, ...], folders: dict[str, Path]
) -> None:
    file = folders[name] / name
    whole = file.read_bytes()
    try:
        for strange in STRANGE:
            file.write_text(json.dumps(changed(CONFIGURATIONS[name], path, strange)))
            assert_loaded_or_refused(folders[name], strange)
    finally:
        file.write_bytes(whole)


BROKEN_JSON = [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 100_000, b"9" * 10_000, b'{"model_type": "clip"']


@pytest.mark.parametrize("name", CONFIGURATIONS)
@pytest.mark.parametrize("content", BROKEN_JSON, ids=lambda content: repr(content[:8]))
def test_a_configuration_that_is_no_json_is_refused(
    content: bytes, name: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(folders[name], tmp_path / "folder")
    (folder / name).write_bytes(content)
    assert_refused(folder)


INDICES: dict[str, object] = {
    "nothing": {},
    "a list": [],
    "no files": {"weight_map": {}},
    "a list of files": {"weight_map": ["model.safetensors"]},
    "a number": {"weight_map": {"a": 3}},
    "lists": {"weight_map": {"a": []}},
    "a missing file": {"weight_map": {"a": "gone.safetensors"}},
    "an empty name": {"weight_map": {"a": ""}},
    "the folder itself": {"weight_map": {"a": "."}},
    "the folder above": {"weight_map": {"a": ".."}},
    "a path": {"weight_map": {"a": "../model.safetensors"}},
    "a NUL": {"weight_map": {"a": "a\0b"}},
    "a long name": {"weight_map": {"a": "a" * 5_000}},
    "the index": {"weight_map": {"a": "model.safetensors.index.json"}},
    "the configuration": {"weight_map": {"a": "config.json"}},
}


@pytest.mark.parametrize("name", INDICES)
def test_an_index_of_files_that_names_other_things_is_refused(
    name: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(folders["config.json"], tmp_path / "folder")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(INDICES[name]))
    assert_refused(folder)


def exported(path: Path) -> dict[str, Any]:
    """A file that `clip fetch --export` writes, and the header it has."""
    checkpoint = Checkpoint(ARCHITECTURE, formula.state_dict(ARCHITECTURE), PreprocessSettings(32), source="test")
    export(checkpoint, path)
    size = int.from_bytes(path.read_bytes()[:8], "little")
    return json.loads(json.loads(path.read_bytes()[8 : 8 + size])["__metadata__"]["clip-turbo"])


def test_a_header_that_says_anything_at_all_loads_or_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    header = exported(path)
    assert guard.load(path).message == "loaded"
    weights = formula.state_dict(ARCHITECTURE)
    for at in paths_of(header):
        for strange in STRANGE:
            save_file(weights, path, metadata={"clip-turbo": json.dumps(changed(header, at, strange))})
            assert_loaded_or_refused(path, (at, strange))


@pytest.mark.parametrize("content", BROKEN_JSON[:1] + BROKEN_JSON[3:], ids=lambda content: repr(content[:8]))
def test_a_header_that_is_no_json_is_refused_or_passed_over(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(formula.state_dict(ARCHITECTURE), path, metadata={"clip-turbo": content.decode()})
    assert_loaded_or_refused(path, content[:8])


def test_a_pipe_a_device_and_an_empty_folder_are_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pt")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "pipe.pt", Path("/dev/zero"), Path("/dev/null"), tmp_path / "folder"):
        outcome = guard.load(path)
        assert "ClipError" in outcome.errors, (path, outcome)
        assert str(path) in outcome.message
