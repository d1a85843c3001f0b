"""Configurations and headers whose numbers would fill the memory or never end: nothing is built from them."""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from kit import formula
from kit.archives import SMALLEST
from kit.configurations import open_clip_config, transformers_config
from kit.guard import assert_refused
from safetensors.torch import save_file

import clip
from clip.errors import CheckpointError
from clip.network.records import PreprocessSettings
from clip.weights.configurations import MAX_JSON_BYTES
from clip.weights.layouts import to_transformers

VIT = SMALLEST["vit"]
WEIGHTS = formula.state_dict(VIT)
PREPROCESSOR = {
    "size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}, "resample": 3, "do_resize": True,
    "rescale_factor": 1 / 255, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
}  # fmt: skip
PIXELS = {"size": 32, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic", "mode": "RGB"}
HEADER = {"architecture": asdict(VIT), "preprocess": asdict(PreprocessSettings(32))}
FILES: dict[str, dict[str, Any]] = {
    "config.json": transformers_config(VIT),
    "preprocessor_config.json": PREPROCESSOR,
    "open_clip_config.json": open_clip_config(VIT, PIXELS),
    "header": HEADER,
}


def write(folder: Path, file: str, content: object) -> Path:
    """A folder, or a file with a header, of which everything else is right."""
    text = json.dumps(content)
    if file == "header":
        save_file(WEIGHTS, folder / "a.safetensors", {"clip-turbo": text})
        return folder / "a.safetensors"
    if file == "open_clip_config.json":
        save_file(WEIGHTS, folder / "open_clip_model.safetensors")
    else:
        theirs = {key: tensor.contiguous() for key, tensor in to_transformers(WEIGHTS, VIT).items()}
        save_file(theirs, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(transformers_config(VIT)))
    (folder / file).write_text(text)
    return folder


def variants(content: Any, value: object) -> Iterator[tuple[str, Any]]:
    """The content with the value in the place of each value in it, one at a time."""
    yield "", value
    pairs = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, inner in pairs:
        for path, changed in variants(inner, value):
            copy = json.loads(json.dumps(content))
            copy[key] = changed
            yield f"{key}.{path}", copy


CASES = [
    pytest.param(file, changed, id=f"{file}-{path}")
    for file, content in FILES.items()
    for path, changed in variants(content, 2147483648)
    if path and not re.search(r"(mean|std)\.\d", path)  # a mean may be any number
]


@pytest.mark.parametrize(("file", "content"), CASES)
def test_the_largest_number_costs_nothing_wherever_it_stands(file: str, content: object, tmp_path: Path) -> None:
    assert_refused(write(tmp_path, file, content))


@pytest.mark.parametrize(
    "value", [10**4000, -1, 0.5, True, "a" * 1000, [1] * 1000, {}, 1e308], ids=lambda v: str(v)[:9]
)
@pytest.mark.parametrize("file", FILES)
def test_no_other_value_is_more_than_an_error(file: str, value: object, tmp_path: Path) -> None:
    for number, (_, changed) in enumerate(variants(FILES[file], value)):
        (tmp_path / str(number)).mkdir()
        path = write(tmp_path / str(number), file, changed)
        try:
            clip.load(path, device="cpu")
        except CheckpointError as error:
            assert str(error).startswith(f"{path}")
            assert len(str(error)) < 1_000 + len(str(path))
            assert str(error).isprintable()


def test_a_configuration_of_314_bytes_does_not_take_all_memory(tmp_path: Path) -> None:
    folder = write(tmp_path, "config.json", {"model_type": "clip", "text_config": {"num_hidden_layers": 2147483648}})
    assert_refused(folder, says="num_hidden_layers is 2147483648, expected a whole number above 0")
    config = transformers_config(VIT)
    config["text_config"]["num_hidden_layers"] = 2147483647
    assert_refused(write(tmp_path, "config.json", config), says="is 2147483647, and 1 by the weights' shapes")


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors.index.json"])
def test_a_configuration_is_read_up_to_a_size_and_never_from_a_pipe(name: str, tmp_path: Path) -> None:
    folder = write(tmp_path, "config.json", transformers_config(VIT))
    if name.startswith("model"):
        (folder / "model.safetensors").unlink()
    (folder / name).unlink(missing_ok=True)
    with (folder / name).open("wb") as file:
        file.truncate(2**33)
    assert_refused(folder, says=f"at most {MAX_JSON_BYTES:,}")
    (folder / name).unlink()
    os.mkfifo(folder / name)
    if name.startswith("preprocessor"):
        clip.load(folder, device="cpu")
    else:
        assert_refused(folder)


def test_parts_that_are_pipes_or_the_index_itself_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(transformers_config(VIT)))
    os.mkfifo(tmp_path / "a.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    for name in ("a.safetensors", index.name):
        index.write_text(json.dumps({"weight_map": {"a": name}}))
        assert_refused(tmp_path)
    index.write_text(json.dumps({"weight_map": {str(n): f"{n}.safetensors" for n in range(100_000)}}))
    assert_refused(tmp_path, says="100000 of its 100000 parts are missing")


def test_weights_with_a_mean_that_is_no_number_are_refused(tmp_path: Path) -> None:
    for number, (mean, std) in enumerate([("nan", 0.5), (0.5, 0), (0.5, -1), (float("inf"), 0.5)]):
        (tmp_path / str(number)).mkdir()
        pixels = {"mean": [mean] * 3, "std": [std] * 3}
        with pytest.raises(CheckpointError, match="three numbers"):
            clip.load(
                write(tmp_path / str(number), "open_clip_config.json", open_clip_config(VIT, pixels)), device="cpu"
            )
    assert not torch.isnan(WEIGHTS["logit_scale"])
