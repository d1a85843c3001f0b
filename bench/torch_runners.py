"""The peers that are torch, and OpenVINO on one of their models. Knows nothing about processes.

Axes: B images, R pixels a side, D embed_dim, N files.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
from runners import Runner, Task, normalised


def import_torchvision() -> None:
    """Import torchvision, also where its compiled part cannot be loaded: beside a torch without CUDA.

    Only its transforms on PIL images are used here, and these are Python; but it declares shapes for operators of the
    compiled part when it is imported, and fails where they are missing. Where it is not installed, nothing happens.
    """
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        import torch

        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        operators = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import_torchvision.kept = operators  # they go when the library is collected
        importlib.import_module("torchvision")


class TorchRunner(Runner):
    """A torch model under no_grad. Ways: `plain`; `autocast` around an fp32 model; `cast`, another dtype's model."""

    counts_threads = True

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        import torch

        self._torch = torch
        self._dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[task.precision]
        self._model, self._preprocess = self._load()
        self._cuda = task.device == "cuda"
        self._way = self.ways[0]

    @property
    def ways(self) -> tuple[str, ...]:
        """fp32 is what the model is; the others have two ways."""
        return ("plain",) if self.task.precision == "fp32" else ("autocast", "cast")

    @classmethod
    def import_libraries(cls) -> dict[str, str]:
        """With torchvision first, which some of them import."""
        import_torchvision()
        return super().import_libraries()

    def _load(self) -> tuple[Any, Any]:
        """The model on the device, and what makes a PIL image a tensor (3, R, R)."""
        raise NotImplementedError

    def _features(self, images: Any) -> Any:
        return self._model.encode_image(images)

    def use(self, way: str, threads: int | None) -> None:
        """Threads, and the model anew where the way is another: what a cast rounded does not come back."""
        if threads:
            self._torch.set_num_threads(threads)
        if way != self._way:
            self._model, _ = self._load()
            self._model = self._model.to(self._dtype) if way == "cast" else self._model
        self._way = way

    def threads(self) -> int | None:
        """As torch says."""
        return self._torch.get_num_threads()

    def prepare(self, pixels: np.ndarray) -> Any:
        """On the device, in the dtype the model takes."""
        images = self._torch.from_numpy(normalised(pixels)).to(self.task.device)
        return images.to(self._dtype) if self._way == "cast" else images

    def encode(self, images: Any) -> Any:
        """Under no_grad, and waits for the GPU."""
        around = (
            self._torch.autocast(self.task.device, dtype=self._dtype)
            if self._way == "autocast"
            else contextlib.nullcontext()
        )
        with self._torch.no_grad(), around:
            features = self._features(images)
        if self._cuda:
            self._torch.cuda.synchronize()
        return features

    def to_numpy(self, vectors: Any) -> np.ndarray:
        """Shapes: (B, D) -> float32 (B, D)."""
        return vectors.float().cpu().numpy()

    def embed(self, files: list[str], loaders: int) -> np.ndarray:
        """A DataLoader over the files, as OpenAI's README does it."""
        from torch.utils.data import DataLoader

        loader = DataLoader(Files(files, self._preprocess), batch_size=self.task.batch, num_workers=loaders)
        parts = []
        for images in loader:
            images = images.to(self.task.device)
            parts.append(self.to_numpy(self.encode(images.to(self._dtype) if self._way == "cast" else images)))
        return np.concatenate(parts)

    def device_name(self) -> str | None:
        """The GPU."""
        return self._torch.cuda.get_device_name() if self._cuda else None

    def peak_device_bytes(self) -> int | None:
        """As torch's allocator counts."""
        return self._torch.cuda.max_memory_allocated() if self._cuda else None


class Files:
    """A dataset of torch's kind: files, opened by Pillow."""

    def __init__(self, files: list[str], preprocess: Any) -> None:
        self._files = files
        self._preprocess = preprocess

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, place: int) -> Any:
        from PIL import Image

        return self._preprocess(Image.open(self._files[place]))


