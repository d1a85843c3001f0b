"""Compile the lean graph as an OpenVINO model, and run it on an x86-64 CPU.

The model is built node by node instead of converted from a traced module: ViT-B/32 takes 0.15 s to build and 0.3 s to
compile, as long as reading a compiled one back from disk would take, and the converter, which brings telemetry, is
never called.
"""

from __future__ import annotations

import importlib
import os
from functools import cache
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DeviceError, InputError
from . import quantize
from .backend import Backend
from .backend_torch import cpu_batch_size, place
from .graph import image_features, text_features
from .telemetry import without_telemetry

if TYPE_CHECKING:
    from types import ModuleType

    from ..network.records import AnyArchitecture, TowerActivation
    from .quantize import Calibration
    from .tower import Conv, ImageTower, LeanText, Linear, Rotation

# The CPU plug-in's words. It takes "f16" too, and then computes in bf16, which it would also choose by itself.
HINTS = {"fp32": "f32", "bf16": "bf16"}
INT8 = "int8"  # products of images' graphs are quantised; the rest, and texts, are computed in floats
# Products of the last block that are not quantised: it has one token, so they cost little, and all of it is read.
EXACT_PRODUCTS = 8
GELUS = {"gelu": "erf", "gelu_tanh": "tanh"}
Node = Any  # openvino has no types


_imported_in: list[int] = []  # the process that imported OpenVINO, or that was forked from


@cache
def import_openvino() -> ModuleType:
    """Import OpenVINO without its telemetry: it has a stub for the case that this package is missing.

    Raises:  ImportError where it is not installed, as on processors other than x86-64.
    """
    _imported_in.append(os.getpid())
    with without_telemetry():
        importlib.import_module("openvino.opset13")
        return importlib.import_module("openvino")


def is_forked() -> bool:
    """Return whether this process is a fork of one that has OpenVINO: it would wait for threads that forks lack."""
    return bool(_imported_in) and _imported_in[0] != os.getpid()


