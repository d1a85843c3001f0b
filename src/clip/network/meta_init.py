"""Build a network without memory, then fill in its weights.

Modules are built on the meta device, so that no start value is drawn only to be overwritten. Then each weight is made
once, on its device and in its dtype: at its peak, memory holds the model and one more tensor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import CheckpointError, quote

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Network = TypeVar("Network", bound=nn.Module)


def build_on_meta(make: Callable[[], Network]) -> Network:
    """Return the network that `make` builds, with every weight on the meta device.

    Raises:  CheckpointError (a RuntimeError) for sizes that no tensor can have.
    """
    try:
        with torch.device("meta"), _WithoutStartValues():
            return make()
    except (RuntimeError, MemoryError, AssertionError) as exc:  # torch's own checks of sizes
        found = f"no network can have the weights' shapes ({quote(str(exc))})"
        raise CheckpointError("weights", found, "those of a CLIP", "Pass the weights of a CLIP.") from exc


def fill(model: Network, state_dict: dict[str, Tensor], device: torch.device | str) -> Network:
    """Fill a network of `build_on_meta` with copies of these weights on `device`, in eval mode. Empties `state_dict`.

    Raises:  CheckpointError (a RuntimeError) where names or shapes do not fit.
    """
    wanted = model.state_dict()
    check_fit(state_dict, wanted)
    weights = {key: state_dict.pop(key).to(device=device, dtype=w.dtype, copy=True) for key, w in wanted.items()}
    model.load_state_dict(weights, strict=True, assign=True)
    return model.eval()


class _WithoutStartValues(TorchFunctionMode):
    """Skip filling tensors on the meta device, for which torch imports 800 modules: 0.9 s, 75 MB (bench/load.py)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name, target = getattr(func, "__name__", ""), args[0] if args else kwargs.get("tensor")
        in_place = name.endswith("_") and not name.endswith("__")
        if in_place and isinstance(target, Tensor) and target.is_meta:
            return target
        return func(*args, **kwargs)


def check_fit(state_dict: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError where the names or shapes of weights are not those of the network."""
    problems = [f"missing {key}" for key in wanted if key not in state_dict]
    problems += [f"unexpected {quote(key)}" for key in state_dict if key not in wanted]
    problems += [
        f"{key} is {tuple(state_dict[key].shape)} and should be {tuple(layout.shape)}"
        for key, layout in wanted.items()
        if key in state_dict and state_dict[key].shape != layout.shape
    ]
    if problems:
        examples = "; ".join(problems[:5]) + ("; ..." if len(problems) > 5 else "")
        found = f"{len(problems)} entries do not fit the CLIP that the weights' shapes describe ({examples})"
        raise CheckpointError("weights", found, remedy="Pass the whole state dict of one model.")
