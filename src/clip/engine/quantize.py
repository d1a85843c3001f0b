"""Quantise an OpenVINO model: products of 8-bit integers instead of floats, calibrated on images.

NNCF's post-training quantisation chooses a scale for each product from the values that pass through it while the model
reads the calibration images. The cost in fidelity depends on weights and images: batch/tune.py measures it.
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
# How much of an outlier channel's size moves from the inputs of a product into its weights. Minimum cosine of 224
# images for ViT-B/32 with random weights, and with outliers of 8 and of 30 planted: 0.99894, 0.99943, 0.99987. With
# 0.5: 0.99852, 0.99905, 0.99987; with NNCF's own 0.95: 0.99525 for the first.
SMOOTHING = 0.25
_quantizing = threading.Lock()


@dataclass(frozen=True)
class Calibration:
    """The images that a model was quantised by."""

    pixels: np.ndarray  # uint8 (N, R, R, 3)

    @cached_property
    def sha256(self) -> str:
        """Hash of the pixels and their shape, in hexadecimal."""
        return hashlib.sha256(str(self.pixels.shape).encode() + self.pixels.tobytes()).hexdigest()


def is_installed() -> bool:
    """Return whether NNCF, the package of the extra `int8`, is installed."""
    return find_spec("nncf") is not None


def check_installed() -> None:
    """Raise DeviceError where the extra `int8` is not installed."""
    if not is_installed():
        found = "NNCF, which quantises, is not installed"
        raise DeviceError("precision 'int8'", found, remedy="Run: pip install 'clip-turbo[int8]'")


def quantize(model: Any, pixels: np.ndarray, *, exact_last: int) -> Any:
    """Quantise the products of a model of one input, but for the first, which reads pixels, and the last `exact_last`.

    The same model and pixels give the same result: nothing is drawn at random.

    Shapes:  pixels as the model reads them, (N, R, R, 3).
    Raises:  DeviceError where NNCF is not installed.
    """
    check_installed()
    with _quantizing:  # NNCF keeps global state
        nncf = _import_nncf()
        products = [node for node in model.get_ordered_ops() if node.get_type_name() in PRODUCTS]
        for place, node in enumerate(products):
            node.set_friendly_name(f"product {place}")  # default names count all nodes made in this process
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
                # Bias correction changed no cosine's fifth digit for ViT-B/32, and took half of the time.
                disable_bias_correction=is_vit,
                # Half the range of weights: CPUs without VNNI add up products in 16 bits, which saturate otherwise.
                # Minimum cosine of ViT-B/32 where oneDNN was kept from VNNI 0.9954, with this 0.9999, as with VNNI.
                overflow_fix=nncf.OverflowFix.ENABLE,
                smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=SMOOTHING),
            ),
        )


@cache
def _import_nncf() -> Any:
    """Import NNCF, without its telemetry and silenced."""
    logger_class = logging.getLoggerClass()
    try:
        with without_telemetry(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of NNCF's own dependencies
            nncf = importlib.import_module("nncf")
            bars: Any = importlib.import_module("nncf.common.logging.track_progress")
    finally:
        logging.setLoggerClass(logger_class)  # NNCF sets its own
    bars.track.__init__ = partialmethod(bars.track.__init__, disable=True)  # it draws on stdout
    logging.getLogger("nncf").setLevel(logging.ERROR)  # NNCF's own function would do it to everybody's handlers
    return nncf