class OpenVinoOps:
    """Operations that make nodes; weights become constants that share the memory of their tensors."""

    def __init__(self) -> None:
        self._op = import_openvino().opset13

    def _constant(self, tensor: Tensor) -> Node:
        return self._op.constant(tensor.contiguous().numpy(), shared_memory=True)

    def _integers(self, *values: int) -> Node:
        return self._op.constant(np.array(values, np.int64))

    def _node(self, x: Node | Tensor) -> Node:
        return self._constant(x) if isinstance(x, Tensor) else x

    def to_float(self, x: Node) -> Node:
        """To float32; the plug-in then follows the precision hint."""
        return self._op.convert(x, "f32")

    def linear(self, x: Node, layer: Linear) -> Node:
        """(..., I) -> (..., O)."""
        product = self._op.matmul(x, self._constant(layer.weight), False, True)
        return self._op.add(product, self._constant(layer.bias))

    def conv(self, x: Node, layer: Conv) -> Node:
        """(B, I, R, R) -> (B, O, R', R')."""
        stride, pad = [layer.stride] * 2, [layer.padding] * 2
        product = self._op.convolution(x, self._constant(layer.weight), stride, pad, pad, [1, 1])
        return self._op.add(product, self._constant(layer.bias[None, :, None, None]))

    def norm(self, x: Node, eps: float) -> Node:
        """(..., W) to mean 0 and variance 1."""
        return self._op.mvn(x, self._integers(-1), True, eps, "inside_sqrt")

    def add(self, x: Node, y: Node | Tensor) -> Node:
        """The sum."""
        return self._op.add(x, self._node(y))

    def multiply(self, x: Node, y: Tensor) -> Node:
        """The elementwise product."""
        return self._op.multiply(x, self._constant(y))

    def matmul(self, x: Node, y: Node | Tensor, *, transposed: bool = False) -> Node:
        """The matrix product; with `transposed` of x and y.T."""
        return self._op.matmul(x, self._node(y), False, transposed)

    def self_attention(self, qkv: Node, heads: int, *, causal: bool, rotation: Rotation | None) -> Node:
        """(B, L, 3W), queries scaled -> (B, L, W)."""
        width = qkv.get_output_partial_shape(0)[2].get_length() // 3
        parts = self._op.split(qkv, self._op.constant(np.int64(2)), 3).outputs()
        q, k, v = (self.transpose(self.reshape(part, 0, 0, heads, width // heads), 0, 2, 1, 3) for part in parts)
        if rotation is not None:
            q, k = self._turn(q, rotation), self._turn(k, rotation)
        no_mask, scale = self._op.constant(np.float32(0)), self._op.constant(np.float32(1))
        seen = self._op.scaled_dot_product_attention(q, k, v, no_mask, scale, causal=causal)  # (B, H, L, N)
        return self.reshape(self.transpose(seen, 0, 2, 1, 3), 0, 0, width)

    def _turn(self, x: Node, rotation: Rotation) -> Node:
        """(B, H, L, N) -> the same."""
        first, second = self._op.split(x, self._op.constant(np.int64(3)), 2).outputs()
        cos, sin = rotation.cos, rotation.sin
        turned = (
            self._op.subtract(self.multiply(first, cos), self.multiply(second, sin)),
            self._op.add(self.multiply(second, cos), self.multiply(first, sin)),
        )
        return self._op.concat(turned, 3)

    def softmax(self, x: Node) -> Node:
        """Over the last axis."""
        return self._op.softmax(x, -1)

    def activate(self, x: Node, activation: TowerActivation) -> Node:
        """SiLU, the exact GELU, or the approximation of it by tanh."""
        return self._op.swish(x) if activation == "quick_gelu" else self._op.gelu(x, GELUS[activation])

    def relu(self, x: Node) -> Node:
        """max(x, 0)."""
        return self._op.relu(x)

    def average(self, x: Node, size: int) -> Node:
        """(B, C, R, R) -> (B, C, R / size, R / size)."""
        return self._op.avg_pool(x, [size, size], [0, 0], [0, 0], [size, size], True)

    def mean(self, x: Node) -> Node:
        """(B, L, C) -> (B, 1, C)."""
        return self._op.reduce_mean(x, self._integers(1), True)

    def crop(self, x: Node, side: int) -> Node:
        """(B, R, R, 3) -> (B, side, side, 3)."""
        zero, one, stop = self._integers(0, 0), self._integers(1, 1), self._integers(side, side)
        return self._op.slice(x, zero, stop, one, self._integers(1, 2))

    def concat(self, x: Node, y: Node) -> Node:
        """(B, L, C) and (B, M, C) -> (B, L + M, C)."""
        return self._op.concat([x, y], 1)

    def prepend_zeros(self, x: Node) -> Node:
        """(B, L, W) -> (B, 1 + L, W)."""
        before, after = self._integers(0, 1, 0), self._integers(0, 0, 0)
        return self._op.pad(x, before, after, "constant", self._op.constant(np.float32(0)))

    def reshape(self, x: Node, *shape: int) -> Node:
        """The same numbers in another shape; 0 keeps an axis."""
        return self._op.reshape(x, self._integers(*shape), True)

    def transpose(self, x: Node, *axes: int) -> Node:
        """The axes in another order."""
        return self._op.transpose(x, self._integers(*axes))

    def token(self, x: Node, place: int) -> Node:
        """(B, L, W) -> (B, W)."""
        return self._op.gather(x, self._op.constant(np.int64(place)), self._op.constant(np.int64(1)))

    def tokens_at(self, x: Node, places: Node) -> Node:
        """(T, L, W) and int (T,) -> (T, W)."""
        return self._op.gather(x, places, self._op.constant(np.int64(1)), batch_dims=1)

    def look_up(self, table: Tensor, rows: Node) -> Node:
        """(V, W) and int (...) -> (..., W)."""
        return self._op.gather(self._constant(table), rows, self._op.constant(np.int64(0)))


@cache
def _core() -> Any:
    return import_openvino().Core()


def usable_precisions() -> list[str]:
    """List the precisions that this CPU computes in without emulation; none where OpenVINO is not installed."""
    try:
        capabilities = _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    except ImportError:
        return []
    bf16 = ["bf16"] if "BF16" in capabilities else []
    return ["fp32", *bf16] + ([INT8] if "INT8" in capabilities and quantize.is_installed() else [])


def check_extra(precision: str) -> None:
    """Raise DeviceError where the extra that a precision needs is not installed."""
    if precision == INT8:
        quantize.check_installed()


def processor_name() -> str:
    """Return the processor's name, as OpenVINO reads it."""
    return str(_core().get_property("CPU", "FULL_DEVICE_NAME"))


class OpenVinoBackend(Backend):
    """Towers compiled for the CPU: one model for batches of every size, which costs no speed and no second copy."""

    def __init__(self, precision: str, threads: int) -> None:
        self.name = f"openvino {import_openvino().__version__.partition('-')[0]}"
        self.device = torch.device("cpu")
        self.precision = precision
        self.dtype = torch.float32  # at every precision
        self._calibration: Calibration | None = None
        self._threads = threads

    @property
    def computed_in(self) -> str:
        """The precision; for int8 also the one of the operations that are not quantised."""
        return f"{INT8}+{self._float_precision}" if self.needs_calibration else self.precision

    @property
    def needs_calibration(self) -> bool:
        """Whether products are quantised."""
        return self.precision == INT8

    def calibrate(self, calibration: Calibration) -> None:
        """Set the images to quantise by. Raises: InputError for a precision that needs none."""
        if not self.needs_calibration:
            super().calibrate(calibration)
        self._calibration = calibration

    @property
    def _float_precision(self) -> str:
        """Precision of images' graphs where they are not quantised."""
        if not self.needs_calibration:
            return self.precision
        return "bf16" if "bf16" in usable_precisions() else "fp32"

    def batch_size(self, architecture: AnyArchitecture) -> int:
        """Return the number of images whose products are large enough for these threads."""
        return cpu_batch_size(architecture, self._threads)

    def image_graph(self, tower: ImageTower, dtype: torch.dtype, batch_size: int) -> OpenVinoGraph:  # noqa: ARG002
        """Compile the graph of an image tower for uint8 or float32 images in 0..255, for any number of them."""
        side = tower.resolution_px
        number = np.uint8 if dtype == torch.uint8 else np.float32
        pixels = self._input([-1, side, side, 3], number)
        model = self._model(image_features(OpenVinoOps(), place(tower, _to_float32), pixels), [pixels])
        if self.needs_calibration:
            model = self._quantize(model, number)
        return self._compile(model, self._float_precision)

    def text_graph(self, tower: LeanText, batch_size: int) -> OpenVinoGraph:  # noqa: ARG002
        """Compile the graph of a text tower, never quantised, for any number of texts; inputs as of `text_features`."""
        shapes = [([-1, -1], np.int32), ([-1, -1], np.int32), ([-1], np.int32), ([-1, 1, -1], np.float32)]
        inputs = [self._input(shape, dtype) for shape, dtype in shapes]
        model = self._model(text_features(OpenVinoOps(), place(tower, _to_float32), *inputs), inputs)
        return self._compile(model, "fp32" if self.needs_calibration else self.precision)

    def _input(self, shape: list[int], dtype: type[np.generic]) -> Node:
        return import_openvino().opset13.parameter(shape, dtype)

    def _model(self, features: Node, inputs: list[Node]) -> Any:
        return import_openvino().Model([features], inputs, "clip")

    def _quantize(self, model: Any, number: type[np.generic]) -> Any:
        if self._calibration is None:
            remedy = "Call calibrate with a hundred of them before the first image, or pass another precision."
            raise InputError(f"precision {self.precision!r}", "the encoder has no images to quantise by", remedy=remedy)
        return quantize.quantize(model, self._calibration.pixels.astype(number), exact_last=EXACT_PRODUCTS)

    def _compile(self, model: Any, precision: str) -> OpenVinoGraph:
        """Compile a model whose products of floats are computed in this precision."""
        hint = HINTS[precision]
        settings = {
            "INFERENCE_PRECISION_HINT": hint,
            "PERFORMANCE_HINT": "LATENCY",  # all threads on one batch
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": self._threads,
            "ENABLE_CPU_PINNING": False,  # threads that decode want the same cores
        }
        compiled = _core().compile_model(model, "CPU", settings)
        effective = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if effective != hint:
            found = f"OpenVINO computes in {effective}"
            raise DeviceError(f"precision {self.precision!r}", found, hint, "Pass another precision.")
        return OpenVinoGraph(compiled)


def _to_float32(tensor: Tensor) -> Tensor:
    """Convert a weight, which is wider where its file or its model is."""
    return tensor.to(torch.float32)


class OpenVinoGraph:
    """A compiled model. Safe to call from several threads: each takes a request that no other uses."""

    def __init__(self, compiled: Any) -> None:
        self.compiled = compiled
        self._idle: SimpleQueue[Any] = SimpleQueue()

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Return the features of a batch, float32."""
        try:
            request = self._idle.get_nowait()
        except Empty:
            request = self.compiled.create_infer_request()
        try:
            arrays = [tensor.cpu().contiguous().numpy() for tensor in inputs]
            return torch.from_numpy(request.infer(arrays, share_inputs=True)[0])
        finally:
            self._idle.put(request)
