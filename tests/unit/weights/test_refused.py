"""Weights that are code, or no fractions, are refused by what they are, and nothing in them runs."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from kit import checkpoints
from safetensors.torch import save_file
from torch import nn

import clip
from clip.errors import CheckpointError

Change = Callable[[dict[str, Any], str], None]  # of the entries of one weight
UNQUANTISED = "expected fractions. Pass the weights before they were quantised."


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    return clip.load(checkpoints.write(tmp_path_factory.mktemp("refused"), texts=True), device="cpu")[0]


class Wrapper(nn.Module):
    """A module around a CLIP, as scripts have it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.clip = inner

    def __setstate__(self, state: dict[str, Any]) -> None:
        raise AssertionError("it was unpickled")


MODULES: dict[str, tuple[Callable[[nn.Module], object], str]] = {
    "model": (lambda model: model, "clip.model.CLIP"),
    "model in a dict": (lambda model: {"epoch": 3, "model": model}, "clip.model.CLIP"),
    "model around it": (Wrapper, "unit.weights.test_refused.Wrapper"),
    "parallel": (nn.DataParallel, "torch.nn.parallel.data_parallel.DataParallel"),
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", MODULES)
def test_a_whole_module_is_named_and_what_to_do_is_said(
    model: nn.Module, tmp_path: Path, name: str, *, legacy: bool
) -> None:
    wrap, told = MODULES[name]
    torch.save(wrap(model), tmp_path / "a.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError) as caught:
        clip.load(tmp_path / "a.pt", device="cpu")
    assert caught.value.item == str(tmp_path / "a.pt")
    assert told.rpartition(".")[2] in caught.value.found
    assert "holds a whole module" in caught.value.found
    assert caught.value.remedy.startswith("If you trust the file, run where that class is installed: torch.save(")


def test_the_remedy_for_a_whole_module_works(model: nn.Module, tmp_path: Path) -> None:
    torch.save(model, tmp_path / "a.pt")
    torch.save(torch.load(tmp_path / "a.pt", weights_only=False).state_dict(), tmp_path / "weights.pt")
    clip.load(tmp_path / "weights.pt", device="cpu")


def to_int8(weight: torch.Tensor) -> torch.Tensor:
    return (weight / weight.abs().max() * 127).to(torch.int8)


def in_parts(*endings: str, keep: bool = False) -> Change:
    """Whole numbers and others in the place of a weight, under these endings."""

    def change(entries: dict[str, Any], key: str) -> None:
        weight = entries[key] if keep else entries.pop(key)
        entries[key] = to_int8(weight)
        stem = key.removesuffix(".weight")
        entries |= {f"{stem}{ending}": torch.ones(len(weight)) for ending in endings}
        if not keep:
            entries[f"{stem}{endings[0]}"] = entries.pop(key)

    return change


# By library: the entries that it writes, where a weight was. Sources: the state dicts of bitsandbytes 0.45
# (Linear8bitLt, Linear4bit), AutoGPTQ 0.7, AutoAWQ 0.2, optimum-quanto 0.2, compressed-tensors 0.9 and torch 2.13.
QUANTISED: dict[str, tuple[Change, str]] = {
    "bitsandbytes, 8 bits": (in_parts(".SCB", keep=True), "bitsandbytes"),
    "bitsandbytes, 4 bits": (in_parts(".weight.absmax", ".weight.quant_map", keep=True), "bitsandbytes"),
    "bitsandbytes, nf4": (in_parts(".weight.quant_state.bitsandbytes__nf4", keep=True), "bitsandbytes"),
    "GPTQ": (in_parts(".qweight", ".qzeros", ".scales", ".g_idx"), "GPTQ or AWQ"),
    "quanto": (in_parts(".weight._data", ".weight._scale"), "optimum-quanto"),
    "compressed-tensors": (in_parts(".weight_packed", ".weight_scale", ".weight_shape"), "compressed-tensors"),
    "a script": (in_parts(".weight_quant", ".weight_scale"), "a quantising program"),
    "whole numbers alone": (lambda entries, key: entries.update({key: to_int8(entries[key])}), "torch.int8"),
}


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
@pytest.mark.parametrize("name", QUANTISED)
def test_quantised_weights_are_refused_by_their_kind(model: nn.Module, tmp_path: Path, name: str, ending: str) -> None:
    change, told = QUANTISED[name]
    entries: dict[str, Any] = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    for key in [key for key in entries if key.endswith("mlp.c_fc.weight")]:
        change(entries, key)
    path = tmp_path / f"a.{ending}"
    if ending == "pt":
        torch.save({"state_dict": {f"module.{key}": value for key, value in entries.items()}}, path)
    else:
        save_file(entries, path)
    with pytest.raises(CheckpointError) as caught:
        clip.load(path, device="cpu")
    assert told in str(caught.value)
    assert str(caught.value).endswith(UNQUANTISED)


def test_quantised_tensors_of_torch_are_refused_by_their_kind(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that they will be removed
        weight = torch.quantize_per_tensor(torch.ones(4, 4), 0.1, 0, torch.qint8)
        torch.save({"visual.proj": weight}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"it is quantised: its pickle has numbers of a 'torch.QInt8Storage'"):
        clip.load(tmp_path / "a.pt", device="cpu")
