"""A network laid out without memory, and its weights put into it. Knows nothing about which network it is.

Modules are made on the meta device, so nothing is drawn at random to be overwritten, and each weight is made once, on
its device and in its dtype: at its peak memory holds the model and one tensor.
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


def blueprint(make: Callable[[], Network]) -> Network:
    """The network that `make` builds, every weight on the meta device.

    Raises:  CheckpointError (a RuntimeError) for sizes that no tensor can have.
    """
    try:
        with torch.device("meta"), _WithoutStartValues():
            return make()
    except (RuntimeError, MemoryError, AssertionError) as exc:  # torch's own checks of sizes
        raise CheckpointError(
            "weights",
            f"their shapes tell a network that cannot be made ({quote(str(exc))})",
            "a CLIP",
            "Pass one.",
        ) from exc


def fill(model: Network, state_dict: dict[str, Tensor], device: torch.device | str) -> Network:
    """A blueprint with copies of these weights on `device`, in eval mode. Empties `state_dict` as it goes.

    Raises:  CheckpointError (a RuntimeError) where names or shapes do not fit.
    """
    wanted = model.state_dict()
    check_fit(state_dict, wanted)
    weights = {key: state_dict.pop(key).to(device=device, dtype=w.dtype, copy=True) for key, w in wanted.items()}
    model.load_state_dict(weights, strict=True, assign=True)
    return model.to(device).eval()  # .to moves buffers that are no weights


class _WithoutStartValues(TorchFunctionMode):
    """Lets tensors on the meta device be made but not filled: torch imports 800 modules to do so, 0.9 s and 75 MB."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name, target = getattr(func, "__name__", ""), args[0] if args else kwargs.get("tensor")
        in_place = name.endswith("_") and not name.endswith("__")
        if in_place and isinstance(target, Tensor) and target.is_meta:
            return target
        return func(*args, **kwargs)


def check_fit(state_dict: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Refuse weights whose names or shapes are not the network's."""
    problems = [f"missing {key}" for key in wanted if key not in state_dict]
    problems += [f"unexpected {quote(key)}" for key in state_dict if key not in wanted]
    problems += [
        f"{key} is {tuple(state_dict[key].shape)} and should be {tuple(layout.shape)}"
        for key, layout in wanted.items()
        if key in state_dict and state_dict[key].shape != layout.shape
    ]
    if problems:
        some = "; ".join(problems[:5]) + ("; ..." if len(problems) > 5 else "")
        raise CheckpointError(
            "weights",
            f"{len(problems)} entries do not fit the CLIP their shapes describe",
            f"none: {some}",
            "Pass the whole state dict of one model.",
        )
