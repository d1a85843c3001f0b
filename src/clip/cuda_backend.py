"""The lean graph on NVIDIA GPUs: compiled, captured in CUDA graphs, fed from pinned memory on a stream of its own.

A captured graph has one shape, so batches are padded to the next of a few sizes. Bytes cross the bus while the batch
before them is computed; features stay on the GPU until they are asked for. Knows nothing about which graph it is.
"""

from __future__ import annotations

import logging
import math
import threading
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from clip.errors import DeviceError
from clip.fold import Block, LeanViT, Mlp
from clip.lean import text_features
from clip.torch_backend import DTYPES, TorchOps, image_features, place, to_fp8

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from clip.fold import ImageTower, LeanText
    from clip.items import Architecture

SMALL_BATCHES = (1, 8, 64)  # sizes below the full one that get a graph of their own, when first needed
WARM_UP_RUNS = 3  # before capture: libraries choose kernels and reserve memory
COMPILE: dict[str, Any] = {"dynamic": False, "fullgraph": True}
SLOTS = 2  # of pinned memory: one is filled while the other crosses the bus
FP8_MIN_WIDTH = 1024  # ViT-L's; products of narrower ones gain nothing in fp8 (pytorch/ao, small shapes)
FP8_CAPABILITY = (8, 9)  # Ada; Hopper is 9.0
TILE = (128, 256)  # rows and columns that an SM computes of a product at a time, in cuBLAS's large kernels on Hopper
FULL = 0.97  # share of the SMs' time in use that is good enough
MAX_ROWS = 70_000  # of a product; more gains nothing and takes memory
RESNET_NUMBERS = 205_000_000  # in the largest feature map of a batch: 256 pictures for RN50, 410 MB in fp16
RESNET_BATCHES = (256, 128, 64, 32)

Shapes = tuple[tuple[torch.Size, torch.dtype], ...]

_log = logging.getLogger("clip")


