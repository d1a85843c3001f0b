"""Run the lean graph on NVIDIA GPUs: compiled, captured in CUDA graphs, fed from pinned memory on a second stream.

A captured graph has one shape, so batches are padded to the next of a few sizes. Bytes cross the bus while the batch
before them is computed; features stay on the GPU until somebody reads them.
"""

from __future__ import annotations

import logging
import math
import threading
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from ..errors import DeviceError
from .backend import Backend
from .backend_torch import DTYPES, TorchOps, image_features, place, to_fp8
from .graph import text_features
from .tower import Block, ImageTower, LeanResNet, LeanText, Mlp, PatchTower

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from ..network.records import AnyArchitecture

WARM_UP_RUNS = 3  # before capture: libraries choose kernels and reserve memory
SLOTS = 2  # of pinned memory: one is filled while the other crosses the bus
SLICE = 64  # images that cross the bus while the next are copied into pinned memory
# Dynamo's limit counts per function, and all towers of a process share one: nine models, bytes and floats, their sizes.
MAX_COMPILED = 256
TILE = (128, 256)  # rows and columns of a product that an SM computes at a time, in cuBLAS's large kernels on Hopper
FULL = 0.97  # share of the SMs' time in use that is good enough
MIN_ROWS, MAX_ROWS = 20_000, 70_000  # of a product: fewer leave gaps between launches, more only take memory
RESNET_NUMBERS = 256 * 256 * 56**2  # in the largest feature map of a batch: 256 images for RN50, 410 MB in fp16
RESNET_BATCHES = (256, 128, 64, 32)
FP8 = "fp8"  # products of a large ViT's blocks; the rest, and texts, are computed in bf16
FP8_CAPABILITY = (8, 9)  # Ada; Hopper is 9.0
FP8_MIN_WIDTH = 1024  # ViT-L's; products of narrower ones gain nothing (pytorch/ao, small shapes)
MAX_REASON = 200  # characters of a compiler's message
# Full batches that run before one is compiled beside them: that takes 10 to 20 s of a core (LOG.md, CUDA on an H200),
# which a job of fewer does not win back.
COMPILE_AFTER = 100
Shapes = tuple[tuple[torch.Size, torch.dtype], ...]

_log = logging.getLogger("clip")
# One capture at a time in a process (torch.cuda.graph), and nothing of ours synchronises a device meanwhile.
_capturing = threading.Lock()
_fixing = threading.Lock()
_fixed: list[ExitStack] = []  # what restores the process's settings, for each who needs them fixed; the first holds it


