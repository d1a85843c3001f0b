"""Print what each idiom of `kit.idioms` gives, as JSON.

`--path` puts folders first on sys.path; `--torchvision` imports torchvision, which may lie in one of them. On OpenAI's
code `run_idioms.py --torchvision --path FOLDER-OF-OPENAIS-CODE .venv/torchvision` writes tests/golden/idioms.json.
"""

import argparse
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

TESTS = Path(__file__).parents[2]


def outcome(value: Any) -> Any:
    """A value as JSON: tensors by shape, dtype, sums and first values."""
    if isinstance(value, Tensor):
        numbers = value.detach().double().flatten()
        finite = numbers[numbers.isfinite()]
        shown = [float(f"{x:.6g}") for x in finite[:6].tolist()]
        sums = [float(f"{x:.6g}") for x in (finite.sum().item(), finite.abs().sum().item())]
        kind = {"shape": list(value.shape), "dtype": str(value.dtype), "finite": len(finite)}
        return kind | {"sums": sums, "first": shown}
    if isinstance(value, np.ndarray):
        return {"numpy": str(value.dtype)} | outcome(torch.from_numpy(value))
    if isinstance(value, dict):
        return {key: outcome(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [outcome(one) for one in value]
    return value if isinstance(value, (bool, int, float, str, type(None))) else str(value)


def run(function: Callable[[], Any]) -> Any:
    """What an idiom gives: its value, or the classes of its error, from the class itself upwards."""
    try:
        return outcome(function())
    except Exception as exc:  # noqa: BLE001  the error is the outcome
        return {"error": [cls.__name__ for cls in type(exc).__mro__][:-2]}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--path", nargs="*", default=[])
    parser.add_argument("--torchvision", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    sys.path[:0] = [*options.path, str(TESTS), str(TESTS.parent / "bench")]
    if options.torchvision:
        from torch_runners import import_torchvision

        import_torchvision()
    from kit.idioms import IDIOMS

    outcomes = {what: run(function) for what, function in IDIOMS.items()}
    json.dump({"torchvision": "torchvision" in sys.modules, "outcomes": outcomes}, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
