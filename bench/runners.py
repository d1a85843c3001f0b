"""What each peer does with a model and images, behind the same few calls. Knows nothing about processes.

Runs in the peer's own environment: every library is imported inside the class that needs it.

Axes: B images, R pixels a side, D embed_dim.
"""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)  # openai/CLIP@d05afc4 clip/clip.py:85
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


@dataclass(frozen=True)
class Task:
    """What a process is started for."""

    peer: str
    model: str  # a released name
    precision: str  # fp32, bf16, fp16 or int8
    device: str  # cpu or cuda
    folder: str  # the model's files, as models.py lays them out
    batch: int
    way: str | None = None  # as `settle` found it in an earlier process
    threads: int | None = None

    @property
    def pixels(self) -> str:
        """The file of images in memory, uint8 (N, R, R, 3)."""
        return str(Path(self.folder) / "pixels.npy")


class Runner:
    """The calls of all runners, for those that have one way to do a thing and no threads to count."""

    ways: tuple[str, ...] = ("plain",)
    counts_threads = False  # whether `use` can change their number
    libraries: ClassVar[tuple[str, ...]] = ()

    def __init__(self, task: Task) -> None:
        self.task = task

    @classmethod
    def import_libraries(cls) -> dict[str, str]:
        """Import what the peer needs, and tell the versions."""
        modules = {name: importlib.import_module(name) for name in cls.libraries}
        return {name: str(getattr(module, "__version__", "")) for name, module in modules.items()}

    def use(self, way: str, threads: int | None) -> None:
        """Encode in this way from now on."""

    def threads(self) -> int | None:
        """How many threads it computes with, where that is known."""
        return None

    def prepare(self, pixels: np.ndarray) -> Any:
        """Images in memory as `encode` takes them. Shapes: uint8 (B, R, R, 3) -> the runner's own."""
        return normalised(pixels)

    def encode(self, images: Any) -> Any:
        """Vectors, all there when it returns."""
        raise NotImplementedError

    def to_numpy(self, vectors: Any) -> np.ndarray:
        """Shapes: (B, D) -> float32 (B, D)."""
        return np.asarray(vectors, np.float32)

    def embed(self, files: list[str], loaders: int) -> np.ndarray:
        """Files to vectors, with so many processes that decode. Shapes: N files -> float32 (N, D)."""
        raise NotImplementedError

    def device_name(self) -> str | None:
        """The GPU."""
        return None

    def peak_device_bytes(self) -> int | None:
        """The most memory it had of a GPU."""
        return None


def normalised(pixels: np.ndarray) -> np.ndarray:
    """As OpenAI's `preprocess` gives them. Shapes: uint8 (B, R, R, 3) -> float32 (B, 3, R, R)."""
    return np.ascontiguousarray(((pixels.astype(np.float32) / 255 - MEAN) / STD).transpose(0, 3, 1, 2))


class OnnxRuntime(Runner):
    """ONNX Runtime on the reference's image tower, as the reference's own environment exported it."""

    libraries = ("onnxruntime",)

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = len(os.sched_getaffinity(0))  # its own default counts the machine's cores
        path = str(Path(task.folder) / "visual.onnx")
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def threads(self) -> int | None:
        """One a core."""
        return self._session.get_session_options().intra_op_num_threads

    def encode(self, images: Any) -> Any:
        """Shapes: float32 (B, 3, R, R) -> float32 (B, D)."""
        return self._session.run(None, {"images": images})[0]


CALIBRATION_IMAGES = 64  # for int8


class Ours(Runner):
    """The Encoder of this repository."""

    libraries = ("torch", "clip")
    decode = "exact"

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        import clip

        path = Path(task.folder) / "openai.pt"
        options = {"device": task.device, "precision": task.precision, "batch_size": task.batch}
        self._encoder = clip.Encoder(path, decode=self.decode, **options)
        if task.device == "cuda":
            # The first batch waits for the compiler; turns are timed after it.
            self._encoder._engine.backend.compile_after = 0
        self._way = self.ways[0]

    @property
    def ways(self) -> tuple[str, ...]:
        """Bytes, as the pipeline has them; on CUDA also tensors that are there already, as the others have."""
        return ("encode_pixels", "encode_image") if self.task.device == "cuda" else ("encode_pixels",)

    @classmethod
    def import_libraries(cls) -> dict[str, str]:
        """`clip` imports the rest when an Encoder is asked for."""
        versions = super().import_libraries()
        import clip

        _ = clip.Encoder
        return versions

    def use(self, way: str, threads: int | None) -> None:  # noqa: ARG002  the encoder chooses its threads
        """Encode in this way from now on."""
        self._way = way

    def prepare(self, pixels: np.ndarray) -> Any:
        """Bytes, or a tensor on the device."""
        self._calibrate(pixels)
        if self._way == "encode_pixels":
            return pixels
        import torch

        return torch.from_numpy(normalised(pixels)).to(self.task.device)

    def encode(self, images: Any) -> Any:
        """Shapes: uint8 (B, R, R, 3) or float32 (B, 3, R, R) -> (B, D)."""
        if self._way == "encode_pixels":
            return self._encoder.encode_pixels(images)
        import torch

        features = self._encoder.encode_image(images)
        torch.cuda.synchronize()
        return features

    def to_numpy(self, vectors: Any) -> np.ndarray:
        """Shapes: (B, D) -> float32 (B, D)."""
        return vectors if isinstance(vectors, np.ndarray) else vectors.float().cpu().numpy()

    def embed(self, files: list[str], loaders: int) -> np.ndarray:  # noqa: ARG002  it decodes by threads
        """Encoder.embed."""
        self._calibrate(files)
        return self._encoder.embed(files)

    def _calibrate(self, pictures: np.ndarray | list[str]) -> None:
        """Once, by what is measured, and not timed: every row is run before its turns."""
        if self.task.precision == "int8" and self._encoder.calibration is None:
            self._encoder.calibrate(pictures[:CALIBRATION_IMAGES])

    def device_name(self) -> str | None:
        """The GPU."""
        import torch

        return torch.cuda.get_device_name() if self.task.device == "cuda" else None

    def peak_device_bytes(self) -> int | None:
        """As torch's allocator counts."""
        import torch

        return torch.cuda.max_memory_allocated() if self.task.device == "cuda" else None


class OursFast(Ours):
    """The same, with pixels that are nearly the reference's."""

    decode = "fast"
