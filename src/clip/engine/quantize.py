"""An OpenVINO model -> the same with products of 8-bit integers, calibrated on images. Knows nothing about files.

NNCF's post-training quantisation chooses a scale for each product by what runs through it while the model reads the
calibration images. What that costs in fidelity depends on weights and images: fidelity.py measures it.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
import threading
import warnings
from dataclasses import dataclass
from functools import cache, cached_property, partialmethod
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ..errors import DeviceError
from .telemetry import without_telemetry

if TYPE_CHECKING:
    import numpy as np


BATCH = 8  # calibration images that are run at a time
PRODUCTS = ("MatMul", "Convolution")  # operations that are quantised
# How much of an outlier channel's size goes from what runs through a product into its weights. Least cosine of 224
# images for ViT-B/32 with random weights, and with outliers of 8 and of 30 planted: 0.99894, 0.99943, 0.99987. With
# 0.5: 0.99852, 0.99905, 0.99987; with NNCF's own 0.95: 0.99525 for the first.
SMOOTHING = 0.25
_quantising = threading.Lock()


def is_installed() -> bool:
    """Whether the extra `int8` is."""
    return find_spec("nncf") is not None


def quantised(model: Any, pixels: np.ndarray, *, exact_last: int) -> Any:
    """A model of one input with quantised products, but for the first, which reads pixels, and the last `exact_last`.

    The same model and pixels give the same: nothing is drawn at random.

    Shapes:  pixels as the model reads them, (N, R, R, 3).
    Raises:  DeviceError without NNCF.
    """
    check_installed()
    with _quantising:  # NNCF keeps state of its own
        nncf = _nncf()
        products = [node for node in model.get_ordered_ops() if node.get_type_name() in PRODUCTS]
        for place, node in enumerate(products):
            node.set_friendly_name(f"product {place}")  # or the names count what was drawn before in this process
        exact = [products[0], *products[len(products) - exact_last :]]
        batches = [pixels[start : start + BATCH] for start in range(0, len(pixels), BATCH)]
        is_vit = all(node.get_type_name() != "Convolution" for node in products)
        return nncf.quantize(
            model,
            nncf.Dataset(batches),
            preset=nncf.QuantizationPreset.MIXED,
            model_type=nncf.ModelType.TRANSFORMER if is_vit else None,
            subset_size=len(batches),
            ignored_scope=nncf.IgnoredScope(names=[node.get_friendly_name() for node in exact]),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                # Its correction of biases changed no cosine's fifth digit for ViT-B/32, and took half of the time.
                disable_bias_correction=is_vit,
                # Half the range of weights: CPUs without VNNI add up products in 16 bits, which saturate otherwise.
                # Least cosine of ViT-B/32 where oneDNN was kept from VNNI 0.9954, with this 0.9999, as with VNNI.
                overflow_fix=nncf.OverflowFix.ENABLE,
                smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=SMOOTHING),
            ),
        )


def check_installed() -> None:
    """Raise DeviceError where the extra `int8` is not installed."""
    if not is_installed():
        raise DeviceError(
            "precision 'int8'",
            "NNCF is not installed",
            "it to quantise with",
            "Run: pip install 'clip-turbo[int8]'",
        )


@cache
def _nncf() -> Any:
    """NNCF, imported so that its telemetry is not, and silent."""
    loggers = logging.getLoggerClass()
    try:
        with without_telemetry(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of NNCF's own dependencies
            nncf = importlib.import_module("nncf")
            bars: Any = importlib.import_module("nncf.common.logging.track_progress")
    finally:
        logging.setLoggerClass(loggers)  # which it puts its own in the place of
    bars.track.__init__ = partialmethod(bars.track.__init__, disable=True)  # it draws on stdout
    logging.getLogger("nncf").setLevel(logging.ERROR)  # its own function does that to everybody's handlers
    return nncf


@dataclass(frozen=True)
class Calibration:
    """The images by which a model was quantised."""

    pixels: np.ndarray  # uint8 (N, R, R, 3)

    @cached_property
    def sha256(self) -> str:
        """Of the pixels and their shape, in hexadecimal."""
        return hashlib.sha256(str(self.pixels.shape).encode() + self.pixels.tobytes()).hexdigest()
