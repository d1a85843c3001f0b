"""The lean graph on NVIDIA GPUs: compiled, captured in CUDA graphs, fed from pinned memory on a stream of its own.

A captured graph has one shape, so batches are padded to the next of a few sizes. Bytes cross the bus while the batch
before them is computed; features stay on the GPU until they are asked for. Knows nothing about which graph it is.
"""

from __future__ import annotations

import logging
import math
import threading
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .backend_torch import DTYPES, TorchOps, image_features, place, to_fp8
from .fold import Block, LeanViT, Mlp
from .graph import text_features

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from ..network.records import Architecture
    from .fold import ImageTower, LeanText

WARM_UP_RUNS = 3  # before capture: libraries choose kernels and reserve memory
SLOTS = 2  # of pinned memory: one is filled while the other crosses the bus
SLICE = 64  # images that cross the bus while the next are copied into pinned memory
# Dynamo's limit counts per function, and all towers of a process share one: nine models, bytes and floats, their sizes.
MAX_COMPILED = 256
TILE = (128, 256)  # rows and columns that an SM computes of a product at a time, in cuBLAS's large kernels on Hopper
FULL = 0.97  # share of the SMs' time in use that is good enough
MIN_ROWS, MAX_ROWS = 20_000, 70_000  # of a product: fewer leave gaps between launches, more only take memory
RESNET_NUMBERS = 256 * 256 * 56**2  # in the largest feature map of a batch: 256 images for RN50, 410 MB in fp16
RESNET_BATCHES = (256, 128, 64, 32)
FP8_CAPABILITY = (8, 9)  # Ada; Hopper is 9.0
Shapes = tuple[tuple[torch.Size, torch.dtype], ...]

_log = logging.getLogger("clip")
# One capture at a time in a process (torch.cuda.graph), and nothing of ours that synchronises a device beside it.
_capturing = threading.Lock()


