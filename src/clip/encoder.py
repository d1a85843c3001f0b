"""The library's front door: an `Encoder` turns images and texts into vectors."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import asdict
from functools import cached_property, partial
from typing import TYPE_CHECKING, Literal, get_args, overload

import numpy as np
import torch
from PIL import Image

from .clip import tokenize
from .engine.devices import make_backend, resolve_device
from .engine.engine import make_engine
from .engine.quantize import Calibration
from .errors import ImageError, InputError, InputTypeError
from .fast.loaded_model import read_loaded_model
from .foreign_distribution import warn_of_foreign_distribution
from .images.preprocess import Compose, make_preprocess
from .images.stream import BadImage, DecodedImage, decode_stream, split_batches
from .jobs.options import PixelMode, Precision
from .text.tokens import token_table
from .vectors import unit_vectors, usable_norms
from .weights import locate
from .weights.checkpoints import draw_checkpoint, read_checkpoint
from .weights.families import NETWORKS, AnyNetwork

if TYPE_CHECKING:
    from collections.abc import Generator

    from .images.windows import Windows
    from .records import Failure

    ImageLike = str | os.PathLike[str] | bytes | Image.Image | np.ndarray

OnError = Literal["raise", "none"]  # of a bad image: raise its error, or return NaNs or a Failure in its place


class Encoder:
    """A model ready for inference: images and texts to vectors, in batches of any size, from any thread.

    It runs the lean graph (engine/graph.py), whose vectors are those of the model to within rounding. A tower is
    compiled when it is first used, which takes about half a second for ViT-B/32 on a CPU.

    `embed_images` and `embed_texts` return unit vectors as arrays. `encode_image` and `encode_text` return raw features
    as tensors, like the methods of OpenAI's model. An encoder made of a name or a path can be pickled: docs/encoder.md.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | AnyNetwork = "ViT-B/32",
        *,
        device: str | torch.device | None = None,
        precision: Precision = "reference",
        batch_size: int | Literal["auto"] = "auto",
        threads: int | None = None,
        untrained: int | None = None,
        download_root: str | os.PathLike[str] | None = None,
        decode: PixelMode = "exact",
        architecture: str | os.PathLike[str] | None = None,
        max_pixels: int | None = None,
    ) -> None:
        """Load a released model by name or "sketch", a weights file by path, or take the weights of a loaded model.

        The default device, also called "auto", is CUDA where there is one, else the CPU; for a loaded model, its own.
        Vectors are computed in `precision`; "reference" is that of OpenAI's code: fp32 on a CPU, fp16 on CUDA.
        `threads` is for the model on a CPU, default: one per core. `untrained` draws the weights of the named
        architecture at random from this seed instead of reading any. With `decode` "fast" `embed_images` makes pixels
        that are nearly those of OpenAI's code: docs/images.md. `architecture` is that of `clip.load`, for weights that
        do not show theirs: docs/weights.md. `max_pixels` limits images that come as paths or bytes, instead of the
        program's own limit, twice PIL.Image.MAX_IMAGE_PIXELS.

        Raises:  UnknownModelError, WeightsMissingError, CheckpointError; DeviceError for a device or a precision that
                 this machine lacks; InputError for a batch size under 1, for another word for `decode`, for another
                 `architecture` and for a loaded model whose modules are changed.
        """
        size = None if batch_size == "auto" else batch_size
        _check_options({"batch_size": size, "threads": threads, "max_pixels": max_pixels}, decode)
        if architecture is not None and (isinstance(model, NETWORKS) or untrained is not None):
            found = "found one for a loaded model" if isinstance(model, NETWORKS) else "found untrained too"
            raise InputError("`architecture`", found, "the name or path of weights", "Leave it out.")
        warn_of_foreign_distribution()
        if isinstance(model, NETWORKS) and device in (None, "auto"):
            device = next(model.parameters()).device
        backend = make_backend(resolve_device(device), precision, threads)
        self._arguments = {"device": device, "precision": precision, "batch_size": batch_size, "threads": threads}
        self._arguments |= {"untrained": untrained, "download_root": download_root, "decode": decode}
        self._arguments |= {"architecture": architecture, "max_pixels": max_pixels}
        self._model = None if isinstance(model, NETWORKS) else model  # with the arguments, what a pickle keeps
        self.model_name = type(model).__name__ if isinstance(model, NETWORKS) else str(model)
        if isinstance(model, NETWORKS):
            checkpoint = read_loaded_model(model)
        elif untrained is None:
            checkpoint = read_checkpoint(locate.locate(model, download_root), architecture)
        else:
            checkpoint = draw_checkpoint(self.model_name, untrained)
        self.source, self._files, self.tokenizer = checkpoint.source, checkpoint.files, checkpoint.tokenizer
        self.settings = checkpoint.preprocess
        self.resolution_px = self.settings.resolution_px
        self.architecture = asdict(checkpoint.architecture)
        self.dim = checkpoint.architecture.embed_dim
        self.logit_scale = float(checkpoint.state_dict["logit_scale"].float().exp())  # of cosines, before a softmax
        bias = checkpoint.state_dict.get("logit_bias")
        self.logit_bias = None if bias is None else float(bias.float())  # of a SigLIP, for a sigmoid
        self.device = backend.device
        self.precision: Precision = precision
        self.decode: PixelMode = decode  # how `embed_images` makes pixels of images
        self.max_pixels = max_pixels  # of an image that comes encoded
        self.computed_in = backend.computed_in  # the meaning of the precision here
        self.backend = backend.name
        self.calibration: Calibration | None = None
        self._engine = make_engine(checkpoint, backend, size)

    def __repr__(self) -> str:
        device = str(self.device)
        return f"Encoder({self.model_name!r}, device={device!r}, precision={self.precision!r}, dim={self.dim})"

    def __reduce__(self) -> tuple[partial[Encoder], tuple[()]]:
        """Pickle the name or the path and the arguments; whoever unpickles reads the weights again.

        Raises:  InputTypeError (a TypeError) for an encoder of a loaded model, and for a calibrated one.
        """
        if self._model is None:
            remedy = "Save the weights with torch.save(model.state_dict(), path), and make it of that path."
            raise InputTypeError("Encoder", "one that was made of a loaded model cannot be pickled", remedy=remedy)
        if self.calibration is not None:
            remedy = "Pickle it before, and call calibrate in each process: the same images give the same vectors."
            raise InputTypeError("Encoder", "one that was calibrated cannot be pickled", remedy=remedy)
        return partial(type(self), self._model, **self._arguments), ()

    @property
    def batch_size(self) -> int:
        """Images that run at a time; fewer after memory ran out."""
        return self._engine.batch_size

    @property
    def context_length(self) -> int:
        """Tokens of a text that the model reads, start and end among them."""
        return self._engine.architecture.context_length

    @property
    def needs_calibration(self) -> bool:
        """Whether the precision is one that `calibrate` must be called for before the first image."""
        return self._engine.backend.needs_calibration

    @cached_property
    def preprocess(self) -> Compose:
        """The transform that `clip.load` returns with this model: an image to the float32 (3, R, R) that it reads."""
        return make_preprocess(self.settings)

    @cached_property
    def weights_sha256(self) -> str | None:
        """The sha256 of the weights file; of several, the sha256 of their hashes, one a line; None without a file."""
        hashes = [locate.file_sha256(file) for file in self._files]
        if len(hashes) > 1:
            return hashlib.sha256("\n".join(hashes).encode()).hexdigest()
        return hashes[0] if hashes else None

    def calibrate(self, images: Iterable[ImageLike] | np.ndarray) -> None:
        """Quantise an int8 encoder by these images, once, before it is used: a hundred or more of the kind it is for.

        The same images and weights give the same vectors. Quantising takes half a minute for ViT-B/32 on two cores,
        at the first image. Texts are computed in fp32.

        Shapes:  N images in any form that `embed_images` takes, or uint8 (N, R, R, 3).
        Raises:  InputError for no image, for a precision that needs none, and after the first use; ImageError for an
                 image that cannot be decoded.
        """
        if not isinstance(images, np.ndarray):
            images = self._read_pixels(images)
        side = self.resolution_px
        if not len(images) or images.shape[1:] != (side, side, 3) or images.dtype != np.uint8:
            found = f"found {images.shape} of {images.dtype}"
            raise InputError("`images`", found, f"some, uint8 (N, {side}, {side}, 3)", "Pass images, or their pixels.")
        calibration = Calibration(images)
        self._engine.calibrate(calibration)
        self.calibration = calibration

    @overload
    def embed_images(
        self, images: Iterable[ImageLike], *, normalize: bool = True, on_error: Literal["raise"] = "raise"
    ) -> np.ndarray: ...

    @overload
    def embed_images(
        self, images: Iterable[ImageLike], *, normalize: bool = True, on_error: Literal["none"]
    ) -> tuple[np.ndarray, list[Failure]]: ...

    def embed_images(
        self, images: Iterable[ImageLike], *, normalize: bool = True, on_error: OnError = "raise"
    ) -> np.ndarray | tuple[np.ndarray, list[Failure]]:
        """Turn images into unit vectors; threads decode them ahead of the model.

        With `on_error` "none" a bad image gets a row of NaNs, and a `Failure` in the list that is returned beside the
        vectors: its `id` is the image's place as text, its `path` the image's path if it was one. Without `normalize`
        vectors are the model's features, of any length and unchecked.

        Shapes:  N paths, encoded images (bytes), PIL images or uint8 arrays (H, W, 3) -> float32 (N, D).
        Raises:  ImageError or InputTypeError for an image that cannot be decoded, with its place; InputTypeError (a
                 TypeError) for a single image.
        """
        _check_images(images, on_error)
        parts = [np.empty((0, self.dim), np.float32)]
        failures: list[Failure] = []
        with closing(self._embed_batches(images, normalize)) as batches:
            for vectors, reasons in batches:
                parts.append(vectors)
                for bad in filter(None, reasons):
                    if on_error == "raise":
                        raise bad.make_error() from bad.cause
                    failures.append(bad.make_failure())
        vectors = np.concatenate(parts)  # (N, D)
        return vectors if on_error == "raise" else (vectors, failures)

    embed = embed_images

    @overload
    def embed_stream(
        self, images: Iterable[ImageLike], *, normalize: bool = True, on_error: Literal["raise"] = "raise"
    ) -> Iterator[np.ndarray]: ...

    @overload
    def embed_stream(
        self, images: Iterable[ImageLike], *, normalize: bool = True, on_error: Literal["none"]
    ) -> Iterator[np.ndarray | Failure]: ...

    def embed_stream(
        self, images: Iterable[ImageLike], *, normalize: bool = True, on_error: OnError = "raise"
    ) -> Iterator[np.ndarray | Failure]:
        """Yield one result per image, in order, for any number of images: a vector, or with "none" a `Failure`.

        Memory holds two batches: images are taken from the iterable as they are needed, and batched here.

        Shapes:  images as of `embed_images` -> a float32 (D,) for each.
        Raises:  as `embed_images`, after the vectors of the images before.
        """
        _check_images(images, on_error)
        return self._stream(images, normalize, on_error)

    def _stream(
        self, images: Iterable[ImageLike], normalize: bool, on_error: OnError
    ) -> Iterator[np.ndarray | Failure]:
        with closing(self._embed_batches(images, normalize)) as batches:
            for vectors, reasons in batches:
                for vector, bad in zip(vectors, reasons, strict=True):
                    if bad is None:
                        yield vector.copy()  # a view would keep its whole batch in memory
                    elif on_error == "raise":
                        raise bad.make_error() from bad.cause
                    else:
                        yield bad.make_failure()

    def _decode(self, images: Iterable[ImageLike]) -> Generator[DecodedImage | BadImage]:
        return decode_stream(images, self.settings, self.decode, ahead=self.batch_size, max_pixels=self.max_pixels)

    def _read_pixels(self, images: Iterable[ImageLike]) -> np.ndarray:
        """Return the pixels of images, uint8 (N, R, R, 3)."""
        pixels = [np.empty((0, self.resolution_px, self.resolution_px, 3), np.uint8)]
        with closing(self._decode(images)) as decoded:
            for image in decoded:
                if isinstance(image, BadImage):
                    raise image.make_error() from image.cause
                pixels.append(image.pixels[None])
        return np.concatenate(pixels)

    def _embed_batches(
        self, images: Iterable[ImageLike], normalize: bool
    ) -> Generator[tuple[np.ndarray, list[BadImage | None]]]:
        """Yield the vectors (B, D) of a batch, NaN for bad images, and for each image None or the reason."""
        for batch in split_batches(self._decode(images), self.batch_size):
            reasons = [image if isinstance(image, BadImage) else None for image in batch]
            good = [image for image in batch if isinstance(image, DecodedImage)]
            rows = [row for row, reason in enumerate(reasons) if reason is None]
            vectors = np.full((len(batch), self.dim), np.nan, np.float32)
            if good:
                vectors[rows] = self.encode_pixels(np.stack([image.pixels for image in good]))
            if normalize:
                norms = np.linalg.norm(vectors, axis=1)  # (B,)
                usable = usable_norms(norms)
                vectors[usable] = unit_vectors(vectors[usable])
                vectors[~usable] = np.nan
                for row, image in zip(rows, good, strict=True):
                    if not usable[row]:
                        error = ImageError("image", *_explain_norm(norms[row]))
                        reasons[row] = BadImage(image.place, image.path, "encode", error)
            yield vectors, reasons

    def embed_texts(self, texts: str | Iterable[str]) -> np.ndarray:
        """Turn texts into unit vectors. A str is one text, as for `clip.tokenize`.

        Shapes:  N texts -> float32 (N, D).
        Raises:  TextTooLongError (a RuntimeError) for more tokens than the model reads, InputTypeError (a TypeError)
                 for other types.
        """
        if isinstance(texts, torch.Tensor):
            raise InputTypeError("`texts`", "found Tensor", "texts", "Call encode_text, which takes their tokens.")
        features = self.encode_text(texts).float().cpu().numpy()
        norms = np.linalg.norm(features, axis=1)
        for place in np.flatnonzero(~usable_norms(norms)):
            raise InputError(f"text {place}", *_explain_norm(norms[place]))
        return unit_vectors(features)

    def encode_image(self, image: torch.Tensor) -> torch.Tensor:
        """Turn preprocessed images into features like `model.encode_image`, in batches.

        Shapes:  float (B, 3, R, R) of `preprocess`, or uint8 pixels -> (B, D), not normalised, on the encoder's device;
                 float32, on CUDA in the precision's dtype.
        Raises:  InputError (a ValueError) for another shape; InputTypeError (a TypeError) for anything but a tensor.
        """
        _check_type("image", image, torch.Tensor, "Call embed_images([image]), or make a tensor of a preprocessed one.")
        return self._engine.encode_image(image)

    def encode_text(self, text: str | Iterable[str] | torch.Tensor) -> torch.Tensor:
        """Turn texts, or the tokens of texts, into features like `model.encode_text`, in batches.

        Shapes:  T texts or int (T, L) -> (T, D), not normalised, on the encoder's device, in the dtype of images'.
        Raises:  TextTooLongError (a RuntimeError) for a text of more tokens than the model reads; InputError (a
                 ValueError) for ids that its vocabulary does not have; InputTypeError (a TypeError) for anything else.
        """
        return self._engine.encode_text(text if isinstance(text, torch.Tensor) else self.tokenize(text))

    def tokenize(
        self, texts: str | Iterable[str], context_length: int | None = None, truncate: bool = False
    ) -> torch.Tensor:
        """Turn texts into the token table of this model: `clip.tokenize` with the model's vocabulary and length.

        Shapes:  T texts -> int32 (T, L).
        Raises:  TextTooLongError (a RuntimeError) unless `truncate`, InputTypeError (a TypeError) for other types.
        """
        length = context_length or self.context_length
        if self.tokenizer is None:
            return tokenize(texts, length, truncate)  # with the tokenizer that a user may have put in its place
        return token_table(self.tokenizer, texts, length, truncate)

    def encode_pixels(self, pixels: np.ndarray) -> np.ndarray:
        """Turn decoded and cropped images into features, in batches.

        Shapes:  uint8 (B, R, R, 3) -> float32 (B, D), not normalised.
        Raises:  InputError (a ValueError) for another shape or type.
        """
        _check_type("pixels", pixels, np.ndarray, "Call encode_image for a tensor.")
        if pixels.dtype != np.uint8:
            found = f"found {pixels.dtype}"
            raise InputError("`pixels`", found, "uint8 (B, R, R, 3)", "Normalised ones go to encode_image.")
        pixels = np.require(pixels, requirements=["C", "W"])  # torch takes neither mirrored nor read-only arrays
        return self._engine.encode_pixels(torch.from_numpy(pixels)).float().cpu().numpy()

    def warm_up(self, images: int) -> None:
        """Do now what the first batch of so many images would wait for; on a GPU that takes seconds."""
        self._engine.warm_up(images)

    def encode_windows(self, windows: Windows) -> np.ndarray:
        """Resize images on the device, as Pillow does to the bit, and encode them. Shapes: N -> float32 (N, D)."""
        return self._engine.encode_windows(windows).float().cpu().numpy()

    def encode_tokens(self, tokens: np.ndarray) -> np.ndarray:
        """Turn the tokens of texts into features, in batches.

        Shapes:  int (T, L) -> float32 (T, D), not normalised.
        Raises:  InputError (a ValueError) for ids that the model's vocabulary does not have.
        """
        _check_type("tokens", tokens, np.ndarray, "Call encode_text for a tensor.")
        return self._engine.encode_text(torch.from_numpy(tokens)).float().cpu().numpy()


