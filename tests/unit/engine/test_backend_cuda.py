"""What backend_cuda.py does in Python, on a stand-in for CUDA that runs at once; a GPU has test_cuda.py."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from clip.engine import backend_cuda
from clip.engine.backend_cuda import CudaGraph, describe_cause

CPU = torch.device("cpu")


class Still:
    """A stream or an event where everything has happened already."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __getattr__(self, name: str) -> Callable[..., None]:
        assert name in ("wait_stream", "wait_event", "record", "synchronize")
        return lambda *_: None


class Recorder:
    """A function that remembers its last call, so that a stand-in for a CUDA graph can replay it."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.last: tuple[tuple[Tensor, ...], Tensor] | None = None

    def compute(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.stack([x.float().sum(dim=1), y.float()], dim=1)

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        self.shapes.append(tuple(x.shape))
        output = self.compute(x, y)
        self.last = ((x, y), output)
        return output


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    made = Recorder()

    class Graph:
        bound: tuple[tuple[Tensor, ...], Tensor]

        def replay(self) -> None:
            inputs, output = self.bound
            output.copy_(made.compute(*inputs))

    @contextmanager
    def capture(graph: Graph, **_: Any) -> Iterator[None]:
        assert backend_cuda._capturing.locked()
        assert torch.get_float32_matmul_precision() == "highest"
        yield
        assert made.last
        graph.bound = made.last

    for name, value in {
        "Stream": Still,
        "Event": Still,
        "current_stream": Still,
        "stream": lambda _: nullcontext(),
        "device": lambda _: nullcontext(),
        "CUDAGraph": Graph,
        "graph": capture,
        "graph_pool_handle": lambda: None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *shape, **options: zeros(*shape, **options | {"pin_memory": False}))
    return made


def inputs(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 5), generator=draw, dtype=torch.uint8), torch.rand(count, generator=draw)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(counts=st.lists(st.integers(1, 100), min_size=1, max_size=6))
def test_batches_of_every_size_come_back_in_order_and_without_their_padding(
    recorder: Recorder, counts: list[int]
) -> None:
    graph = CudaGraph(recorder, CPU, batch_size=100)
    batches = [inputs(count, seed) for seed, count in enumerate(counts)]
    for batch in batches:
        assert torch.equal(graph(*batch), recorder.compute(*batch))


def test_few_sizes_are_captured_and_each_once(recorder: Recorder) -> None:
    graph = CudaGraph(recorder, CPU, batch_size=100)
    for count in range(1, 101):
        graph(*inputs(count))
    sizes = [1, 2, 4, 8, 16, 32, 64, 100]
    assert sorted({shape[0] for shape in recorder.shapes}) == sizes
    assert len(recorder.shapes) == len(sizes) * (backend_cuda.WARM_UP_RUNS + 1)


def test_what_a_batch_left_behind_is_not_in_the_next(recorder: Recorder) -> None:
    """The features are copies: the graph writes each batch's to the same place."""
    graph = CudaGraph(recorder, CPU, batch_size=4)
    first, second = inputs(4, 1), inputs(3, 2)
    found = [graph(*first), graph(*second)]
    assert torch.equal(found[0], recorder.compute(*first))
    assert torch.equal(found[1], recorder.compute(*second))


def test_only_full_batches_are_compiled(recorder: Recorder) -> None:
    compiled = Recorder()

    def both(x: Tensor, y: Tensor) -> Tensor:
        compiled.shapes.append(tuple(x.shape))
        return recorder(x, y)

    graph = CudaGraph(recorder, CPU, batch_size=70, compiled=both)
    graph(*inputs(3))
    graph(*inputs(70))
    assert {shape[0] for shape in compiled.shapes} == {70}