def full_wave_batch(rows_per_image: int, width: int, processors: int) -> int:
    """Return the smallest batch, a multiple of 32, whose products leave hardly any SM idle in their last wave.

    A product of (M, K) and (K, N) is cut into tiles, which the SMs take in waves; the last wave is rarely full. Counted
    over the four products of a transformer block, whose N are 3 W, W, 4 W and W.
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
    """List the precisions that a GPU computes in without emulation."""
    capability = torch.cuda.get_device_capability(device)
    bf16 = ["bf16"] if capability >= (8, 0) else []
    return ["fp16", "fp32", *bf16] + ([FP8] if capability >= FP8_CAPABILITY else [])


class CudaBackend(Backend):
    """Towers captured for a GPU."""

    def __init__(
        self, device: torch.device, precision: str, *, compiles: bool = True, compile_after: int = COMPILE_AFTER
    ) -> None:
        """Compile, unless `compiles` is False, after so many full batches; with 0 the first one waits for it."""
        self.compile_after = compile_after
        self.name = f"torch {torch.__version__}"
        self.device = device
        self.precision = precision
        self._compiles = compiles
        self.dtype = torch.bfloat16 if precision == FP8 else DTYPES[precision]

    def check(self, architecture: AnyArchitecture) -> None:
        """Refuse a model that fp8 makes no faster.

        Raises:  DeviceError for fp8 with a ResNet, or a ViT narrower than ViT-L.
        """
        is_vit = architecture.vision_patch_size is not None
        if self.precision == FP8 and not (is_vit and architecture.vision_width >= FP8_MIN_WIDTH):
            found = f"found a {'ViT' if is_vit else 'ResNet'} {architecture.vision_width} wide"
            remedy = "Pass 'reference' or 'bf16'."
            raise DeviceError(f"precision {FP8!r}", found, f"a ViT of at least {FP8_MIN_WIDTH}", remedy)

    def batch_size(self, architecture: AnyArchitecture) -> int:
        """Return the number of images that keeps this GPU busy."""
        side, patch = architecture.image_resolution, architecture.vision_patch_size
        if patch is None:
            fitting = RESNET_NUMBERS // (4 * architecture.vision_width * (side // 4) ** 2)
            return next((size for size in RESNET_BATCHES if size <= fitting), RESNET_BATCHES[-1])
        processors = torch.cuda.get_device_properties(self.device).multi_processor_count
        return full_wave_batch((side // patch) ** 2 + 1, architecture.vision_width, processors)

    def image_graph(self, tower: ImageTower, dtype: torch.dtype, batch_size: int) -> CudaGraph:  # noqa: ARG002
        """Make the graph of an image tower for uint8 or float32 images in 0..255, captured when it first runs."""
        placed: ImageTower = place(tower, self._place)
        if self.precision == FP8 and not isinstance(tower, LeanResNet):
            placed = round_blocks_to_fp8(cast("PatchTower", placed), tower)
        function = image_features(placed, self.dtype)
        compiled = torch.compile(function, dynamic=False, fullgraph=True) if self._compiles else None
        return CudaGraph(function, self.device, batch_size, compiled=compiled, compile_after=self.compile_after)

    def text_graph(self, tower: LeanText, batch_size: int) -> CudaGraph:
        """Make the graph of a text tower, of bf16 where images are fp8; it takes the inputs of `text_features`."""
        function = partial(text_features, TorchOps(self.dtype), place(tower, self._place))
        return CudaGraph(function, self.device, batch_size)

    def _place(self, tensor: Tensor) -> Tensor:
        form = torch.channels_last if tensor.ndim == 4 else torch.preserve_format
        return tensor.to(self.device, self.dtype, memory_format=form)


class CudaGraph:
    """A function captured for a few batch sizes, the full one compiled. Calls from several threads take turns.

    Only the full size is compiled, because compiling takes tens of seconds; at smaller sizes a captured graph saves
    most of the time, the launches. A thread compiles while batches run uncompiled, and the compiled graph takes over
    between two of them. A call returns before its features are computed: work on the stream that was current
    waits for them, so the next batch is on its way while this one is computed.
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        device: torch.device,
        batch_size: int,
        *,
        compiled: Callable[..., Tensor] | None = None,
        compile_after: int = 0,
    ) -> None:
        self._compile_after = compile_after  # full batches
        self._full_batches = 0
        self._compiler: threading.Thread | None = None
        self._ready = False  # whether the compiled function has run
        self.is_compiled = False  # whether full batches run compiled
        self._function = function
        self._compiled = compiled
        self._device = device
        self._full = batch_size
        self._captured: dict[Shapes, _Captured] = {}
        self._lock = threading.Lock()
        # Warm-up and capture share a stream, so that memory which cuBLAS reserves for it lies outside each graph's, and
        # the graphs share a pool: they run one after the other.
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()
        self._done = torch.cuda.Event()  # the last batch has left the static inputs and the output

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Return the features of a batch, on the GPU, in the dtype of the weights."""
        count = len(inputs[0])
        padded = padded_size(count, self._full)
        shapes = tuple((torch.Size((padded, *x.shape[1:])), x.dtype) for x in inputs)
        with self._lock, torch.inference_mode(), torch.cuda.device(self._device):
            if padded >= self._full and self._compiled is not None and not self.is_compiled:
                self._approach_compiled(shapes)
            captured = self._captured.get(shapes) or self._capture(shapes)
            current = torch.cuda.current_stream()
            current.wait_event(self._done)  # of another thread's stream
            features = captured.run(inputs, count)
            self._done.record(current)
        return features

    def _approach_compiled(self, shapes: Shapes) -> None:
        """Before a full batch: have it compiled once enough of them have run, and swap the graph when that is done."""
        if not self._compile_after:
            self._compile(shapes)
        elif self._full_batches == self._compile_after and self._compiler is None:
            # No daemon: the interpreter waits for it at its end, as torch may abort the process otherwise.
            self._compiler = threading.Thread(target=self._compile, args=(shapes,), name="clip-compile")
            self._compiler.start()
        self._full_batches += 1
        if self._ready and self._compiled is not None:
            self._done.synchronize()  # the graph that is dropped runs no more
            self._captured.pop(shapes, None)
            self.is_compiled = True

    def _compile(self, shapes: Shapes) -> None:
        """Compile for a full batch. Where that fails, say why; the graph runs uncompiled then."""
        compiled = self._compiled
        if compiled is None:
            return
        try:
            from torch._dynamo import config  # here, because it takes a second

            stream = torch.cuda.Stream(self._device)
            with torch.inference_mode(), torch.cuda.device(self._device), torch.cuda.stream(stream), _fix_precision():
                static = self._make_inputs(shapes)
                with config.patch(recompile_limit=MAX_COMPILED):
                    compiled(*static)
                stream.synchronize()
            self._ready = True
        except Exception as exc:  # the compiler wants Triton and a C compiler, and has errors of its own
            if isinstance(exc, torch.OutOfMemoryError) and not self._compile_after:
                raise  # the batch is halved
            _log.warning("torch.compile failed (%s); the graph runs uncompiled", describe_cause(exc))
            self._compiled = None

    def _make_inputs(self, shapes: Shapes) -> list[Tensor]:
        return [torch.zeros(shape, dtype=dtype, device=self._device) for shape, dtype in shapes]

    def _capture(self, shapes: Shapes) -> _Captured:
        static = self._make_inputs(shapes)
        is_full = len(static[0]) >= self._full
        function = self._compiled if self.is_compiled and is_full and self._compiled is not None else self._function
        with _capturing, _fix_precision():
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                for _ in range(WARM_UP_RUNS):  # libraries choose their kernels
                    function(*static)
            captured = self._captured[shapes] = _Captured(function, static, self._stream, self._pool)
        return captured


def describe_cause(exc: BaseException) -> str:
    """Return the type and the first line of the exception that others wrap: torch's own say only which compiler."""
    while (cause := getattr(exc, "inner_exception", None) or exc.__cause__) is not None:
        exc = cause
    first = next(iter(str(exc).strip().splitlines()), "")
    return f"{type(exc).__name__}: {first}"[:MAX_REASON] if first else type(exc).__name__


