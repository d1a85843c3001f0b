"""Run the lean graph on torch tensors: on CPUs that OpenVINO lacks, on Apple's GPUs, and for backend_cuda.py.

Weights are cast and moved once, when a tower is placed on its device (`place`).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from . import graph
from .backend import Backend
from .graph import text_features
from .tower import Conv, ImageTower, LeanText, Linear, Rotation

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..network.records import AnyArchitecture, TowerActivation

Tower = TypeVar("Tower")
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_scaled_mm: Any = getattr(torch, "_scaled_mm")  # noqa: B009  torch's one product of fp8 matrices has no public name
FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0  # the largest number of that type
FP8_MIN_SCALE = 1e-12  # for rows of zeros
GELUS = {"gelu": "none", "gelu_tanh": "tanh"}
CPU_ROWS = 1600  # rows of a batch's products; more gain nothing on two cores (LOG.md)
CPU_MIN_BATCH, CPU_MAX_BATCH = 8, 32  # images
IMAGES_A_THREAD = 2
RESNET_PATCH_PX = 16  # pixels a side that one cell of a ResNet's longest stage covers


def place(tower: Tower, change: Callable[[Tensor], Tensor]) -> Tower:
    """Return the tower with each of its tensors changed, as by `.to`."""
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
    """Round the weight of `exact` to fp8; `placed` is the same layer on the device, and its bias is kept.

    Shapes:  weight (O, I) -> fp8 (O, I).
    """
    weight, scale = _round_rows(exact.weight)
    device = placed.weight.device
    return Fp8Linear(weight.to(device), placed.bias, scale.T.contiguous().to(device))


def _round_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Round to fp8. Shapes: (M, K) -> fp8 (M, K), and the factors of its rows, float32 (M, 1)."""
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
        """(..., I) -> (..., O); for an fp8 layer each row of x gets its own scale."""
        if not isinstance(layer, Fp8Linear):
            return F.linear(x, layer.weight, layer.bias)
        rows, scale = _round_rows(x.flatten(end_dim=-2))
        scales = {"scale_a": scale, "scale_b": layer.scale}
        # Accumulated in the width of the tensor cores, or rowwise products are slow on Hopper (pytorch/pytorch#144809).
        product = _scaled_mm(rows, layer.weight.T, bias=layer.bias, out_dtype=self.dtype, use_fast_accum=True, **scales)
        return product.unflatten(0, x.shape[:-1])

    def conv(self, x: Tensor, layer: Conv) -> Tensor:
        """(B, I, R, R) -> (B, O, R', R')."""
        return F.conv2d(x, layer.weight, layer.bias, layer.stride, layer.padding)

    def norm(self, x: Tensor, eps: float) -> Tensor:
        """(..., W) to mean 0 and variance 1; computed in float32 for every dtype."""
        return F.layer_norm(x, x.shape[-1:], eps=eps)

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """The sum; a text's mask is float32."""
        return x + y.to(x.dtype)

    def multiply(self, x: Tensor, y: Tensor) -> Tensor:
        """The elementwise product."""
        return x * y

    def matmul(self, x: Tensor, y: Tensor, *, transposed: bool = False) -> Tensor:
        """The matrix product; with `transposed` of x and y.T."""
        return x @ (y.mT if transposed else y)

    def self_attention(self, qkv: Tensor, heads: int, *, causal: bool, rotation: Rotation | None) -> Tensor:
        """(B, L, 3W), queries scaled -> (B, L, W)."""
        q, k, v = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)  # each (B, H, L, N)
        if rotation is not None:
            q, k = _turn(q, rotation), _turn(k, rotation)
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=1.0)
        return seen.transpose(1, 2).flatten(2)  # (B, H, L, N) -> (B, L, W)

    def softmax(self, x: Tensor) -> Tensor:
        """Over the last axis."""
        return x.softmax(dim=-1)

    def activate(self, x: Tensor, activation: TowerActivation) -> Tensor:
        """SiLU, the exact GELU, or the approximation of it by tanh."""
        return F.silu(x) if activation == "quick_gelu" else F.gelu(x, approximate=GELUS[activation])

    def relu(self, x: Tensor) -> Tensor:
        """max(x, 0)."""
        return F.relu(x)

    def average(self, x: Tensor, size: int) -> Tensor:
        """(B, C, R, R) -> (B, C, R / size, R / size)."""
        return F.avg_pool2d(x, size)

    def mean(self, x: Tensor) -> Tensor:
        """(B, L, C) -> (B, 1, C)."""
        return x.mean(dim=1, keepdim=True)

    def crop(self, x: Tensor, side: int) -> Tensor:
        """(B, R, R, 3) -> (B, side, side, 3)."""
        return x[:, :side, :side]

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


def _turn(x: Tensor, rotation: Rotation) -> Tensor:
    """(B, H, L, N) -> the same."""
    first, second = x.chunk(2, dim=-1)
    turned = (first * rotation.cos - second * rotation.sin, second * rotation.cos + first * rotation.sin)
    return torch.cat(turned, dim=-1)


def image_features(tower: ImageTower, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """Return a function from pixels (B, R, R, 3) to features (B, D), for a tower that is placed."""
    return partial(graph.image_features, TorchOps(dtype), tower)


def cpu_batch_size(architecture: AnyArchitecture, threads: int) -> int:
    """Return how many images make CPU_ROWS rows: 32 for ViT-B/32, 8 for larger models; more for many threads."""
    rows = (architecture.image_resolution // (architecture.vision_patch_size or RESNET_PATCH_PX)) ** 2
    return max(CPU_MIN_BATCH, min(CPU_MAX_BATCH, CPU_ROWS // rows), IMAGES_A_THREAD * threads)


def usable_precisions(device: torch.device) -> list[str]:
    """List the precisions of a device that no other back end runs."""
    return ["fp32", "bf16"] if device.type == "cpu" else ["fp32", "fp16"]


class TorchBackend(Backend):
    """Towers run eagerly, in one dtype, for batches of every size."""

    def __init__(self, device: torch.device, precision: str) -> None:
        self.name = f"torch {torch.__version__}"
        self.device = device
        self.precision = precision
        self.dtype = DTYPES[precision]

    def batch_size(self, architecture: AnyArchitecture) -> int:
        """Return the number of images that suits a CPU; on Apple's GPUs it is not measured yet."""
        return cpu_batch_size(architecture, torch.get_num_threads())

    def image_graph(self, tower: ImageTower, dtype: torch.dtype, batch_size: int) -> TorchGraph:  # noqa: ARG002
        """Return the graph of an image tower for images in 0..255 of any number type, and any number of them."""
        return TorchGraph(image_features(self._place(tower), self.dtype), self.device)

    def text_graph(self, tower: LeanText, batch_size: int) -> TorchGraph:  # noqa: ARG002
        """Return the graph of a text tower for any number of texts, which takes the inputs of `text_features`."""
        return TorchGraph(partial(text_features, TorchOps(self.dtype), self._place(tower)), self.device)

    def _place(self, tower: Tower) -> Tower:
        return place(tower, lambda tensor: tensor.to(self.device, self.dtype))


class TorchGraph:
    """A graph that runs eagerly."""

    def __init__(self, function: Callable[..., Tensor], device: torch.device) -> None:
        self._function = function
        self._device = device

    @torch.inference_mode()
    def __call__(self, *inputs: Tensor) -> Tensor:
        """Return the features of a batch, in the dtype of the weights."""
        return self._function(*(tensor.to(self._device) for tensor in inputs))