class OpenAI(TorchRunner):
    """OpenAI's own code."""

    libraries = ("torch", "clip")

    @property
    def ways(self) -> tuple[str, ...]:
        """bf16 is autocast alone: its LayerNorm takes fp32. On CUDA it is fp16 as it comes."""
        return ("autocast",) if self.task.precision == "bf16" else ("plain",)

    def _load(self) -> tuple[Any, Any]:
        import clip

        model, preprocess = clip.load(str(Path(self.task.folder) / "openai.pt"), device=self.task.device)
        return model.eval(), preprocess

    def export(self, path: str) -> None:
        """The image tower as ONNX, for any batch."""
        images = self.prepare(np.load(self.task.pixels)[:2])
        axes = {"images": {0: "batch"}, "features": {0: "batch"}}
        names = {"input_names": ["images"], "output_names": ["features"], "dynamic_axes": axes}
        with self._torch.no_grad():
            # The exporter that traces: the newer one needs a package more, and for MultiheadAttention a fixed batch.
            self._torch.onnx.export(self._model.visual, (images,), path, dynamo=False, opset_version=17, **names)


class OpenClip(TorchRunner):
    """open_clip, with OpenAI's weights in the model of their activation."""

    libraries = ("torch", "open_clip")

    def _load(self) -> tuple[Any, Any]:
        import open_clip

        name = self.task.model.replace("/", "-").replace("@", "-").removesuffix("px") + "-quickgelu"
        model, _, preprocess = open_clip.create_model_and_transforms(name, pretrained=None)
        weights = self._torch.load(Path(self.task.folder) / "openai.pt", weights_only=True)
        model.load_state_dict(weights)
        return model.eval().to(self.task.device), preprocess


class Transformers(TorchRunner):
    """transformers' CLIPModel."""

    libraries = ("torch", "transformers")

    def _load(self) -> tuple[Any, Any]:
        from transformers import AutoImageProcessor, CLIPModel

        folder = Path(self.task.folder) / "transformers"
        model = CLIPModel.from_pretrained(folder, dtype=self._torch.float32)
        decodes = "torchvision" in sys.modules  # which its processor needs
        processor = AutoImageProcessor.from_pretrained(folder, use_fast=False) if decodes else None

        def preprocess(image: Any) -> Any:
            return processor(image, return_tensors="pt")["pixel_values"][0]

        return model.eval().to(self.task.device), preprocess

    def _features(self, images: Any) -> Any:
        return self._model.get_image_features(pixel_values=images).pooler_output


class OpenVinoPlain(Runner):
    """OpenVINO on the reference's image tower as its converter makes it, shapes fixed."""

    libraries = ("torch", "clip", "openvino")

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        import openvino

        reference = OpenAI(Task(**vars(task) | {"precision": "fp32"}))
        example = reference.prepare(np.load(task.pixels)[:1].repeat(task.batch, 0))
        plain = openvino.convert_model(reference._model.visual, example_input=example, input=list(example.shape))
        kind = {"fp32": openvino.Type.f32, "bf16": openvino.Type.bf16}[task.precision]
        compiled = openvino.Core().compile_model(plain, "CPU", {"INFERENCE_PRECISION_HINT": kind})
        found = compiled.get_property("INFERENCE_PRECISION_HINT")
        if found != kind:
            raise ValueError(f"openvino-plain: runs in {found}, expected {kind}. Leave this precision out.")
        self._request = compiled.create_infer_request()
        self._count = compiled.get_property("INFERENCE_NUM_THREADS")

    @classmethod
    def import_libraries(cls) -> dict[str, str]:
        """With torchvision first, which OpenAI's code imports."""
        import_torchvision()
        return super().import_libraries()

    def threads(self) -> int | None:
        """As OpenVINO chose."""
        return self._count

    def encode(self, images: Any) -> Any:
        """Shapes: float32 (B, 3, R, R) -> float32 (B, D)."""
        return self._request.infer([images])[0]
