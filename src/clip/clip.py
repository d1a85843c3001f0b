"""OpenAI's module: the functions and private names that code written for openai/CLIP uses.

COMPATIBILITY.md lists each name as same, differs or absent, with the reason.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from typing import Any, cast

import torch

from .engine.devices import make_backend, resolve_device, runs_fp16
from .errors import InputError
from .foreign_distribution import warn_of_foreign_distribution
from .images.preprocess import (
    Compose,
    _convert_image_to_rgb,  # pyright: ignore[reportPrivateUsage]  OpenAI's name
    find_transform,
    make_preprocess,
)
from .jobs.options import Precision
from .lazy_names import resolve_lazily
from .model import CLIP, build_model, load_weights
from .network.meta_init import fill
from .network.records import Architecture, Checkpoint, PreprocessSettings
from .simple_tokenizer import shared_tokenizer
from .text.tokens import token_table
from .weights import locate
from .weights.checkpoints import read_checkpoint
from .weights.families import AnyNetwork, lay_out

__all__ = ["available_models", "load", "tokenize"]

_REEXPORTED = (build_model, _convert_image_to_rgb)  # users import them from here

_MODELS = dict(locate.URLS)  # users add to it and replace it; `load` reads it at each call

# Names that OpenAI's module imports and users take from here. Those of torchvision are torchvision's if it is there.
_TRANSFORMS = ("CenterCrop", "Compose", "InterpolationMode", "Normalize", "Resize", "ToTensor")
_IMPORTS = {
    "Image": "PIL.Image",
    "List": "typing:List",
    "Union": "typing:Union",
    "_Tokenizer": ".simple_tokenizer:SimpleTokenizer",
    "hashlib": "hashlib",
    "tqdm": "tqdm:tqdm",
    "urllib": "urllib",
    "version": "packaging.version",
}
_import_lazily, _list_names = resolve_lazily(globals(), _IMPORTS)


def __getattr__(name: str) -> object:
    if name == "_tokenizer":  # OpenAI builds it at import; here it is built at first use, in 30 ms
        return shared_tokenizer()
    if name == "BICUBIC":
        return find_transform("InterpolationMode").BICUBIC
    return find_transform(name) if name in _TRANSFORMS else _import_lazily(name)


def __dir__() -> list[str]:
    return sorted({*_list_names(), *_TRANSFORMS, "BICUBIC", "_tokenizer"})


def available_models() -> list[str]:
    """Return the names of the models that `load` knows."""
    return list(_MODELS)


def _download(url: str, root: str | os.PathLike[str] | None = None) -> str:
    """Return the path of the verified local copy of a URL's file. Source: openai/CLIP@d05afc4 clip/clip.py:43."""
    return locate.ensure_cached(url, root)


def _transform(n_px: int) -> Compose:  # pyright: ignore[reportUnusedFunction]  for users, as OpenAI's
    """Return the transform of a model that reads `n_px` pixels a side. Source: openai/CLIP@d05afc4 clip/clip.py:79."""
    return make_preprocess(PreprocessSettings(n_px))


def load(
    name: str | os.PathLike[str],
    device: str | torch.device | None = None,
    jit: bool = False,
    download_root: str | os.PathLike[str] | None = None,
    *,
    architecture: str | os.PathLike[str] | None = None,
    fast: bool = True,
    precision: Precision = "reference",
) -> tuple[AnyNetwork, Compose]:
    """Return a model in eval mode on `device`, and the transform that turns an image into its input.

    `name` is one of `available_models()`, "sketch", `hf-hub:ORG/NAME[@REVISION]` or a path: OpenAI's archive, a state
    dict, safetensors, a folder of transformers or open_clip. `architecture` says what weights without a configuration
    leave open: "ViT-H-14" of open_clip, "ViT-B/32" of OpenAI, or the path of a configuration. `device` defaults to CUDA
    where there is one, else the CPU. On CUDA the weights are fp16 and fp32 as `convert_weights` splits them, elsewhere
    fp32. `jit=True` gives the same eager model: this package never runs TorchScript.

    Weights of a SigLIP give a `clip.network.siglip.SigLIP`, those of a PE-Core a `clip.network.pe.PE`, which are eager
    and fp32 everywhere; `clip.Encoder` is their fast path.

    Without `fast` the model is eager in every call; else `encode_image` and `encode_text` run the lean graph where
    nothing but rounding can differ, in `precision`: "reference", or a faster one of the device's, such as "bf16".

    Raises:  UnknownModelError, WeightsMissingError, DownloadError, CheckpointError, DeviceError, all RuntimeErrors;
             InputError (a ValueError) for another `architecture` or `precision`.
    Source:  openai/CLIP@d05afc4 clip/clip.py:94.
    """
    if jit:
        warnings.warn(
            "clip.load(jit=True): the weights are loaded into the eager model, which gives the same features. "
            "TorchScript is never run, because it would run code of the file. Drop jit=True.",
            stacklevel=2,
        )
    warn_of_foreign_distribution()
    path = locate.locate(name, download_root, urls=_MODELS, download=_download)
    checkpoint, place = read_checkpoint(path, architecture), resolve_device(device)
    if precision != "reference" and make_backend(place, precision).needs_calibration:
        remedy = "Pass another one, or use clip.Encoder, which is calibrated."
        raise InputError("`precision`", f"{precision!r} needs images to quantise by", remedy=remedy)
    if not isinstance(checkpoint.architecture, Architecture) and precision != "reference":
        remedy = "Leave it out, or use clip.Encoder, which computes in it."
        raise InputError("`precision`", f"{precision!r} for a network that is eager", "'reference'", remedy)
    model = load_model(checkpoint, place)
    if isinstance(model, CLIP):
        model.fast, model.precision = fast, precision
    return model, make_preprocess(checkpoint.preprocess)


def tokenize(texts: str | Iterable[str], context_length: int = 77, truncate: bool = False) -> torch.Tensor:
    """Turn texts into the token table that `encode_text` reads.

    Shapes:  T texts -> int32 (T, context_length); a row is start, tokens, end, then zeros.
    Raises:  TextTooLongError (a RuntimeError) unless `truncate`, InputTypeError (a TypeError) for other types.
    Source:  openai/CLIP@d05afc4 clip/clip.py:205.
    """
    tokenizer = globals().get("_tokenizer") or shared_tokenizer()  # users replace it
    return token_table(tokenizer, texts, context_length, truncate)


def load_model(checkpoint: Checkpoint, device: torch.device) -> AnyNetwork:
    """Return a checkpoint's model on a device, in the dtypes that OpenAI's has there. Empties its state dict.

    OpenAI's goes through fp16 on a CPU too. Its archives hold fp16, so features are the same; but fp32 weights, which
    OpenAI's cannot load, keep their precision here.
    """
    weights, a = checkpoint.state_dict, checkpoint.architecture
    if isinstance(a, Architecture):
        model = load_weights(weights, a, device=device, mixed_fp16=runs_fp16(device))
    else:
        model = fill(lay_out(a).float(), weights, device)
    model.preprocess_settings = checkpoint.preprocess
    model.tokenizer = cast("Any", checkpoint.tokenizer)  # of a SigLIP a file, if only to refuse texts
    return model
