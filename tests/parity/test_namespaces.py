"""Names, modules, start values and the transform beside a frozen list of openai/CLIP@d05afc4's own."""

import importlib
import json
import re
from typing import Any

import pytest
import torch
from kit import GOLDEN

from clip.clip import _transform
from clip.model import CLIP

GOLDEN_NAMES: dict[str, Any] = json.loads((GOLDEN / "namespaces.json").read_text())
NETWORKS: dict[str, Any] = GOLDEN_NAMES["networks"]
OPENAIS_ALL = {"clip.clip": {"available_models", "load", "tokenize"}}  # the only module with an `__all__`


@pytest.mark.parametrize("module", GOLDEN_NAMES["namespaces"])
def test_a_module_has_every_name_of_openais(module: str) -> None:
    ours, names = importlib.import_module(module), GOLDEN_NAMES["namespaces"][module]
    assert [name for name in names if not hasattr(ours, name)] == []
    assert set(names) <= set(dir(ours))


@pytest.mark.parametrize("module", GOLDEN_NAMES["namespaces"])
def test_a_star_import_brings_what_openais_brings_and_nothing_else(module: str) -> None:
    names: dict[str, Any] = {}
    exec(f"from {module} import *", names)
    public = {name for name in GOLDEN_NAMES["namespaces"][module] if not name.startswith("_")}
    assert set(names) - {"__builtins__"} == OPENAIS_ALL.get(module, public)


@pytest.fixture(params=list(NETWORKS))
def network(request: pytest.FixtureRequest) -> dict[str, Any]:
    return NETWORKS[request.param]


def start(network: dict[str, Any]) -> CLIP:
    torch.manual_seed(0)
    return CLIP(*network["arguments"])


def test_parameters_buffers_modules_entries_and_repr_are_openais(network: dict[str, Any]) -> None:
    model = start(network)
    assert [name for name, _ in model.named_parameters()] == network["parameters"]
    assert [name for name, _ in model.named_buffers()] == network["buffers"]
    assert [[name, type(module).__name__] for name, module in model.named_modules()] == network["modules"]
    assert list(model.state_dict()) == network["state_dict"]
    assert repr(model) == network["repr"]


def test_a_seed_gives_openais_start_values_bit_for_bit(network: dict[str, Any]) -> None:
    values = network["start_values_after_manual_seed_0"]
    for name, parameter in start(network).named_parameters():
        assert parameter.detach().flatten()[:3].tolist() == values[name]["first"], name
        assert float(parameter.detach().double().sum()) == pytest.approx(values[name]["sum"], rel=1e-6, abs=1e-6), name


def test_the_transform_prints_as_openais() -> None:
    assert [re.sub(" at 0x[0-9a-f]+", "", line) for line in repr(_transform(64)).splitlines()] == [
        re.sub(" at 0x[0-9a-f]+", "", line) for line in GOLDEN_NAMES["preprocess"]["repr"].splitlines()
    ]
    steps = [getattr(step, "__name__", type(step).__name__) for step in _transform(64).transforms]
    assert steps == GOLDEN_NAMES["preprocess"]["steps"]
