"""COMPATIBILITY.md beside the frozen list of the names of openai/CLIP@d05afc4 and beside this package."""

import importlib
import importlib.util
import inspect
import json
import re
import sys
from collections import Counter
from functools import cache
from types import ModuleType
from typing import Any

import pytest
from kit import ROOT, formula

from clip.simple_tokenizer import SimpleTokenizer

MODULES: dict[str, Any] = json.loads((ROOT / "tests" / "golden" / "reference_names.json").read_text())["modules"]
Key = tuple[str, str]  # module, name; a member of a class as "Class.member"


def frozen() -> tuple[list[Key], dict[Key, list[str]]]:
    """Every name of the reference, and the parameters of those that are called."""
    names: list[Key] = []
    parameters: dict[Key, list[str]] = {}
    for module, found in MODULES.items():
        names += [(module, name) for name in [*found["imports"], *found["constants"], *found["functions"]]]
        parameters |= {(module, name): given for name, given in found["functions"].items()}
        for cls, parts in found["classes"].items():
            names.append((module, cls))
            if parts["parameters"] is not None:
                parameters[module, cls] = parts["parameters"]
            members = [*parts["attributes"], *parts["properties"], *parts["methods"], *parts["instance"]]
            names += [(module, f"{cls}.{member}") for member in members]
            parameters |= {(module, f"{cls}.{method}"): given for method, given in parts["methods"].items()}
    return names, parameters


def rows() -> list[tuple[Key, str, str]]:
    """The tables of COMPATIBILITY.md: name, status, reason. A table belongs to the module of the heading above it."""
    found: list[tuple[Key, str, str]] = []
    module = ""
    names, _, _ = (ROOT / "COMPATIBILITY.md").read_text().partition("## Published checkpoints")
    for line in names.splitlines():
        if heading := re.fullmatch(r"## `(.+)`", line):
            module = heading[1]
        elif line.startswith("|") and not line.startswith(("| name |", "|---")):
            name, status, reason = (cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1])
            found.append(((module, name.strip("`")), status, reason))
    return found


NAMES, PARAMETERS = frozen()
ROWS = rows()
PRESENT = [key for key, status, _ in ROWS if status != "absent"]
CALLED = [(key, status, reason) for key, status, reason in ROWS if status != "absent" and key in PARAMETERS]


def show(value: object) -> str | None:
    return ".".join(value) if isinstance(value, tuple) else None


@cache
def module_of(name: str) -> ModuleType:
    if name != "hubconf":
        return importlib.import_module(name)
    spec = importlib.util.spec_from_file_location("hubconf", ROOT / "hubconf.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path])  # hubconf puts src on it
        spec.loader.exec_module(module)
    return module


@cache
def instance_of(cls: str) -> object:
    vit = formula.layout(formula.TINY["tiny-vit"])
    resnet = formula.layout(formula.TINY["tiny-rn"])
    return {
        "Bottleneck": resnet.visual.layer1[0],
        "AttentionPool2d": resnet.visual.attnpool,
        "ModifiedResNet": resnet.visual,
        "LayerNorm": vit.ln_final,
        "QuickGELU": vit.transformer.resblocks[0].mlp.gelu,
        "ResidualAttentionBlock": vit.transformer.resblocks[0],
        "Transformer": vit.transformer,
        "VisionTransformer": vit.visual,
        "CLIP": vit,
        "SimpleTokenizer": SimpleTokenizer(),
    }[cls]


def exists(key: Key) -> bool:
    module, name = key
    owner, _, member = name.rpartition(".")
    if not owner:
        return hasattr(module_of(module), member)
    parts = MODULES[module]["classes"][owner]
    holder = instance_of(owner) if member in parts["instance"] else getattr(module_of(module), owner)
    return hasattr(holder, member)


def parameters_of(key: Key) -> list[str]:
    """`name` or `name=default` of each parameter, `self` left out."""
    module, name = key
    called: Any = module_of(module)
    for part in name.split("."):
        called = getattr(called, part)
    found = [
        {inspect.Parameter.VAR_KEYWORD: "**", inspect.Parameter.VAR_POSITIONAL: "*"}.get(parameter.kind, "")
        + parameter.name
        + ("" if parameter.default is inspect.Parameter.empty else f"={parameter.default!r}")
        for parameter in inspect.signature(called).parameters.values()
    ]
    return found[1:] if "." in name else found


def test_every_frozen_name_has_one_row_and_no_row_is_about_another() -> None:
    assert len(NAMES) == len(set(NAMES)) > 150
    assert Counter(key for key, _, _ in ROWS) == Counter(NAMES)


def test_every_status_is_same_differs_or_absent_and_what_is_not_same_has_a_reason() -> None:
    assert {status for _, status, _ in ROWS} == {"same", "differs", "absent"}
    assert [key for key, status, reason in ROWS if status != "same" and len(reason) < 5] == []


@pytest.mark.parametrize("key", PRESENT, ids=show)
def test_names_that_are_the_same_or_differ_exist(key: Key) -> None:
    assert exists(key)


@pytest.mark.parametrize("key", [key for key, status, _ in ROWS if status == "absent"], ids=show)
def test_absent_names_do_not_exist(key: Key) -> None:
    assert not exists(key)


@pytest.mark.parametrize(("key", "status", "reason"), CALLED, ids=show)
def test_parameters_are_those_of_the_reference_or_the_row_says_otherwise(key: Key, status: str, reason: str) -> None:
    changed = parameters_of(key) != PARAMETERS[key]
    assert reason.startswith("Signature: ") is changed, (parameters_of(key), PARAMETERS[key])
    assert status == "differs" or not changed


def test_exactly_the_constructors_of_the_reference_are_our_own() -> None:
    for module, name in NAMES:
        if name in MODULES[module]["classes"]:
            own = "__init__" in vars(getattr(module_of(module), name))
            assert own is ((module, name) in PARAMETERS), name


def test_properties_stay_properties() -> None:
    for module, found in MODULES.items():
        for cls, parts in found["classes"].items():
            for name in parts["properties"]:
                assert isinstance(inspect.getattr_static(getattr(module_of(module), cls), name), property)
