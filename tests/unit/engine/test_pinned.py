"""Memory is pinned for CUDA alone, and given back, on a stand-in for CUDA's runtime; a GPU has test_cuda.py."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch

from clip.engine import pinned
from clip.engine.pinned import pin

CUDA = torch.device("cuda", 0)


class Runtime:
    """CUDA's own functions, as far as they are called."""

    def __init__(self, error: int = 0) -> None:
        self.error = error
        self.held: dict[int, int] = {}

    def cudaHostRegister(self, address: int, size_bytes: int, flags: int) -> int:  # noqa: N802
        assert flags == pinned.PORTABLE
        if not self.error:
            self.held[address] = size_bytes
        return self.error

    def cudaHostUnregister(self, address: int) -> None:  # noqa: N802
        del self.held[address]


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Runtime:
    made = Runtime()
    monkeypatch.setattr(torch.cuda, "cudart", lambda: made)
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    return made


def test_all_of_the_memory_is_pinned_until_the_block_ends_however_that_is(runtime: Runtime) -> None:
    memory = np.zeros((3, 5), np.uint8)
    with pytest.raises(KeyError), pin(memory, CUDA):
        assert runtime.held == {memory.ctypes.data: 15}
        raise KeyError
    assert runtime.held == {}


def test_memory_that_cannot_be_pinned_is_said_and_used_all_the_same(
    runtime: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    runtime.error = 2
    with pin(np.zeros(7, np.uint8), CUDA):
        pass
    assert [record.message for record in caplog.records] == [
        "cuda:0: 7 bytes cannot be pinned (CUDA error 2); they are copied"
    ]


def test_a_cpu_needs_nothing_pinned(runtime: Runtime) -> None:
    with pin(np.zeros(7, np.uint8), torch.device("cpu")):
        assert runtime.held == {}
