"""The lean graph as an OpenVINO model, compiled and run on an x86-64 CPU. Knows nothing about which graph it is.

Drawn node by node rather than converted from a traced module: ViT-B/32 takes 0.15 s to draw and 0.3 s to compile, as
long as reading a compiled one back from a disk would, and the converter, which brings telemetry, is never called.
"""

from __future__ import annotations

import importlib
from functools import cache
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DeviceError, InputError
from . import quantize
from .backend_torch import cpu_batch_size
from .graph import LAYER_NORM_EPS, image_features, text_features
from .telemetry import without_telemetry

if TYPE_CHECKING:
    from types import ModuleType

    from ..network.records import Activation, Architecture
    from .fold import Conv, ImageTower, LeanText, Linear
    from .quantize import Calibration

# For the CPU plug-in, which takes "f16" as well and then computes in bf16. It would choose bf16 by itself, too.
HINTS = {"fp32": "f32", "bf16": "bf16"}
# Products of the last block that stay as they are: it has one token, so that they cost little, and all of it is read.
EXACT_PRODUCTS = 8
Node = Any  # openvino has no types


@cache
def openvino() -> ModuleType:
    """OpenVINO, imported so that its telemetry is not: it has a stub for where that package is missing.

    Raises:  ImportError where it is not installed, as on other processors than x86-64.
    """
    with without_telemetry():
        importlib.import_module("openvino.opset13")
        return importlib.import_module("openvino")


