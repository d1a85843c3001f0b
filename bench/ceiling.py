"""How fast this machine multiplies matrices: the ceiling that results are a share of. Knows nothing about models.

A product's rate is that of the median call; the ceiling is the best product's, over the libraries at hand and shapes
that are square or as in CLIP's towers.
"""

from __future__ import annotations

import statistics
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from runners import Runner, Task

if TYPE_CHECKING:
    from collections.abc import Callable

# Rows, inner and outer width: 32 images of ViT-B/32 through its linear layers, then square, then many rows.
SHAPES = {
    "cpu": [(1600, 768, 3072), (1600, 3072, 768), (1600, 768, 2304), (2048, 2048, 2048), (6304, 768, 3072)],
    "cuda": [(51200, 768, 3072), (51200, 3072, 768), (65792, 1024, 4096), (8192, 8192, 8192)],
}
FINALISTS = 3  # products that are measured each turn, after a first look at all
FIRST_LOOK_S = 0.2  # for each
MIN_CALLS = 3


class Ceiling(Runner):
    """Matrix products in turns; `task.precision` and `task.device` say which."""

    libraries = ("torch",)

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        products: dict[str, tuple[float, Callable[[], Any]]] = {}
        for rows, inner, outer in SHAPES[task.device]:
            name = f"{rows} x {inner} x {outer}"
            flops = 2.0 * rows * inner * outer * calls_at_a_time(task)
            products[f"torch {name}"] = flops, torch_product(task, rows, inner, outer)
            if task.device == "cpu" and has_openvino():
                products[f"openvino {name}"] = flops, openvino_product(task, rows, inner, outer)
        ranked = sorted(products, key=lambda name: rate(*products[name], FIRST_LOOK_S), reverse=True)
        self._finalists = {name: products[name] for name in ranked[:FINALISTS]}

    def gflops(self, seconds: float) -> dict[str, Any]:
        """The best finalist's rate, and which it was."""
        rates = {name: rate(flops, product, seconds / FINALISTS) for name, (flops, product) in self._finalists.items()}
        best = max(rates, key=lambda name: rates[name])
        return {"gflops": rates[best], "product": best}

    def prepare(self, pixels: np.ndarray) -> Any:
        """It takes no images."""
        return pixels


def rate(flops: float, product: Callable[[], Any], seconds: float) -> float:
    """GFLOP/s of the median call in so many seconds, after one that is not counted."""
    product()
    calls: list[float] = []
    until = time.perf_counter() + seconds
    while len(calls) < MIN_CALLS or time.perf_counter() < until:
        started = time.perf_counter()
        product()
        calls.append(time.perf_counter() - started)
    return flops / statistics.median(calls) / 1e9


def calls_at_a_time(task: Task) -> int:
    """Products between looks at the clock: a GPU is waited for each time, which takes some microseconds."""
    return 10 if task.device == "cuda" else 1


def has_openvino() -> bool:
    """Whether OpenVINO is installed; it is imported without its telemetry, for which it has a stub."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # how `import` is told of none
    try:
        import openvino  # noqa: F401
    except ImportError:
        return False
    return True


def torch_product(task: Task, rows: int, inner: int, outer: int) -> Callable[[], Any]:
    """A linear layer without bias, operands in the precision."""
    import torch

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[task.precision]
    x = torch.randn(rows, inner, device=task.device).to(dtype)
    weight = torch.randn(outer, inner, device=task.device).to(dtype)

    calls = calls_at_a_time(task)

    def product() -> Any:
        with torch.no_grad():
            for _ in range(calls):
                torch.nn.functional.linear(x, weight)
        if task.device == "cuda":
            torch.cuda.synchronize()

    return product


def openvino_product(task: Task, rows: int, inner: int, outer: int) -> Callable[[], Any]:
    """A model of one matrix product with a constant, computed in the precision.

    Raises:  ValueError where OpenVINO takes another precision than it was told.
    """
    import openvino
    from openvino import opset13

    random = np.random.default_rng(0)
    x = opset13.parameter([rows, inner], np.float32)
    weight = opset13.constant(random.standard_normal((outer, inner), np.float32))
    model = openvino.Model([opset13.matmul(x, weight, False, True)], [x], "product")
    kind = {"fp32": openvino.Type.f32, "bf16": openvino.Type.bf16}[task.precision]
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": kind})
    found = compiled.get_property("INFERENCE_PRECISION_HINT")
    if found != kind:
        raise ValueError(f"ceiling: OpenVINO runs in {found}, expected {kind}. Leave this precision out.")
    request = compiled.create_infer_request()
    request.set_input_tensor(openvino.Tensor(random.standard_normal((rows, inner), np.float32)))
    return request.infer