def full_wave_batch(rows_per_picture: int, width: int, processors: int) -> int:
    """The smallest batch, a multiple of 32, whose products leave hardly any SM idle in their last wave.

    A product of (M, K) and (K, N) is cut into tiles, which the SMs take in waves; the last is rarely full. Counted over
    the four products of a transformer block, whose N are 3 W, W, 4 W and W.
    """

    def use(batch: int) -> float:
        time = work = 0.0
        for columns, depth in ((3 * width, width), (width, width), (4 * width, width), (width, 4 * width)):
            tiles = math.ceil(batch * rows_per_picture / TILE[0]) * math.ceil(columns / TILE[1])
            time += math.ceil(tiles / processors) * processors * depth
            work += tiles * depth
        return work / time

    sizes = range(32, max(33, MAX_ROWS // rows_per_picture + 1), 32)
    return next((size for size in sizes if size >= 64 and use(size) >= FULL), max(sizes, key=use))


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
        """How many pictures keep this GPU busy."""
        side, patch = architecture.image_resolution, architecture.vision_patch_size
        if patch is None:
            fitting = RESNET_NUMBERS // (4 * architecture.vision_width * (side // 4) ** 2)
            return next((size for size in RESNET_BATCHES if size <= fitting), RESNET_BATCHES[-1])
        processors = torch.cuda.get_device_properties(self.device).multi_processor_count
        return full_wave_batch((side // patch) ** 2 + 1, architecture.vision_width, processors)

    def image_graph(self, tower: ImageTower, dtype: torch.dtype, batch_size: int) -> CudaGraph:  # noqa: ARG002
        """The graph of an image tower, for bytes or for floats in their units."""
        placed = place(tower, self._place)
        if self.precision == "fp8":
            placed = with_fp8_blocks(placed, tower)
        function = image_features(placed, self.dtype)
        return CudaGraph(function, self.device, batch_size, compiled=torch.compile(function, **COMPILE))

    def text_graph(self, tower: LeanText, batch_size: int) -> CudaGraph:
        """The graph of a text tower; `text_features` has its four inputs. In fp8 runs it is bf16."""
        function = partial(text_features, TorchOps(self.dtype), place(tower, self._place))
        return CudaGraph(function, self.device, batch_size)

    def _place(self, tensor: Tensor) -> Tensor:
        form = torch.channels_last if tensor.ndim == 4 else torch.preserve_format
        return tensor.to(self.device, self.dtype, memory_format=form)


def with_fp8_blocks(placed: ImageTower, exact: ImageTower) -> ImageTower:
    """A placed ViT with the products of its blocks in fp8; patches, the first and the last block stay as they are.

    Raises:  DeviceError for a ResNet, or a ViT narrower than ViT-L, which fp8 makes no faster.
    """
    if not (isinstance(placed, LeanViT) and isinstance(exact, LeanViT)) or exact.tokens.shape[1] < FP8_MIN_WIDTH:
        raise DeviceError(
            f"precision 'fp8': found a {type(exact).__name__.removeprefix('Lean')}, expected a ViT at least "
            f"{FP8_MIN_WIDTH} wide. Pass 'reference' or 'bf16'."
        )

    def rounded(block: Block, source: Block) -> Block:
        fc, proj = to_fp8(source.mlp.fc, block.mlp.fc), to_fp8(source.mlp.proj, block.mlp.proj)
        qkv, out = to_fp8(source.qkv, block.qkv), to_fp8(source.out, block.out)
        return Block(qkv, out, Mlp(fc, proj))

    first, *others = placed.stack.blocks
    blocks = (first, *map(rounded, others, exact.stack.blocks[1:]))
    return replace(placed, stack=replace(placed.stack, blocks=blocks))


class CudaGraph:
    """A function captured for a few batch sizes, the full one compiled. Calls from several threads take turns.

    Only the full size is compiled, because that takes tens of seconds; at smaller ones a captured graph spares what
    counts, the launches.
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

    def __call__(self, batches: Iterable[tuple[Tensor, ...]]) -> Iterator[Tensor]:
        """The features of each batch, on the GPU, in the dtype of the weights."""
        with self._lock, torch.inference_mode(), torch.cuda.device(self._device):
            for inputs in batches:
                yield self._run(inputs)

    def _run(self, inputs: tuple[Tensor, ...]) -> Tensor:
        count = len(inputs[0])
        padded = padded_size(count, self._full)
        shapes = tuple((torch.Size((padded, *x.shape[1:])), x.dtype) for x in inputs)
        if shapes not in self._captured:
            self._captured[shapes] = self._capture(shapes)
        return self._captured[shapes].run(inputs, count)

    def _capture(self, shapes: Shapes) -> _Captured:
        if self._compiled is not None and shapes[0][0][0] >= self._full:
            try:
                return _Captured(self._compiled, shapes, self._device)
            except torch.OutOfMemoryError:
                raise
            except Exception as exc:  # noqa: BLE001  the compiler wants Triton and a C compiler, and has its own errors
                _log.warning("torch.compile failed (%s); the graph runs uncompiled", str(exc).partition("\n")[0][:200])
                self._compiled = None
        return _Captured(self._function, shapes, self._device)


def padded_size(count: int, full: int) -> int:
    """The size of the graph that a batch of `count` runs in."""
    return next((size for size in SMALL_BATCHES if count <= size < full), max(full, count))


class _Captured:
    """A CUDA graph with its inputs, its output, and pinned memory to fill the inputs from."""

    def __init__(self, function: Callable[..., Tensor], shapes: Shapes, device: torch.device) -> None:
        self._inputs = [torch.zeros(shape, dtype=dtype, device=device) for shape, dtype in shapes]
        self._slots = [_Slot(self._inputs) for _ in range(SLOTS)]
        self._next = 0
        self._copies = torch.cuda.Stream(device)
        warm_up = torch.cuda.Stream(device)
        warm_up.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(warm_up):
            for _ in range(WARM_UP_RUNS):
                function(*self._inputs)
        torch.cuda.current_stream().wait_stream(warm_up)
        self._graph = torch.cuda.CUDAGraph()
        # Other threads may ask for memory meanwhile; under the default mode that would break the capture.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._output = function(*self._inputs)

    def run(self, inputs: tuple[Tensor, ...], count: int) -> Tensor:
        """Start a batch and return where its features will be; what uses them on this stream waits for them."""
        if inputs[0].is_cuda:
            for static, given in zip(self._inputs, inputs, strict=True):
                static[:count].copy_(given)
        else:
            slot = self._slots[self._next]
            self._next = (self._next + 1) % SLOTS
            slot.fill(inputs, self._copies)
            compute = torch.cuda.current_stream()
            compute.wait_stream(self._copies)
            for static, staged in zip(self._inputs, slot.staged, strict=True):
                static.copy_(staged)
            slot.read.record(compute)
        self._graph.replay()
        return self._output[:count].clone()


class _Slot:
    """Pinned memory, and its copy on the GPU."""

    def __init__(self, like: list[Tensor]) -> None:
        self.pinned = [torch.zeros_like(x, device="cpu").pin_memory() for x in like]
        self.staged = [torch.zeros_like(x) for x in like]
        self.read = torch.cuda.Event()  # the graph has its inputs from `staged`
        self._crossed = torch.cuda.Event()  # `pinned` may be filled again

    def fill(self, inputs: tuple[Tensor, ...], copies: torch.cuda.Stream) -> None:
        """Put a batch into pinned memory and send it off on the stream for copies."""
        self._crossed.synchronize()
        for pinned, given in zip(self.pinned, inputs, strict=True):
            pinned[: len(given)].copy_(given)
        with torch.cuda.stream(copies):
            copies.wait_event(self.read)
            for staged, pinned in zip(self.staged, self.pinned, strict=True):
                staged.copy_(pinned, non_blocking=True)
            self._crossed.record(copies)