def _explain_norm(norm: float) -> tuple[str, str, str]:
    found, remedy = f"the model gave a vector of norm {norm}", "Check the weights, or pass another precision."
    return found, "a finite one above 0", remedy


def _check_options(counts: dict[str, object], decode: object) -> None:
    for name, number in counts.items():
        if number is not None and (not isinstance(number, int) or number < 1):
            raise InputError(f"`{name}`", f"found {number!r}", "at least 1", "Pass a whole number.")
    if decode not in get_args(PixelMode):
        raise InputError("`decode`", f"found {decode!r}", f"one of {get_args(PixelMode)}", "Pass one.")


def _check_type(name: str, value: object, expected: type, remedy: str) -> None:
    if not isinstance(value, expected):
        raise InputTypeError(f"`{name}`", f"found {type(value).__name__}", expected.__name__, remedy)


def _check_images(images: object, on_error: object) -> None:
    """Refuse a single image, tensors, and another word for `on_error`. Raises: InputTypeError, InputError."""
    if on_error not in get_args(OnError):
        raise InputError("`on_error`", f"found {on_error!r}", f"one of {get_args(OnError)}", "Pass one.")
    if isinstance(images, torch.Tensor):
        raise InputTypeError("`images`", "found Tensor", "images", "Call encode_image, which takes preprocessed ones.")
    single = isinstance(images, (str, bytes, os.PathLike, Image.Image))
    if single or (isinstance(images, np.ndarray) and images.ndim == 3) or not isinstance(images, Iterable):
        name = "one array" if isinstance(images, np.ndarray) else type(images).__name__
        raise InputTypeError("`images`", f"found {name}", "several images", "Pass a list; [image] is a list of one.")