def test_where_the_compiler_fails_the_graph_runs_uncompiled(
    recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    def no_compiler(*_: Tensor) -> Tensor:
        raise RuntimeError("Failed to find C compiler\nand much more")

    graph = CudaGraph(recorder, CPU, batch_size=4, compiled=no_compiler)
    batch = inputs(4)
    assert torch.equal(graph(*batch), recorder.compute(*batch))
    assert [record.message for record in caplog.records] == [
        "torch.compile failed (RuntimeError: Failed to find C compiler); the graph runs uncompiled"
    ]


class Compiler:
    """A compiled function whose first call waits until it may end, or fails."""

    def __init__(self, recorder: Recorder, error: Exception | None = None) -> None:
        self.begun, self.may_end = threading.Event(), threading.Event()
        self.calls = 0
        self._recorder, self._error = recorder, error

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        if threading.current_thread().name == "clip-compile":
            self.begun.set()
            assert self.may_end.wait(60)
            if self._error is not None:
                raise self._error
            return self._recorder.compute(x, y)
        return self._recorder(x, y)


def join_compiler() -> None:
    for thread in threading.enumerate():
        if thread.name == "clip-compile":
            thread.join(60)
            assert not thread.is_alive()


def test_batches_run_uncompiled_while_a_thread_compiles_and_compiled_from_the_next_one_on(recorder: Recorder) -> None:
    compiled = Compiler(recorder)
    graph = CudaGraph(recorder, CPU, batch_size=4, compiled=compiled, compile_after=3)
    batch, small = inputs(4), inputs(2)
    for _ in range(3):
        assert torch.equal(graph(*batch), recorder.compute(*batch))
    assert compiled.calls == 0
    assert torch.equal(graph(*batch), recorder.compute(*batch))
    assert compiled.begun.wait(60)
    for each in (batch, small, batch):
        assert torch.equal(graph(*each), recorder.compute(*each))
    assert not graph.is_compiled
    assert compiled.calls == 1
    compiled.may_end.set()
    join_compiler()
    assert torch.equal(graph(*batch), recorder.compute(*batch))
    assert graph.is_compiled
    assert compiled.calls == 1 + backend_cuda.WARM_UP_RUNS + 1
    assert torch.equal(graph(*small), recorder.compute(*small))
    assert torch.equal(graph(*batch), recorder.compute(*batch))
    assert compiled.calls == 1 + backend_cuda.WARM_UP_RUNS + 1, "captured once"


def test_a_job_of_few_full_batches_never_compiles(recorder: Recorder) -> None:
    compiled = Compiler(recorder)
    graph = CudaGraph(recorder, CPU, batch_size=4, compiled=compiled, compile_after=backend_cuda.COMPILE_AFTER)
    for count in (4, 2, 1) * backend_cuda.COMPILE_AFTER:
        graph(*inputs(count))
    assert compiled.calls == 0


@pytest.mark.parametrize("error", [RuntimeError("no gcc"), torch.OutOfMemoryError("CUDA out of memory")])
def test_a_compiler_that_fails_beside_the_batches_is_said_and_ends_none(
    error: Exception, recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    compiled = Compiler(recorder, error)
    graph = CudaGraph(recorder, CPU, batch_size=4, compiled=compiled, compile_after=1)
    batch = inputs(4)
    graph(*batch)
    graph(*batch)
    compiled.may_end.set()
    join_compiler()
    for _ in range(3):
        assert torch.equal(graph(*batch), recorder.compute(*batch))
    assert (graph.is_compiled, compiled.calls) == (False, 1)
    assert [record.message for record in caplog.records] == [
        f"torch.compile failed ({type(error).__name__}: {error}); the graph runs uncompiled"
    ]


def test_a_capture_during_a_compilation_leaves_the_precision_of_products_as_it_found_it() -> None:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high")
    try:
        compiling, capturing = backend_cuda._fix_precision(), backend_cuda._fix_precision()
        compiling.__enter__()
        capturing.__enter__()
        compiling.__exit__(None, None, None)
        assert torch.get_float32_matmul_precision() == "highest", "the other one still needs it"
        capturing.__exit__(None, None, None)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before[0])
    assert torch.backends.cudnn.allow_tf32 == before[1]


def test_a_failure_of_the_compiler_is_told_by_its_first_cause() -> None:
    """torch wraps it, and its own message ends its first line before the cause."""

    def backend(*_: Any) -> Any:
        try:
            raise OSError(2, "No such file: gcc")
        except OSError as exc:
            raise ImportError("a line\nand more") from exc

    with pytest.raises(Exception, match="backend='backend' raised:\n") as caught:
        torch.compile(lambda x: x + 1, backend=backend)(torch.zeros(2))
    torch.compiler.reset()
    assert describe_cause(caught.value) == "FileNotFoundError: [Errno 2] No such file: gcc"
    assert describe_cause(ValueError("\n  the first line  \nthe second")) == "ValueError: the first line  "
    assert describe_cause(KeyboardInterrupt()) == "KeyboardInterrupt"
    assert len(describe_cause(ValueError("a" * 1000))) == backend_cuda.MAX_REASON


def test_memory_that_runs_out_in_the_compiler_is_not_taken_for_a_failure_of_it(recorder: Recorder) -> None:
    def too_large(*_: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        CudaGraph(recorder, CPU, batch_size=4, compiled=too_large)(*inputs(4))
