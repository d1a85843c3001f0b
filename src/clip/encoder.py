"""Encoder: a name resolved, an engine chosen, pictures and texts to vectors. Knows nothing about folders or Parquet."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

from clip import weights
from clip.architecture import infer_architecture
from clip.checkpoints import read_checkpoint
from clip.checkpoints import untrained as untrained_checkpoint
from clip.clip import tokenize
from clip.engine import Engine, load_model, resolve_device
from clip.errors import ClipError, ImageError, InputError, InputTypeError
from clip.installed import warn_of_foreign_distribution
from clip.items import PreprocessSettings
from clip.model import CLIP
from clip.preprocess import open_picture, to_pixels
from clip.threads import available_cores, map_ahead

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator

    from PIL import Image

    Picture = str | os.PathLike[str] | bytes | Image.Image | np.ndarray

BATCH_SIZE = 32  # pictures; larger batches gain nothing on a CPU
TEXT_BATCH_SIZE = 256  # texts; some 100 MB of activations


class Encoder:
    """A model ready for inference: pictures and texts to vectors, in batches of any size, from any thread."""

    def __init__(
        self,
        model: str | os.PathLike[str] | CLIP = "ViT-B/32",
        *,
        device: str | torch.device | None = None,
        batch_size: int = BATCH_SIZE,
        untrained: int | None = None,
        download_root: str | os.PathLike[str] | None = None,
    ) -> None:
        """Load a released model by name, a weights file by path, or take a loaded model as it is, on its device.

        `untrained` draws the named architecture's weights at random from this seed instead of reading any.

        Raises:  UnknownModelError, WeightsMissingError, CheckpointError, DeviceError; InputError for a batch size
                 under 1.
        """
        if batch_size < 1:
            raise InputError(f"batch_size: found {batch_size}, expected at least 1. Pass a number of pictures.")
        warn_of_foreign_distribution()
        self.batch_size = batch_size
        if isinstance(model, CLIP):
            self.model_name, self.source, self._files = type(model).__name__, "a loaded model", ()
            settings = PreprocessSettings(model.visual.input_resolution)
            self._engine = Engine(model, settings)
            self.architecture = asdict(infer_architecture(model.state_dict()))
        else:
            where = resolve_device(device)
            self.model_name = str(model)
            if untrained is None:
                checkpoint = read_checkpoint(weights.locate(model, download_root))
            else:
                checkpoint = untrained_checkpoint(self.model_name, untrained)
            self._files = checkpoint.files
            self.source, settings = checkpoint.source, checkpoint.preprocess
            self.architecture = asdict(checkpoint.architecture)
            self._engine = Engine(load_model(checkpoint, where), settings)
        self.settings = settings
        self.resolution_px = settings.resolution_px
        self.dim = self._engine.model.visual.output_dim
        self.device = self._engine.device
        self.dtype = self._engine.model.dtype

    @cached_property
    def weights_sha256(self) -> str | None:
        """The sha256 of the weights file; of the hashes, a line each, where there are several; None without a file."""
        hashes = [weights.file_sha256(file) for file in self._files]
        return (
            hashes[0]
            if len(hashes) == 1
            else hashlib.sha256("\n".join(hashes).encode()).hexdigest()
            if hashes
            else None
        )

    def encode_image(self, image: torch.Tensor) -> torch.Tensor:
        """Preprocessed pictures to features, as `model.encode_image`, in batches.

        Shapes:  (B, 3, R, R) as `preprocess` gives -> (B, D), not normalised, on the encoder's device.
        """
        return torch.cat([self._engine.encode_image(part) for part in image.split(self.batch_size)])

    def encode_text(self, text: str | Iterable[str] | torch.Tensor) -> torch.Tensor:
        """Texts, or the tokens of texts, to features, as `model.encode_text`, in batches.

        Shapes:  T texts or int (T, L) -> (T, D), not normalised, on the encoder's device.
        Raises:  TextTooLongError (a RuntimeError) for a text of more than 77 tokens.
        """
        tokens = text if isinstance(text, torch.Tensor) else tokenize(text)
        return torch.cat([self._engine.encode_text(part) for part in tokens.split(TEXT_BATCH_SIZE)])

    def encode_pixels(self, pixels: np.ndarray) -> np.ndarray:
        """Decoded and cropped pictures to features, in one batch.

        Shapes:  uint8 (B, R, R, 3) -> float32 (B, D), not normalised.
        """
        return self._engine.encode_pixels(pixels)

    def embed(self, images: Iterable[Picture], *, normalize: bool = True) -> np.ndarray:
        """Pictures in any form to vectors; they are decoded by threads ahead of the model.

        Shapes:  N paths, encoded pictures (bytes), PIL images or uint8 arrays (H, W, 3) -> float32 (N, D).
        Raises:  ImageError naming the picture's place, for one that cannot be decoded.
        """

        def pixels_of(numbered: tuple[int, Picture]) -> np.ndarray:
            number, image = numbered
            try:
                return to_pixels(open_picture(image), self.settings)
            except ClipError as exc:
                raise type(exc)(f"picture {number}: {str(exc).removeprefix('picture: ')}") from exc
            except Exception as exc:
                raise ImageError(
                    f"picture {number}: cannot be decoded ({type(exc).__name__}: {exc}). Leave it out, or repair it."
                ) from exc

        if isinstance(images, (str, bytes)):
            raise InputTypeError(
                f"images: found {type(images).__name__}, expected several pictures. Pass a list of one."
            )
        workers = available_cores()
        decoded = map_ahead(pixels_of, enumerate(images), workers=workers, ahead=self.batch_size + workers)
        parts = [self.encode_pixels(np.stack(batch)) for batch in batched(decoded, self.batch_size)]
        vectors = np.concatenate(parts) if parts else np.empty((0, self.dim), np.float32)  # (N, D)
        return unit_vectors(vectors) if normalize else vectors


def batched(items: Iterator[np.ndarray], size: int) -> Iterator[list[np.ndarray]]:
    """Lists of `size` items, the last one shorter."""
    batch: list[np.ndarray] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def unit_vectors(features: np.ndarray) -> np.ndarray:
    """Features divided by their L2 norm. Shapes: float32 (N, D) -> float32 (N, D)."""
    return features / np.linalg.norm(features, axis=1, keepdims=True)