def full_wave_batch(rows_per_image: int, width: int, processors: int) -> int:
    """The smallest batch, a multiple of 32, whose products leave hardly any SM idle in their last wave.

    A product of (M, K) and (K, N) is cut into tiles, which the SMs take in waves; the last is rarely full. Counted over
    the four products of a transformer block, whose N are 3 W, W, 4 W and W.
    """

    def use(batch: int) -> float:
        time = work = 0.0
        for columns, depth in ((3 * width, width), (width, width), (4 * width, width), (width, 4 * width)):
            tiles = math.ceil(batch * rows_per_image / TILE[0]) * math.ceil(columns / TILE[1])
            time += math.ceil(tiles / processors) * processors * depth
            work += tiles * depth
        return work / time

    sizes = range(32, max(33, MAX_ROWS // rows_per_image + 1), 32)
    large = [size for size in sizes if size * rows_per_image >= MIN_ROWS] or [sizes[-1]]
    return next((size for size in large if use(size) >= FULL), max(large, key=use))


def usable_precisions(device: torch.device) -> list[str]:
    """What a GPU computes in by itself."""
    found = ["fp16", "fp32"]
    if torch.cuda.get_device_capability(device) >= (8, 0):
        found.append("bf16")
    if torch.cuda.get_device_capability(device) >= FP8_CAPABILITY:
        found.append("fp8")
    return found


class CudaBackend:
    """Towers captured for a GPU."""

    def __init__(self, device: torch.device, precision: str) -> None:
        self.name = f"torch {torch.__version__}"
        self.device = device
        self.precision = precision
        self.dtype = DTYPES[precision]

    def batch_size(self, architecture: Architecture) -> int:
        """How many images keep this GPU busy."""
        side, patch = architecture.image_resolution, architecture.vision_patch_size
        if patch is None:
            fitting = RESNET_NUMBERS // (4 * architecture.vision_width * (side // 4) ** 2)
            return next((size for size in RESNET_BATCHES if size <= fitting), RESNET_BATCHES[-1])
        processors = torch.cuda.get_device_properties(self.device).multi_processor_count
        return full_wave_batch((side // patch) ** 2 + 1, architecture.vision_width, processors)

    def image_graph(self, tower: ImageTower, dtype: torch.dtype, batch_size: int) -> CudaGraph:  # noqa: ARG002
        """The graph of an image tower, for bytes or for floats in their units."""
        placed = place(tower, self._place)
        if self.precision == "fp8" and isinstance(placed, LeanViT) and isinstance(tower, LeanViT):
            placed = with_fp8_blocks(placed, tower)
        function = image_features(placed, self.dtype)
        compiled = torch.compile(function, dynamic=False, fullgraph=True)
        return CudaGraph(function, self.device, batch_size, compiled=compiled)

    def text_graph(self, tower: LeanText, batch_size: int) -> CudaGraph:
        """The graph of a text tower; `text_features` has its four inputs. In fp8 runs it is bf16."""
        function = partial(text_features, TorchOps(self.dtype), place(tower, self._place))
        return CudaGraph(function, self.device, batch_size)

    def _place(self, tensor: Tensor) -> Tensor:
        form = torch.channels_last if tensor.ndim == 4 else torch.preserve_format
        return tensor.to(self.device, self.dtype, memory_format=form)


class CudaGraph:
    """A function captured for a few batch sizes, the full one compiled. Calls from several threads take turns.

    Only the full size is compiled, because that takes tens of seconds; at smaller ones a captured graph spares what
    counts, the launches. Features are on the GPU, and there is no waiting for them here: what uses them on the stream
    that was current waits by itself, so the next batch is on its way while this one is computed.
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        device: torch.device,
        batch_size: int,
        *,
        compiled: Callable[..., Tensor] | None = None,
    ) -> None:
        self._function = function
        self._compiled = compiled
        self._device = device
        self._full = batch_size
        self._captured: dict[Shapes, _Captured] = {}
        self._lock = threading.Lock()
        # Warm-up and capture share a stream, so that what cuBLAS reserves for it lies outside any one graph's memory,
        # and the graphs share a pool: they run one after the other.
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()
        self._done = torch.cuda.Event()  # the last batch has left the static inputs and the output

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The features of a batch, on the GPU, in the dtype of the weights."""
        count = len(inputs[0])
        padded = padded_size(count, self._full)
        shapes = tuple((torch.Size((padded, *x.shape[1:])), x.dtype) for x in inputs)
        with self._lock, torch.inference_mode(), torch.cuda.device(self._device):
            captured = self._captured.get(shapes) or self._capture(shapes)
            current = torch.cuda.current_stream()
            current.wait_event(self._done)  # of another thread's stream
            features = captured.run(inputs, count)
            self._done.record(current)
        return features

    def _capture(self, shapes: Shapes) -> _Captured:
        static = [torch.zeros(shape, dtype=dtype, device=self._device) for shape, dtype in shapes]
        with _capturing, _fixed_precision():
            function = self._ready(static)
            captured = self._captured[shapes] = _Captured(function, static, self._stream, self._pool)
        return captured

    def _ready(self, static: list[Tensor]) -> Callable[..., Tensor]:
        """The function to capture, run until its libraries have chosen their kernels; compiled for a full batch."""
        function = self._function
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            if self._compiled is not None and len(static[0]) >= self._full:
                try:
                    from torch._dynamo import config  # here, because it takes a second

                    with config.patch(recompile_limit=MAX_COMPILED):
                        self._compiled(*static)
                    function = self._compiled
                except torch.OutOfMemoryError:
                    raise
                except Exception as exc:  # noqa: BLE001  the compiler wants Triton and a C compiler, and has its own errors
                    reason = str(exc).partition("\n")[0][:200]
                    _log.warning("torch.compile failed (%s); the graph runs uncompiled", reason)
                    self._compiled = None
            for _ in range(WARM_UP_RUNS):
                function(*static)
        return function


@contextmanager
def _fixed_precision() -> Generator[None]:
    """Products in the dtype they are in, where cuDNN and users' settings would take TF32; cuDNN tries its kernels."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def padded_size(count: int, full: int) -> int:
    """The size of the graph that a batch of `count` runs in: a power of two below the full one."""
    return max(full, count) if count > full // 2 else 1 << (count - 1).bit_length()


class _Captured:
    """A CUDA graph with its inputs, its output, and pinned memory to fill the inputs from."""

    def __init__(
        self, function: Callable[..., Tensor], static: list[Tensor], stream: torch.cuda.Stream, pool: Any
    ) -> None:
        self._inputs = static
        self._slots: list[_Slot] = []
        self._next = 0
        self._graph = torch.cuda.CUDAGraph()
        # Other threads may ask for memory meanwhile; under the default mode that would break the capture. The stream
        # is current already, so that it is put back even where capture fails.
        with (
            torch.cuda.stream(stream),
            torch.cuda.graph(self._graph, pool=pool, stream=stream, capture_error_mode="thread_local"),
        ):
            self._output = function(*static)
        torch.cuda.current_stream().wait_stream(stream)

    def run(self, inputs: tuple[Tensor, ...], count: int) -> Tensor:
        """Start a batch and return where its features will be."""
        if inputs[0].is_cuda:
            for static, given in zip(self._inputs, inputs, strict=True):
                static[:count].copy_(given)
        else:
            if not self._slots:
                self._slots = [_Slot(self._inputs) for _ in range(SLOTS)]
            slot = self._slots[self._next]
            self._next = (self._next + 1) % SLOTS
            slot.send(inputs)
            slot.receive(self._inputs)
        self._graph.replay()
        return self._output[:count].clone()


class _Slot:
    """Pinned memory, its copy on the GPU, and a stream for the way between them."""

    def __init__(self, like: list[Tensor]) -> None:
        self._pinned = [torch.zeros(x.shape, dtype=x.dtype, pin_memory=True) for x in like]
        self._staged = [torch.zeros_like(x) for x in like]
        self._copies = torch.cuda.Stream(like[0].device)
        self._copies.wait_stream(torch.cuda.current_stream())  # for the zeros
        self._crossed = torch.cuda.Event(blocking=True)  # `_pinned` may be filled again, `_staged` be read
        self._read = torch.cuda.Event()  # `_staged` may be filled again

    def send(self, inputs: tuple[Tensor, ...]) -> None:
        """Put a batch into pinned memory and send it off, slice by slice."""
        self._crossed.synchronize()
        self._copies.wait_event(self._read)
        for start in range(0, len(inputs[0]), SLICE):
            piece = slice(start, min(start + SLICE, len(inputs[0])))
            for pinned, staged, given in zip(self._pinned, self._staged, inputs, strict=True):
                source = given if given.is_pinned() else pinned[piece].copy_(given[piece])
                with torch.cuda.stream(self._copies):
                    staged[piece].copy_(source[piece] if source is given else source, non_blocking=True)
        self._crossed.record(self._copies)

    def receive(self, static: list[Tensor]) -> None:
        """Fill the graph's inputs once the batch is there."""
        current = torch.cuda.current_stream()
        current.wait_event(self._crossed)
        for target, staged in zip(static, self._staged, strict=True):
            target.copy_(staged)
        self._read.record(current)


def with_fp8_blocks(placed: LeanViT, exact: LeanViT) -> LeanViT:
    """A placed ViT with the products of its blocks in fp8; patches, the first and the last block stay as they are."""

    def rounded(block: Block, source: Block) -> Block:
        fc, proj = to_fp8(source.mlp.fc, block.mlp.fc), to_fp8(source.mlp.proj, block.mlp.proj)
        qkv, out = to_fp8(source.qkv, block.qkv), to_fp8(source.out, block.out)
        return Block(qkv, out, Mlp(fc, proj))

    first, *others = placed.stack.blocks
    blocks = (first, *map(rounded, others, exact.stack.blocks[1:]))
    return replace(placed, stack=replace(placed.stack, blocks=blocks))
