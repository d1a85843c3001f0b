"""Encoder: a name resolved, an engine chosen, images and texts to vectors. Knows nothing about folders or Parquet."""

from __future__ import annotations

import hashlib
import os
from dataclasses import asdict
from functools import cached_property
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch

from .clip import tokenize
from .engine.backend_openvino import rest_of_int8
from .engine.devices import make_backend, resolve_device
from .engine.engine import Engine
from .engine.quantize import Calibration
from .errors import ClipError, ImageError, InputError, InputTypeError
from .foreign_distribution import warn_of_foreign_distribution
from .images.decode import read_pixels
from .jobs.options import CALIBRATED_PRECISIONS, PixelMode
from .model import CLIP, QuickGELU, VisionTransformer
from .network.architecture import infer_architecture
from .network.meta_init import build_on_meta
from .network.records import Checkpoint, PreprocessSettings
from .parallel import available_cores, map_ahead
from .text.tokens import token_table
from .weights import locate
from .weights.checkpoints import draw_checkpoint, read_checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from PIL import Image

    from .jobs.options import Precision

    ImageLike = str | os.PathLike[str] | bytes | Image.Image | np.ndarray


class Encoder:
    """A model ready for inference: images and texts to vectors, in batches of any size, from any thread.

    It runs the lean graph (fold.py, lean.py), whose vectors are those of the model to within rounding. A tower is made
    ready when it is first used, which takes about half a second for ViT-B/32 on a CPU.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | CLIP = "ViT-B/32",
        *,
        device: str | torch.device | None = None,
        precision: Precision = "reference",
        batch_size: int | Literal["auto"] = "auto",
        threads: int | None = None,
        untrained: int | None = None,
        download_root: str | os.PathLike[str] | None = None,
        decode: PixelMode = "exact",
    ) -> None:
        """Load a released model by name or "sketch", a weights file by path, or take the weights of a loaded model.

        Without a device, or with "auto", it is CUDA where there is one, else the CPU; for a loaded model the device it
        is on. `precision` is what vectors are computed in; "reference" is what OpenAI's code has on the device: fp32 on
        a CPU, fp16 on CUDA. `threads` is for the model on a CPU, one a core without. `untrained` draws the named
        architecture's weights at random from this seed instead of reading any. With `decode` "fast" `embed` makes
        pixels that are nearly those of OpenAI's code: docs/images.md.

        Raises:  UnknownModelError, WeightsMissingError, CheckpointError; DeviceError for a device or a precision that
                 this machine lacks; InputError for a batch size under 1, for another word for `decode` and for a loaded
                 model whose modules are not OpenAI's.
        """
        asked: dict[str, object] = {"batch_size": 1 if batch_size == "auto" else batch_size}
        asked["threads"] = 1 if threads is None else threads
        for name, number in asked.items():
            if not isinstance(number, int) or number < 1:
                raise InputError(
                    name,
                    f"found {number!r}",
                    "at least 1",
                    "Pass a whole number.",
                )
        if decode not in get_args(PixelMode):
            raise InputError(
                "`decode`",
                f"found {decode!r}",
                f"one of {get_args(PixelMode)}",
                "Pass one.",
            )
        warn_of_foreign_distribution()
        if isinstance(model, CLIP) and device in (None, "auto"):
            device = next(model.parameters()).device
        backend = make_backend(resolve_device(device), precision, threads)
        if isinstance(model, CLIP):
            self.model_name = type(model).__name__
            checkpoint = _checkpoint_of(model)
        else:
            self.model_name = str(model)
            if untrained is None:
                checkpoint = read_checkpoint(locate.locate(model, download_root))
            else:
                checkpoint = draw_checkpoint(self.model_name, untrained)
        self.source, self._files = checkpoint.source, checkpoint.files
        self.tokenizer = checkpoint.tokenizer  # of a vocabulary of its own; None for that of the released models
        self.settings = checkpoint.preprocess
        self.resolution_px = self.settings.resolution_px
        self.architecture = asdict(checkpoint.architecture)
        self.dim = checkpoint.architecture.embed_dim
        self.logit_scale = float(checkpoint.state_dict["logit_scale"].float().exp())  # of cosines, before a softmax
        self.device = backend.device
        self.precision: Precision = precision
        self.decode: PixelMode = decode  # how `embed` makes pixels of images
        rest = f"+{rest_of_int8()}" if backend.precision == "int8" else ""
        self.computed_in = f"{backend.precision}{rest}"  # what the precision means here
        self.backend = backend.name
        size = None if batch_size == "auto" else batch_size
        self.calibration: Calibration | None = None
        self._engine = Engine(checkpoint.state_dict, checkpoint.architecture, self.settings, backend, size)

    @property
    def batch_size(self) -> int:
        """Images that run at a time; fewer after memory ran out."""
        return self._engine.batch_size

    @property
    def needs_calibration(self) -> bool:
        """Whether the precision is quantised by images, which `calibrate` takes."""
        return self.precision in CALIBRATED_PRECISIONS

    @property
    def context_length(self) -> int:
        """Tokens of a text that the model reads, start and end among them."""
        return self._engine.architecture.context_length

    @cached_property
    def weights_sha256(self) -> str | None:
        """The sha256 of the weights file; of the hashes, a line each, where there are several; None without a file."""
        hashes = [locate.file_sha256(file) for file in self._files]
        return (
            hashes[0]
            if len(hashes) == 1
            else hashlib.sha256("\n".join(hashes).encode()).hexdigest()
            if hashes
            else None
        )

    def calibrate(self, images: Iterable[ImageLike] | np.ndarray) -> None:
        """Quantise an int8 encoder by these images, a hundred or more of those it is for; once, before it is used.

        The same images and weights give the same vectors. Quantising takes half a minute for ViT-B/32 on two cores,
        when the first image comes. Texts are computed in fp32.

        Shapes:  N images in any form that `embed` takes, or uint8 (N, R, R, 3).
        Raises:  InputError for no image, for another precision, and after the first use; ImageError for an image
                 that cannot be decoded.
        """
        if not isinstance(images, np.ndarray):
            several = [read_pixels(image, self.settings, self.decode) for image in images]
            images = (
                np.stack(several) if several else np.empty((0, self.resolution_px, self.resolution_px, 3), np.uint8)
            )
        if (
            not len(images)
            or images.shape[1:] != (self.resolution_px, self.resolution_px, 3)
            or images.dtype != np.uint8
        ):
            raise InputError(
                "`images`",
                f"found {images.shape} of {images.dtype}",
                f"some, uint8 (N, {self.resolution_px}, {self.resolution_px}, 3)",
                "Pass images, or their pixels.",
            )
        calibration = Calibration(images)
        self._engine.calibrate(calibration)
        self.calibration = calibration

    def encode_image(self, image: torch.Tensor) -> torch.Tensor:
        """Preprocessed images to features, as `model.encode_image`, in batches.

        Shapes:  float (B, 3, R, R) as `preprocess` gives, or uint8 pixels -> (B, D), not normalised, on the encoder's
                 device; float32, on CUDA in the precision's dtype.
        Raises:  InputError (a ValueError) for another shape.
        """
        return self._engine.encode_image(image)

    def encode_text(self, text: str | Iterable[str] | torch.Tensor) -> torch.Tensor:
        """Texts, or the tokens of texts, to features, as `model.encode_text`, in batches.

        Shapes:  T texts or int (T, L) -> (T, D), not normalised, on the encoder's device, in the dtype of images'.
        Raises:  TextTooLongError (a RuntimeError) for a text of more tokens than the model reads; InputError (a
                 ValueError) for ids that its vocabulary does not have.
        """
        return self._engine.encode_text(text if isinstance(text, torch.Tensor) else self.tokenize(text))

    def tokenize(
        self, texts: str | Iterable[str], context_length: int | None = None, truncate: bool = False
    ) -> torch.Tensor:
        """Texts to the token table of this model: as `clip.tokenize`, by its own vocabulary and length.

        Shapes:  T texts -> int32 (T, L).
        Raises:  TextTooLongError (a RuntimeError) unless `truncate`, InputTypeError (a TypeError) for what is no text.
        """
        length = context_length or self.context_length
        if self.tokenizer is None:
            return tokenize(texts, length, truncate)  # which takes the tokenizer that a user put in its place
        return token_table(self.tokenizer, texts, length, truncate)

    def encode_pixels(self, pixels: np.ndarray) -> np.ndarray:
        """Decoded and cropped images to features, in batches.

        Shapes:  uint8 (B, R, R, 3) -> float32 (B, D), not normalised.
        Raises:  InputError (a ValueError) for another shape or type.
        """
        if pixels.dtype != np.uint8:
            raise InputError(
                "`pixels`",
                f"found {pixels.dtype}",
                "uint8 (B, R, R, 3)",
                "Normalised ones go to encode_image.",
            )
        pixels = np.require(pixels, requirements=["C", "W"])  # torch takes neither mirrored nor read-only arrays
        return self._engine.encode_pixels(torch.from_numpy(pixels)).float().cpu().numpy()

    def encode_tokens(self, tokens: np.ndarray) -> np.ndarray:
        """The tokens of texts to features, in batches.

        Shapes:  int (T, L) -> float32 (T, D), not normalised.
        Raises:  InputError (a ValueError) for ids that the model's vocabulary does not have.
        """
        return self._engine.encode_text(torch.from_numpy(tokens)).float().cpu().numpy()

    def embed(self, images: Iterable[ImageLike], *, normalize: bool = True) -> np.ndarray:
        """Images in any form to vectors; they are decoded by threads ahead of the model.

        Shapes:  N paths, encoded images (bytes), PIL images or uint8 arrays (H, W, 3) -> float32 (N, D).
        Raises:  ImageError naming the image's place, for one that cannot be decoded.
        """

        def pixels_of(numbered: tuple[int, ImageLike]) -> np.ndarray:
            number, image = numbered
            try:
                return read_pixels(image, self.settings, self.decode)
            except ClipError as exc:
                raise type(exc)(f"image {number}: {str(exc).removeprefix('image: ')}") from exc
            except Exception as exc:
                raise ImageError(
                    f"image {number}",
                    f"cannot be decoded ({type(exc).__name__}: {exc})",
                    remedy="Leave it out, or repair it.",
                ) from exc

        if isinstance(images, (str, bytes, os.PathLike)):
            raise InputTypeError(
                "`images`",
                f"found {type(images).__name__}",
                "several images",
                "Pass a list of one.",
            )
        workers = available_cores()
        decoded = map_ahead(pixels_of, enumerate(images), workers=workers, ahead=self.batch_size + workers)
        parts = [self.encode_pixels(np.stack(batch)) for batch in batched(decoded, self.batch_size)]
        vectors = np.concatenate(parts) if parts else np.empty((0, self.dim), np.float32)  # (N, D)
        if not normalize:
            return vectors
        norms = np.linalg.norm(vectors, axis=1)
        for number in np.flatnonzero(~(np.isfinite(norms) & (norms > 0))):
            raise ImageError(
                f"image {number}",
                f"the model gave a vector of norm {norms[number]}",
                "one above 0",
                "Check the weights, or pass another precision.",
            )
        return unit_vectors(vectors)


def _checkpoint_of(model: CLIP) -> Checkpoint:
    """A loaded model's weights, and what its modules tell beside them.

    Raises:  InputError for a model whose modules a user replaced or hooked: the lean graph would pass them over.
    """
    block = next(model.transformer.blocks())
    visual = model.visual
    heads = next(visual.transformer.blocks()).attn.num_heads if isinstance(visual, VisionTransformer) else None
    state_dict = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    architecture = infer_architecture(
        state_dict,
        activation="quick_gelu" if isinstance(block.mlp[1], QuickGELU) else "gelu",
        vision_heads=heads,
        transformer_heads=block.attn.num_heads,
    )
    usual = {name: type(module) for name, module in build_on_meta(lambda: CLIP(**vars(architecture))).named_modules()}
    found = dict(model.named_modules())
    for name in usual.keys() | found.keys():
        module = found.get(name)
        hooked = module is not None and (module._forward_hooks or module._forward_pre_hooks)  # pyright: ignore[reportPrivateUsage]
        if type(module) is not usual.get(name) or hooked:
            raise InputError(
                f"model: {name or 'the model itself'} was replaced or hooked, expected OpenAI's modules as they are. "
                "Call model.encode_image, which runs what you changed, or pass the path of weights."
            )
    settings = model.preprocess_settings or PreprocessSettings(visual.input_resolution)
    return Checkpoint(architecture, state_dict, settings, source="a loaded model", tokenizer=model.tokenizer)


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