class OpenVinoOps:
    """Operations that draw nodes; weights become constants that share the memory of their tensors."""

    def __init__(self) -> None:
        self._op = openvino().opset13

    def _constant(self, tensor: Tensor) -> Node:
        return self._op.constant(tensor.contiguous().numpy(), shared_memory=True)

    def _integers(self, *values: int) -> Node:
        return self._op.constant(np.array(values, np.int64))

    def _node(self, x: Node | Tensor) -> Node:
        return self._constant(x) if isinstance(x, Tensor) else x

    def to_float(self, x: Node) -> Node:
        """To float32; what the precision hint makes of it is the plug-in's business."""
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

    def norm(self, x: Node) -> Node:
        """(..., W) to mean 0 and variance 1."""
        return self._op.mvn(x, self._integers(-1), True, LAYER_NORM_EPS, "inside_sqrt")

    def add(self, x: Node, y: Node | Tensor) -> Node:
        """The sum."""
        return self._op.add(x, self._node(y))

    def multiply(self, x: Node, y: Tensor) -> Node:
        """The product of each with each."""
        return self._op.multiply(x, self._constant(y))

    def matmul(self, x: Node, y: Node | Tensor, *, transposed: bool = False) -> Node:
        """The matrix product; with `transposed` of x and y.T."""
        return self._op.matmul(x, self._node(y), False, transposed)

    def self_attention(self, qkv: Node, heads: int, *, causal: bool) -> Node:
        """(B, L, 3W), queries scaled -> (B, L, W)."""
        width = qkv.get_output_partial_shape(0)[2].get_length() // 3
        parts = self._op.split(qkv, self._op.constant(np.int64(2)), 3).outputs()
        q, k, v = (self.transpose(self.reshape(part, 0, 0, heads, width // heads), 0, 2, 1, 3) for part in parts)
        no_mask, scale = self._op.constant(np.float32(0)), self._op.constant(np.float32(1))
        seen = self._op.scaled_dot_product_attention(q, k, v, no_mask, scale, causal=causal)  # (B, H, L, N)
        return self.reshape(self.transpose(seen, 0, 2, 1, 3), 0, 0, width)

    def softmax(self, x: Node) -> Node:
        """Over the last axis."""
        return self._op.softmax(x, -1)

    def activate(self, x: Node, activation: Activation) -> Node:
        """SiLU or the exact GELU."""
        return self._op.swish(x) if activation == "quick_gelu" else self._op.gelu(x, "erf")

    def relu(self, x: Node) -> Node:
        """max(x, 0)."""
        return self._op.relu(x)

    def average(self, x: Node, size: int) -> Node:
        """(B, C, R, R) -> (B, C, R / size, R / size)."""
        return self._op.avg_pool(x, [size, size], [0, 0], [0, 0], [size, size], True)

    def mean(self, x: Node) -> Node:
        """(B, L, C) -> (B, 1, C)."""
        return self._op.reduce_mean(x, self._integers(1), True)

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
    return openvino().Core()


def usable_precisions() -> list[str]:
    """What this CPU computes in by itself; none where OpenVINO is not installed."""
    try:
        capabilities = _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    except ImportError:
        return []
    bf16 = ["bf16"] if "BF16" in capabilities else []
    return ["fp32", *bf16] + (["int8"] if "INT8" in capabilities and quantize.is_installed() else [])


def rest_of_int8() -> str:
    """What an int8 model computes in where it is not quantised."""
    return "bf16" if "bf16" in usable_precisions() else "fp32"


def processor_name() -> str:
    """The processor's name, as OpenVINO reads it."""
    return str(_core().get_property("CPU", "FULL_DEVICE_NAME"))


class OpenVinoBackend:
    """Towers compiled for the CPU: one model for batches of every size, which costs no speed and no second copy."""

    def __init__(self, precision: str, threads: int) -> None:
        self.name = f"openvino {openvino().__version__.partition('-')[0]}"
        self.device = torch.device("cpu")
        self.precision = precision
        self.dtype = torch.float32  # whatever it computes in
        self.calibration: Calibration | None = None  # that int8 needs before a graph is asked for
        self._threads = threads

    def batch_size(self, architecture: Architecture) -> int:
        """Images that make products large enough for these threads."""
        return cpu_batch_size(architecture, self._threads)

    def image_graph(self, tower: ImageTower, dtype: torch.dtype, batch_size: int) -> OpenVinoGraph:  # noqa: ARG002
        """The graph of an image tower for bytes, or for floats in their units, and for any number of images."""
        side = tower.resolution_px
        number = np.uint8 if dtype == torch.uint8 else np.float32
        pixels = self._input([-1, side, side, 3], number)
        model = self._model(image_features(OpenVinoOps(), tower, pixels), [pixels])
        if self.precision != "int8":
            return self._compile(model, self.precision)
        if self.calibration is None:
            raise InputError(
                "precision 'int8'",
                "no image was shown",
                "some to quantise by",
                "Call calibrate with a hundred, or pass another precision.",
            )
        quantised = quantize.quantised(model, self.calibration.pixels.astype(number), exact_last=EXACT_PRODUCTS)
        return self._compile(quantised, rest_of_int8())

    def text_graph(self, tower: LeanText, batch_size: int) -> OpenVinoGraph:  # noqa: ARG002
        """The graph of a text tower for any number of texts; `text_features` has its four inputs. Never of integers."""
        shapes = [([-1, -1], np.int32), ([-1, -1], np.int32), ([-1], np.int32), ([-1, 1, -1], np.float32)]
        inputs = [self._input(shape, dtype) for shape, dtype in shapes]
        model = self._model(text_features(OpenVinoOps(), tower, *inputs), inputs)
        return self._compile(model, "fp32" if self.precision == "int8" else self.precision)

    def _input(self, shape: list[int], dtype: type[np.generic]) -> Node:
        return openvino().opset13.parameter(shape, dtype)

    def _model(self, features: Node, inputs: list[Node]) -> Any:
        return openvino().Model([features], inputs, "clip")

    def _compile(self, model: Any, precision: str) -> OpenVinoGraph:
        """A model made ready, whose products that are not of integers are computed in this precision."""
        wanted = HINTS[precision]
        settings = {
            "INFERENCE_PRECISION_HINT": wanted,
            "PERFORMANCE_HINT": "LATENCY",  # all threads on one batch
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": self._threads,
            "ENABLE_CPU_PINNING": False,  # threads that decode want the same cores
        }
        compiled = _core().compile_model(model, "CPU", settings)
        found = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if found != wanted:
            raise DeviceError(
                f"precision {self.precision!r}",
                f"OpenVINO computes in {found}",
                f"{wanted}",
                "Pass another one.",
            )
        return OpenVinoGraph(compiled)


class OpenVinoGraph:
    """A compiled model. Safe to call from several threads, each with a request of its own."""

    def __init__(self, compiled: Any) -> None:
        self.compiled = compiled
        self._idle: SimpleQueue[Any] = SimpleQueue()

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The features of a batch, float32."""
        try:
            request = self._idle.get_nowait()
        except Empty:
            request = self.compiled.create_infer_request()
        try:
            arrays = [tensor.cpu().contiguous().numpy() for tensor in inputs]
            return torch.from_numpy(request.infer(arrays, share_inputs=True)[0])
        finally:
            self._idle.put(request)
