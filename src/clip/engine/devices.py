"""The devices of this machine, and the back end that runs each."""

from __future__ import annotations

import platform
from contextlib import contextmanager
from typing import TYPE_CHECKING, get_args

import torch

from ..errors import DeviceError, InputError
from ..jobs.models import DeviceRow
from ..jobs.options import Precision
from ..parallel import available_cores
from .backend import Backend
from .backend_openvino import OpenVinoBackend, processor_name
from .backend_openvino import check_extra as check_openvino_extra
from .backend_openvino import usable_precisions as openvino_precisions
from .backend_torch import TorchBackend
from .backend_torch import usable_precisions as torch_precisions

if TYPE_CHECKING:
    from collections.abc import Generator


MAX_REASON = 100  # characters of torch's message; for an unknown name it lists every device it has heard of


def resolve_device(device: str | torch.device | None = None) -> torch.device:
    """Return a usable device; None and "auto" mean CUDA where there is one, else the CPU.

    Raises:  DeviceError (a RuntimeError) for a device this machine does not have.
    """
    if device is None or device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        resolved = torch.device(device)
        # The one check that holds for every kind, index and build; "meta" would pass, with no numbers in it.
        torch.empty(1, device=resolved).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as exc:
        reason = str(exc).splitlines()[0].partition(". ")[0]
        found = f"not usable here ({reason[:MAX_REASON]})"
        remedy = 'Pass one of these, or "auto".'
        raise DeviceError(f"device {str(device)!r}", found, f"one of {_device_names()}", remedy) from exc
    if resolved == torch.device("cuda"):
        return torch.device("cuda", torch.cuda.current_device())  # another thread may have chosen another one
    return resolved


def choose_devices(names: str) -> list[torch.device]:
    """Return the devices of a list with commas; of "all" every GPU of this machine.

    Raises:  DeviceError (a RuntimeError) for a device this machine does not have.
    """
    if names == "all":
        names = ",".join(f"cuda:{number}" for number in range(torch.cuda.device_count()))
        if not names:
            raise DeviceError("devices 'all'", "found no GPU", "at least one", "Leave out `devices`.")
    return [resolve_device(name.strip()) for name in names.split(",")]


def _device_names() -> list[str]:
    names = ["cpu"] + [f"cuda:{n}" for n in range(torch.cuda.device_count())]
    return names + (["mps"] if torch.backends.mps.is_available() else [])


def list_devices() -> list[DeviceRow]:
    """List the devices of this machine, the back end of each, and its precisions, the default first."""
    rows: list[DeviceRow] = []
    for name in _device_names():
        device = torch.device(name)
        rows.append(DeviceRow(name, _label(device), make_backend(device).name, tuple(usable_precisions(device))))
    return rows


def _label(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if _runs_openvino(device):
        return processor_name()
    return platform.processor() or platform.machine()


def _runs_openvino(device: torch.device) -> bool:
    return device.type == "cpu" and bool(openvino_precisions())


def usable_precisions(device: torch.device) -> list[str]:
    """List the precisions a device can compute in; the first is the meaning of "reference" there."""
    if device.type == "cuda":
        from .backend_cuda import usable_precisions as cuda_precisions

        return cuda_precisions(device)
    return openvino_precisions() if _runs_openvino(device) else torch_precisions(device)


def make_backend(
    device: torch.device, precision: Precision = "reference", threads: int | None = None, *, compiles: bool = True
) -> Backend:
    """Make the back end that runs a device: OpenVINO on x86-64 CPUs, else PyTorch.

    Without `compiles`, graphs on CUDA are captured only: compiling takes tens of seconds, which a call would wait for.

    Raises:  DeviceError for a precision that the device does not have; InputError for an unknown word.
    """
    if precision not in get_args(Precision):
        raise InputError("`precision`", f"found {precision!r}", f"one of {get_args(Precision)}", "Pass one.")
    usable = usable_precisions(device)
    word = usable[0] if precision == "reference" else precision
    if _runs_openvino(device):
        check_openvino_extra(word)
    if word not in usable:
        found = f"{device} does not compute in it"
        remedy = "Pass one of these, or another device."
        raise DeviceError(f"precision {precision!r}", found, f"one of {['reference', *usable]}", remedy)
    if device.type == "cuda":
        from .backend_cuda import CudaBackend  # here, because nothing of it runs without a GPU

        return CudaBackend(device, word, compiles=compiles)
    if _runs_openvino(device):
        return OpenVinoBackend(word, threads or available_cores())
    return TorchBackend(device, word)


@contextmanager
def limit_threads(threads: int) -> Generator[None]:
    """Let torch compute with this many threads on the CPU, for the whole process, and restore the number afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def runs_fp16(device: torch.device) -> bool:
    """Return whether models on this device are fp16 as in the reference. Others, whose fp16 has gaps, get fp32.

    Source:  openai/CLIP@d05afc4 clip/clip.py:139 uses fp16 on every device whose name is not "cpu"; issues 255, 415.
    """
    return device.type == "cuda"
