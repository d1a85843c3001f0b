"""The interface of a back end, which compiles the graphs of a model for one device at one precision.

The engine and the encoder ask it for everything that depends on the precision; they compare no precision by name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from ..errors import InputError

if TYPE_CHECKING:
    from ..network.records import AnyArchitecture
    from .quantize import Calibration
    from .tower import ImageTower, LeanText


class Graph(Protocol):
    """A tower that is ready to run."""

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Return the features (B, D) of a batch."""
        ...


class Backend(Protocol):
    """Compiles graphs of towers. What a subclass inherits is right for fp32 and its like; int8 and fp8 override it."""

    name: str  # library and version
    device: torch.device
    precision: str  # never "reference", but the precision that this word means on the device
    dtype: torch.dtype  # of the features it returns

    @property
    def computed_in(self) -> str:
        """What the precision means on this machine, where its name alone does not say it."""
        return self.precision

    @property
    def needs_calibration(self) -> bool:
        """Whether `calibrate` must be called before `image_graph`."""
        return False

    def calibrate(self, calibration: Calibration) -> None:  # noqa: ARG002
        """Set the images to quantise by. Raises: InputError where the precision needs none."""
        remedy = "Leave the call out; Encoder.needs_calibration tells which encoders want it."
        raise InputError("calibrate", f"precision {self.precision!r} is not quantised by images", remedy=remedy)

    def check(self, architecture: AnyArchitecture) -> None:
        """Refuse a model that this precision is not for. Raises: DeviceError."""

    def batch_size(self, architecture: AnyArchitecture) -> int:
        """Return how many images to run at a time."""
        ...

    def image_graph(self, tower: ImageTower, dtype: torch.dtype, batch_size: int) -> Graph:
        """Return the graph for up to `batch_size` images (B, R, R, 3) of a dtype, in 0..255."""
        ...

    def text_graph(self, tower: LeanText, batch_size: int) -> Graph:
        """Return the graph for up to `batch_size` texts, which takes the inputs of `graph.text_features`."""
        ...