@contextmanager
def _fix_precision() -> Generator[None]:
    """Compute products in their dtype, where cuDNN and users' settings would use TF32; let cuDNN try its kernels."""
    with _fixing:
        restore = _fixed[0] if _fixed else ExitStack()
        if not _fixed:
            restore.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
            torch.set_float32_matmul_precision("highest")
            restore.enter_context(torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False))
        _fixed.append(restore)
    try:
        yield
    finally:
        with _fixing:
            _fixed.pop()
            if not _fixed:  # else a compiler still needs them, or a capture that began meanwhile
                restore.close()


def padded_size(count: int, full: int) -> int:
    """Return the size of the graph that runs a batch of `count`: a power of two below the full one."""
    return max(full, count) if count > full // 2 else 1 << (count - 1).bit_length()


class _Captured:
    """A CUDA graph with its inputs, its output, and pinned memory that its inputs are filled from."""

    def __init__(
        self, function: Callable[..., Tensor], static: list[Tensor], stream: torch.cuda.Stream, pool: Any
    ) -> None:
        self._inputs = static
        self._slots: list[_Slot] = []
        self._next = 0
        self._graph = torch.cuda.CUDAGraph()
        # Other threads may allocate memory meanwhile; in the default mode that would break the capture. The stream is
        # made current here, so that the one before it is restored even where the capture fails.
        with (
            torch.cuda.stream(stream),
            torch.cuda.graph(self._graph, pool=pool, stream=stream, capture_error_mode="thread_local"),
        ):
            self._output = function(*static)
        torch.cuda.current_stream().wait_stream(stream)

    def run(self, inputs: tuple[Tensor, ...], count: int) -> Tensor:
        """Start a batch and return the tensor that its features will be in."""
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
    """Pinned memory, its copy on the GPU, and a stream for the transfer."""

    def __init__(self, like: list[Tensor]) -> None:
        self._pinned = [torch.zeros(x.shape, dtype=x.dtype, pin_memory=True) for x in like]
        self._staged = [torch.zeros_like(x) for x in like]
        self._copies = torch.cuda.Stream(like[0].device)
        self._copies.wait_stream(torch.cuda.current_stream())  # for the zeros
        self._crossed = torch.cuda.Event(blocking=True)  # `_pinned` may be filled again, `_staged` be read
        self._read = torch.cuda.Event()  # `_staged` may be filled again

    def send(self, inputs: tuple[Tensor, ...]) -> None:
        """Copy a batch into pinned memory and start its transfer, slice by slice."""
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
        """Fill the graph's inputs once the batch has arrived."""
        current = torch.cuda.current_stream()
        current.wait_event(self._crossed)
        for target, staged in zip(static, self._staged, strict=True):
            target.copy_(staged)
        self._read.record(current)


def round_blocks_to_fp8(placed: PatchTower, exact: PatchTower) -> PatchTower:
    """Round a placed ViT's blocks to fp8, from the exact weights; patches, both ends and a pool keep theirs."""

    def round_block(block: Block, source: Block) -> Block:
        fc, proj = to_fp8(source.mlp.fc, block.mlp.fc), to_fp8(source.mlp.proj, block.mlp.proj)
        qkv, out = to_fp8(source.qkv, block.qkv), to_fp8(source.out, block.out)
        return Block(qkv, out, Mlp(fc, proj))

    first, *others = placed.stack.blocks
    blocks = (first, *map(round_block, others, exact.stack.blocks[1:]))
    return replace(placed, stack=replace(placed.stack, blocks=blocks))
