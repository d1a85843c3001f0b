"""What a back end is. Knows nothing about files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ..network.records import Architecture
    from .fold import ImageTower, LeanText


class Graph(Protocol):
    """A tower that is ready to run."""

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The features (B, D) of a batch."""
        ...


class Backend(Protocol):
    """What makes graphs of towers."""

    name: str  # library and version
    device: torch.device
    precision: str  # what it computes in
    dtype: torch.dtype  # of the features it gives

    def batch_size(self, architecture: Architecture) -> int:
        """How many images to run at a time."""
        ...

    def image_graph(self, tower: ImageTower, dtype: torch.dtype, batch_size: int) -> Graph:
        """For up to so many images (B, R, R, 3) of a dtype, in bytes' units."""
        ...

    def text_graph(self, tower: LeanText, batch_size: int) -> Graph:
        """For up to so many texts, as the inputs of `lean.text_features`."""
        ...
