"""OpenAI's module: the calls and private names that code written for openai/CLIP uses. Knows nothing about batch jobs.

COMPATIBILITY.md lists each name as same, differs or absent, with the reason.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

from .engine.devices import resolve_device, runs_fp16
from .foreign_distribution import warn_of_foreign_distribution
from .images.preprocess import Compose, Normalize, ToTensor, make_preprocess
from .images.transform import BICUBIC, CenterCrop, Resize
from .images.transform import convert_image_to_rgb as _convert_image_to_rgb
from .model import CLIP, build_model, load_weights
from .network.records import PreprocessSettings
from .simple_tokenizer import shared_tokenizer
from .text.tokens import token_table
from .weights import locate
from .weights.checkpoints import read_checkpoint

if TYPE_CHECKING:
    from .network.records import Checkpoint, PreprocessSettings


__all__ = ["available_models", "load", "tokenize"]

# Names that users import from here, besides those defined below.
_REEXPORTED = (BICUBIC, CenterCrop, Compose, Normalize, Resize, ToTensor, build_model, _convert_image_to_rgb)

_MODELS = dict(locate.URLS)  # users add to it and put another in its place; `load` reads it at each call


def __getattr__(name: str) -> object:
    if name == "_tokenizer":  # OpenAI builds it at import; here its 30 ms are spent at first use
        return shared_tokenizer()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def available_models() -> list[str]:
    """Names of the models `load` knows."""
    return list(_MODELS)


def _download(url: str, root: str | os.PathLike[str] | None = None) -> str:
    """Path of the verified local copy of the weights a URL names. Source: openai/CLIP@d05afc4 clip/clip.py:43."""
    return locate.cached_file(url, root)


def _transform(n_px: int) -> Compose:  # pyright: ignore[reportUnusedFunction]  for users, as OpenAI's
    """The transform for a model that reads `n_px` pixels a side. Source: openai/CLIP@d05afc4 clip/clip.py:79."""
    return make_preprocess(PreprocessSettings(n_px))


def load(
    name: str | os.PathLike[str],
    device: str | torch.device | None = None,
    jit: bool = False,
    download_root: str | os.PathLike[str] | None = None,
) -> tuple[CLIP, Compose]:
    """A model in eval mode on `device`, and the transform that makes its input of an image.

    `name` is one of `available_models()`, "sketch" or a path (OpenAI's archive, a state dict, safetensors). Without a
    device it is CUDA where there is one, else the CPU. Weights are fp16 and fp32 as `convert_weights` splits them on
    CUDA, and fp32 elsewhere. `jit=True` gives the same eager model: this package never runs TorchScript.

    Raises:  UnknownModelError, WeightsMissingError, CheckpointError, DeviceError, all of them RuntimeErrors.
    Source:  openai/CLIP@d05afc4 clip/clip.py:94.
    """
    if jit:
        warnings.warn(
            "clip.load(jit=True): the weights are loaded into the eager model, which gives the same features. "
            "TorchScript is never run, because it would run code of the file. Drop jit=True.",
            stacklevel=2,
        )
    warn_of_foreign_distribution()
    checkpoint = read_checkpoint(locate.locate(name, download_root, urls=_MODELS, download=_download))
    return load_model(checkpoint, resolve_device(device)), make_preprocess(checkpoint.preprocess)


def tokenize(texts: str | Iterable[str], context_length: int = 77, truncate: bool = False) -> torch.Tensor:
    """Turn texts into the token table that `encode_text` reads.

    Shapes:  T texts -> int32 (T, context_length); a row is start, tokens, end, then zeros.
    Raises:  TextTooLongError (a RuntimeError) unless `truncate`, InputTypeError (a TypeError) for what is no text.
    Source:  openai/CLIP@d05afc4 clip/clip.py:205.
    """
    tokenizer = globals().get("_tokenizer") or shared_tokenizer()  # users put another in its place
    return token_table(tokenizer, texts, context_length, truncate)


def load_model(checkpoint: Checkpoint, device: torch.device) -> CLIP:
    """The drop-in model of a checkpoint on a device, in the dtypes the reference has there. Empties its state dict."""
    model = load_weights(checkpoint.state_dict, checkpoint.architecture, device=device, mixed_fp16=runs_fp16(device))
    model.preprocess_settings, model.tokenizer = checkpoint.preprocess, checkpoint.tokenizer
    return model
