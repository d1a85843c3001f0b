"""What public projects do with openai/CLIP gives what it gives with OpenAI's code, with torchvision and without it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from kit import GOLDEN
from kit.programs import command, environment

EXPECTED: dict[str, Any] = json.loads((GOLDEN / "idioms.json").read_text())["outcomes"]
TORCHVISION = Path(sys.prefix) / "torchvision"  # apart from the other packages, where its users would find it


@pytest.fixture(scope="module", params=["without torchvision", "with torchvision"])
def outcomes(request: pytest.FixtureRequest) -> dict[str, Any]:
    with_it = request.param == "with torchvision"
    arguments = ["--torchvision", "--path", TORCHVISION] if with_it else []
    done = subprocess.run(command("run_idioms", *arguments), env=environment(), capture_output=True, check=True)
    printed = json.loads(done.stdout)
    assert printed["torchvision"] is with_it, "make install puts torchvision into .venv/torchvision"
    return printed["outcomes"]


def difference(expected: Any, found: Any) -> str | None:
    """Return where two outcomes differ: numbers by more than rounding, errors by the class that OpenAI's raises."""
    if isinstance(expected, dict) and "error" in expected:
        raised = found.get("error", []) if isinstance(found, dict) else []
        return None if expected["error"][0] in raised else f"{expected} became {str(found)[:300]}"
    if isinstance(expected, dict) and isinstance(found, dict) and expected.keys() == found.keys():
        return next((d for key in expected if (d := difference(expected[key], found[key]))), None)
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        return next((d for pair in zip(expected, found, strict=True) if (d := difference(*pair))), None)
    if isinstance(expected, float) and isinstance(found, (int, float)):
        return None if abs(expected - found) <= 1e-4 * max(1, abs(expected)) else f"{expected} became {found}"
    return None if expected == found else f"{str(expected)[:300]} became {str(found)[:300]}"


def test_every_idiom_is_run(outcomes: dict[str, Any]) -> None:
    assert list(outcomes) == list(EXPECTED)
    assert len(EXPECTED) > 140


@pytest.mark.parametrize("idiom", EXPECTED)
def test_an_idiom_gives_what_openais_code_gives(idiom: str, outcomes: dict[str, Any]) -> None:
    assert difference(EXPECTED[idiom], outcomes[idiom]) is None
