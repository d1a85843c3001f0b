"""What torch is being asked to do besides computing: where it is more than numbers, eager has to run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.modules import module as module_hooks

_C: Any = torch._C  # pyright: ignore[reportPrivateUsage]  torch has no public names for most of what follows
GLOBAL_HOOKS = (
    *("_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks", "_global_backward_pre_hooks"),
)


def find_mode(device: torch.device) -> str | None:
    """Return the first thing for which a call on this device must be eager; None where numbers alone are wanted.

    A tracer looks at the operations of the network; torch.func, fake tensors and modes replace them; deterministic
    algorithms and autocast choose others; hooks on all modules watch them. Compilers do not get as far as here.
    """
    if _C._get_tracing_state() is not None:
        return "torch.jit.trace is at work"
    if torch.is_autocast_enabled(device.type):
        return "autocast is on"
    if _C._functorch.peek_interpreter_stack() is not None:
        return "a transform of torch.func is at work"
    if _C._len_torch_dispatch_stack() or _C._len_torch_function_stack():
        return "a mode of torch is active, such as FakeTensorMode or a default device"
    if torch.are_deterministic_algorithms_enabled():
        return "deterministic algorithms are on"
    if any(getattr(module_hooks, name) for name in GLOBAL_HOOKS):
        return "there is a hook on all modules"
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return "a CUDA graph is being captured"
    return None


def is_plain(tensor: Tensor, device: torch.device) -> bool:
    """Return whether a tensor is numbers on this device: no subclass, fake, meta, sparse or quantised tensor."""
    kind = type(tensor)
    plain = kind is Tensor or kind is torch.nn.Parameter
    return plain and tensor.device == device and tensor.layout == torch.strided and not tensor.is_quantized
