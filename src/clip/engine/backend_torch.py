"""The lean graph on torch tensors: on CPUs that OpenVINO does not know, on Apple's GPUs, and under cuda_backend.py.

Weights are cast and moved when a tower is placed (`place`), so that the graph does no work twice. Knows nothing about
which graph it is.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import DeviceError
from . import graph
from .fold import Linear
from .graph import LAYER_NORM_EPS, text_features

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..network.records import Activation, Architecture
    from .fold import Conv, ImageTower, LeanText

Tower = TypeVar("Tower")
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "fp8": torch.bfloat16}
_scaled_mm: Any = getattr(torch, "_scaled_mm")  # noqa: B009  torch's one product of fp8 matrices has no public name
FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0  # the largest number of that type
FP8_MIN_WIDTH = 1024  # ViT-L's; products of narrower ones gain nothing (pytorch/ao, small shapes)
FP8_MIN_SCALE = 1e-12  # for rows of zeros
CPU_ROWS = 1600  # of a batch's products; more gain nothing on two cores (LOG.md)
CPU_MIN_BATCH, CPU_MAX_BATCH = 8, 32  # images
IMAGES_A_THREAD = 2
RESNET_PATCH_PX = 16  # pixels a side behind one cell of a ResNet's longest stage


def place(tower: Tower, change: Callable[[Tensor], Tensor]) -> Tower:
    """A tower with each of its tensors changed, as by `.to`."""
    if isinstance(tower, Tensor):
        return cast("Tower", change(tower))
    if isinstance(tower, tuple):
        return cast("Tower", tuple(place(part, change) for part in cast("tuple[Any, ...]", tower)))
    if is_dataclass(tower) and not isinstance(tower, type):
        return replace(tower, **{field.name: place(getattr(tower, field.name), change) for field in fields(tower)})
    return tower


@dataclass(frozen=True)
class Fp8Linear(Linear):
    """A linear layer whose weight is fp8 with a scale for each of its rows."""

    scale: Tensor  # (1, O), float32


def to_fp8(exact: Linear, placed: Linear) -> Fp8Linear:
    """A placed layer with its weight rounded to fp8, from the exact one; its bias keeps its dtype."""
    weight, scale = _round_rows(exact.weight)
    device = placed.weight.device
    return Fp8Linear(weight.to(device), placed.bias, scale.T.contiguous().to(device))


def _round_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """(M, K) -> fp8 (M, K) and what to multiply its rows with, float32 (M, 1)."""
    scale = (x.float().abs().amax(dim=1, keepdim=True) / FP8_MAX).clamp(min=FP8_MIN_SCALE)
    return (x.float() / scale).to(FP8), scale


class TorchOps:
    """Operations that compute at once, in the dtype of the weights."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def to_float(self, x: Tensor) -> Tensor:
        """Bytes are exact in every dtype from bfloat16 up."""
        return x.to(self.dtype)

    def linear(self, x: Tensor, layer: Linear) -> Tensor:
        """(..., I) -> (..., O); a row of x has its own scale where the layer is fp8."""
        if not isinstance(layer, Fp8Linear):
            return F.linear(x, layer.weight, layer.bias)
        rows, scale = _round_rows(x.flatten(end_dim=-2))
        scales = {"scale_a": scale, "scale_b": layer.scale}
        # Sums in the tensor cores' own width: rowwise products are slow without on Hopper (pytorch/pytorch#144809).
        product = _scaled_mm(rows, layer.weight.T, bias=layer.bias, out_dtype=self.dtype, use_fast_accum=True, **scales)
        return product.unflatten(0, x.shape[:-1])

    def conv(self, x: Tensor, layer: Conv) -> Tensor:
        """(B, I, R, R) -> (B, O, R', R')."""
        return F.conv2d(x, layer.weight, layer.bias, layer.stride, layer.padding)

    def norm(self, x: Tensor) -> Tensor:
        """(..., W) to mean 0 and variance 1; computed in float32 whatever the dtype."""
        return F.layer_norm(x, x.shape[-1:], eps=LAYER_NORM_EPS)

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """The sum; a text's mask comes as float32."""
        return x + y.to(x.dtype)

    def multiply(self, x: Tensor, y: Tensor) -> Tensor:
        """The product of each with each."""
        return x * y

    def matmul(self, x: Tensor, y: Tensor, *, transposed: bool = False) -> Tensor:
        """The matrix product; with `transposed` of x and y.T."""
        return x @ (y.mT if transposed else y)

    def self_attention(self, qkv: Tensor, heads: int, *, causal: bool) -> Tensor:
        """(B, L, 3W), queries scaled -> (B, L, W)."""
        q, k, v = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)  # each (B, H, L, N)
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=1.0)
        return seen.transpose(1, 2).flatten(2)  # (B, H, L, N) -> (B, L, W)

    def softmax(self, x: Tensor) -> Tensor:
        """Over the last axis."""
        return x.softmax(dim=-1)

    def activate(self, x: Tensor, activation: Activation) -> Tensor:
        """SiLU or the exact GELU."""
        return F.silu(x) if activation == "quick_gelu" else F.gelu(x)

    def relu(self, x: Tensor) -> Tensor:
        """max(x, 0)."""
        return F.relu(x)

    def average(self, x: Tensor, size: int) -> Tensor:
        """(B, C, R, R) -> (B, C, R / size, R / size)."""
        return F.avg_pool2d(x, size)

    def mean(self, x: Tensor) -> Tensor:
        """(B, L, C) -> (B, 1, C)."""
        return x.mean(dim=1, keepdim=True)

    def concat(self, x: Tensor, y: Tensor) -> Tensor:
        """(B, L, C) and (B, M, C) -> (B, L + M, C)."""
        return torch.cat([x, y], dim=1)

    def prepend_zeros(self, x: Tensor) -> Tensor:
        """(B, L, W) -> (B, 1 + L, W)."""
        return F.pad(x, (0, 0, 1, 0))

    def reshape(self, x: Tensor, *shape: int) -> Tensor:
        """The same numbers in another shape; 0 keeps an axis."""
        return x.reshape([x.shape[axis] if size == 0 else size for axis, size in enumerate(shape)])

    def transpose(self, x: Tensor, *axes: int) -> Tensor:
        """The axes in another order."""
        return x.permute(axes)

    def token(self, x: Tensor, place: int) -> Tensor:
        """(B, L, W) -> (B, W)."""
        return x[:, place]

    def tokens_at(self, x: Tensor, places: Tensor) -> Tensor:
        """(T, L, W) and int (T,) -> (T, W)."""
        return x[torch.arange(x.shape[0], device=x.device), places]

    def look_up(self, table: Tensor, rows: Tensor) -> Tensor:
        """(V, W) and int (...) -> (..., W)."""
        return F.embedding(rows, table)


