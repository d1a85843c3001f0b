"""A network running on a device: batches of pixels or tokens in, features out. Knows nothing about files or Parquet."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from clip.errors import DeviceError
from clip.model import CLIP, load_weights
from clip.preprocess import normalize_pixels

if TYPE_CHECKING:
    from collections.abc import Generator

    import numpy as np

    from clip.items import Checkpoint, PreprocessSettings


MAX_REASON = 100  # characters of what torch says; for an unknown name it lists every device it has heard of


def resolve_device(device: str | torch.device | None = None) -> torch.device:
    """The device asked for; with None or "auto" CUDA where there is one, else the CPU.

    Raises:  DeviceError (a RuntimeError) for a device this machine does not have.
    """
    if device is None or device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        wanted = torch.device(device)
        # The one way to ask that holds for every kind, index and build; "meta" would answer, with no numbers in it.
        torch.empty(1, device=wanted).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as exc:
        reason = str(exc).splitlines()[0].partition(". ")[0]
        raise DeviceError(
            f"device {str(device)!r}: not usable here ({reason[:MAX_REASON]}), expected one of {_devices()}. "
            'Pass one of these, or "auto".'
        ) from exc
    return wanted


def _devices() -> list[str]:
    devices = ["cpu"] + [f"cuda:{n}" for n in range(torch.cuda.device_count())]
    return devices + (["mps"] if torch.backends.mps.is_available() else [])


@contextmanager
def limit_threads(threads: int) -> Generator[None]:
    """Let models on the CPU compute with so many threads, and put the number back afterwards; it is the process's."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def runs_fp16(device: torch.device) -> bool:
    """Whether models on this device are fp16 as in the reference. The others, whose half precision has gaps, get fp32.

    Source:  openai/CLIP@d05afc4 clip/clip.py:139 leaves fp16 everywhere but on "cpu" to the letter; issues 255, 415.
    """
    return device.type == "cuda"


def load_model(checkpoint: Checkpoint, device: torch.device) -> CLIP:
    """The drop-in model of a checkpoint on a device, in the dtypes the reference has there. Empties its state dict."""
    return load_weights(checkpoint.state_dict, checkpoint.architecture, device=device, mixed_fp16=runs_fp16(device))


class Engine:
    """The eager model under inference mode. Safe to call from several threads."""

    def __init__(self, model: CLIP, settings: PreprocessSettings) -> None:
        self.model = model
        self.settings = settings
        self.device = next(model.parameters()).device

    @torch.inference_mode()
    def encode_pixels(self, pixels: np.ndarray) -> np.ndarray:
        """Shapes: uint8 (B, R, R, 3) -> float32 (B, D), not normalised."""
        batch = torch.from_numpy(pixels).to(self.device)  # bytes over the bus, a quarter of floats
        image = normalize_pixels(batch, self.settings)  # (B, 3, R, R)
        return self.model.encode_image(image).float().cpu().numpy()

    @torch.inference_mode()
    def encode_image(self, image: torch.Tensor) -> torch.Tensor:
        """Shapes: (B, 3, R, R), normalised by `preprocess` -> (B, D) in the model's dtype."""
        return self.model.encode_image(image.to(self.device))

    @torch.inference_mode()
    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        """Shapes: int (T, L) -> (T, D) in the model's dtype."""
        return self.model.encode_text(tokens.to(self.device))
