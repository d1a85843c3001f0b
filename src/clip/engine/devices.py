"""The devices of this machine, and the back end that runs each. Knows nothing about files."""

from __future__ import annotations

import platform
from contextlib import contextmanager
from typing import TYPE_CHECKING, get_args

import torch

from ..errors import DeviceError, InputError
from ..jobs.models import DeviceRow
from ..jobs.options import Precision
from ..parallel import available_cores
from . import quantize
from .backend import Backend
from .backend_openvino import OpenVinoBackend, processor_name
from .backend_openvino import usable_precisions as openvino_precisions
from .backend_torch import TorchBackend

if TYPE_CHECKING:
    from collections.abc import Generator


MAX_REASON = 100  # characters of what torch says; for an unknown name it lists every device it has heard of


def resolve_device(device: str | torch.device | None = None) -> torch.device:
    """The device asked for; with None or "auto" CUDA where there is one, else the CPU.

    Raises:  DeviceError (a RuntimeError) for a device this machine does not have.
    """
    if device is None or device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        wanted = torch.device(device)
        # The one way to ask that holds for every kind, index and build; "meta" would answer, with no numbers in it.
        torch.empty(1, device=wanted).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as exc:
        reason = str(exc).splitlines()[0].partition(". ")[0]
        raise DeviceError(
            f"device {str(device)!r}",
            f"not usable here ({reason[:MAX_REASON]})",
            f"one of {_device_names()}",
            'Pass one of these, or "auto".',
        ) from exc
    if wanted == torch.device("cuda"):
        return torch.device("cuda", torch.cuda.current_device())  # which another thread may have chosen otherwise
    return wanted


def _device_names() -> list[str]:
    names = ["cpu"] + [f"cuda:{n}" for n in range(torch.cuda.device_count())]
    return names + (["mps"] if torch.backends.mps.is_available() else [])


def devices() -> list[DeviceRow]:
    """The devices of this machine, the back end that each would get, and its precisions, the default first."""
    rows: list[DeviceRow] = []
    for name in _device_names():
        device = torch.device(name)
        rows.append(DeviceRow(name, _label(device), make_backend(device).name, tuple(usable_precisions(device))))
    return rows


def _label(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu" and openvino_precisions():
        return processor_name()
    return platform.processor() or platform.machine()


def usable_precisions(device: torch.device) -> list[str]:
    """What the engine can compute in on a device; the first is what "reference" means there."""
    if device.type == "cuda":
        from .backend_cuda import usable_precisions as cuda_precisions

        return cuda_precisions(device)
    if device.type == "cpu":
        return openvino_precisions() or ["fp32", "bf16"]
    return ["fp32", "fp16"]


def make_backend(device: torch.device, precision: Precision = "reference", threads: int | None = None) -> Backend:
    """The back end that runs a device: OpenVINO on x86-64 CPUs, else PyTorch.

    Raises:  DeviceError for a precision the device does not have; InputError for a word that is none.
    """
    if precision not in get_args(Precision):
        raise InputError(
            "`precision`",
            f"found {precision!r}",
            f"one of {get_args(Precision)}",
            "Pass one.",
        )
    usable = usable_precisions(device)
    word = usable[0] if precision == "reference" else precision
    if word == "int8" and device.type == "cpu":
        quantize.check_installed()
    if word not in usable:
        raise DeviceError(
            f"precision {precision!r}: {device} does not compute in it, expected one of {['reference', *usable]}. "
            "Pass one of these, or another device."
        )
    if device.type == "cuda":
        from .backend_cuda import CudaBackend  # here, as nothing of it runs without a GPU

        return CudaBackend(device, word)
    if device.type == "cpu" and openvino_precisions():
        return OpenVinoBackend(word, threads or available_cores())
    return TorchBackend(device, word)


@contextmanager
def limit_threads(threads: int) -> Generator[None]:
    """Let torch on the CPU compute with so many threads, and put the number back afterwards; it is the process's."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def runs_fp16(device: torch.device) -> bool:
    """Whether models on this device are fp16 as in the reference. The others, whose half precision has gaps, get fp32.

    Source:  openai/CLIP@d05afc4 clip/clip.py:139 leaves fp16 everywhere but on "cpu" to the letter; issues 255, 415.
    """
    return device.type == "cuda"
