"""Have a GPU read memory where it lies: pages that the system may not move cross the bus without a copy on the host."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Generator

    import numpy as np

PORTABLE = 1  # for all GPUs of the process. Source: CUDA's runtime, cudaHostRegisterPortable

_log = logging.getLogger("clip")


@contextmanager
def pin(memory: np.ndarray, device: torch.device) -> Generator[None]:
    """Pin memory that is there already, as long as the block lasts; for a device other than CUDA do nothing.

    Memory that the system does not let be pinned is read all the same, by way of torch's own.
    """
    if device.type != "cuda" or not memory.nbytes:
        yield
        return
    with torch.cuda.device(device):
        runtime: Any = torch.cuda.cudart()
        error = int(runtime.cudaHostRegister(memory.ctypes.data, memory.nbytes, PORTABLE))
    if error:
        _log.warning("%s: %d bytes cannot be pinned (CUDA error %d); they are copied", device, memory.nbytes, error)
        yield
        return
    try:
        yield
    finally:
        with torch.cuda.device(device):
            torch.cuda.synchronize()  # what was asked for has been read
            runtime.cudaHostUnregister(memory.ctypes.data)