def image_features(tower: ImageTower, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """A function from pixels (B, R, R, 3) to features (B, D), on a tower that was placed."""
    return partial(graph.image_features, TorchOps(dtype), tower)


def cpu_batch_size(architecture: Architecture, threads: int) -> int:
    """Images whose products have CPU_ROWS rows: 32 for ViT-B/32, 8 for the larger; more where threads are many."""
    rows = (architecture.image_resolution // (architecture.vision_patch_size or RESNET_PATCH_PX)) ** 2
    return max(CPU_MIN_BATCH, min(CPU_MAX_BATCH, CPU_ROWS // rows), IMAGES_A_THREAD * threads)


class TorchBackend:
    """Towers run eagerly, in one dtype, for batches of every size."""

    def __init__(self, device: torch.device, precision: str) -> None:
        self.name = f"torch {torch.__version__}"
        self.device = device
        self.precision = precision
        self.dtype = DTYPES[precision]

    def batch_size(self, architecture: Architecture) -> int:
        """Images that make products large enough, as on a CPU; on Apple's GPUs it is not measured yet."""
        return cpu_batch_size(architecture, torch.get_num_threads())

    def image_graph(self, tower: ImageTower, dtype: torch.dtype, batch_size: int) -> TorchGraph:  # noqa: ARG002
        """The graph of an image tower, for bytes or for floats in their units, and for any number of images."""
        return TorchGraph(image_features(self._placed(tower), self.dtype), self.device)

    def text_graph(self, tower: LeanText, batch_size: int) -> TorchGraph:  # noqa: ARG002
        """The graph of a text tower for any number of texts; `text_features` has its four inputs."""
        return TorchGraph(partial(text_features, TorchOps(self.dtype), self._placed(tower)), self.device)

    def _placed(self, tower: Tower) -> Tower:
        return place(tower, lambda tensor: tensor.to(self.device, self.dtype))


class TorchGraph:
    """A graph that runs anew for each batch."""

    def __init__(self, function: Callable[..., Tensor], device: torch.device) -> None:
        self._function = function
        self._device = device

    @torch.inference_mode()
    def __call__(self, *inputs: Tensor) -> Tensor:
        """The features of a batch, in the dtype of the weights."""
        return self._function(*(tensor.to(self._device) for tensor in inputs))


def check_fp8(architecture: Architecture) -> None:
    """Refuse a model that fp8 makes no faster.

    Raises:  DeviceError for a ResNet, or a ViT narrower than ViT-L.
    """
    if architecture.vision_patch_size is None or architecture.vision_width < FP8_MIN_WIDTH:
        kind = "ResNet" if architecture.vision_patch_size is None else "ViT"
        raise DeviceError(
            "precision 'fp8'",
            f"found a {kind} {architecture.vision_width} wide",
            f"a ViT of at least {FP8_MIN_WIDTH}",
            "Pass 'reference' or 'bf16'.",
        )
