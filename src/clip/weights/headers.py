"""Write and read the header of an exported file: what the shapes of weights do not show."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, get_args

from ..errors import CheckpointError, quote
from ..network.architecture import infer_architecture, infer_pe, infer_siglip
from ..network.records import (
    HEADER_KEY,
    Activation,
    AnyArchitecture,
    Architecture,
    Checkpoint,
    Gelu,
    Interpolation,
    PeArchitecture,
    PreprocessSettings,
    ResizeMode,
    SiglipArchitecture,
)
from ..simple_tokenizer import SimpleTokenizer, make_tokenizer
from ..tokenizer_file import CLEANERS, TOKENIZER_FILE, TokenizerFile
from .configurations import read_choice, read_count, read_triple, refuse

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

EXPORT_AGAIN = "Export the weights again."
FILE = "header"  # what an error names
# The records that a header can hold, by the word in it; OpenAI's has none.
RECORDS: dict[str | None, Callable[..., AnyArchitecture]] = {
    None: Architecture, "siglip": SiglipArchitecture, "pe": PeArchitecture,
}  # fmt: skip
TOKENIZER_KEYS = ("clean", "pad", "pad_left", "adds", "start", "end")  # of a `TokenizerFile`, beside its content


def make_header(checkpoint: Checkpoint) -> dict[str, str]:
    """Return the metadata of a file with these weights. A vocabulary is in it, as a second file could get lost."""
    header: dict[str, Any] = {
        "architecture": asdict(checkpoint.architecture),
        "preprocess": asdict(checkpoint.preprocess),
    }
    content: dict[str, str] = {}
    if isinstance(checkpoint.tokenizer, SimpleTokenizer):
        header["merges"] = [" ".join(pair) for pair in checkpoint.tokenizer.bpe_ranks]
    elif checkpoint.tokenizer is not None:
        header["tokenizer"] = {key: getattr(checkpoint.tokenizer, key) for key in TOKENIZER_KEYS}
        if checkpoint.tokenizer.content is not None:
            content[TOKENIZER_FILE] = checkpoint.tokenizer.content
    return {**content, HEADER_KEY: json.dumps(header)}


def read_header(state_dict: dict[str, torch.Tensor], header: dict[str, Any], metadata: Mapping[str, str]) -> Checkpoint:
    """Read the records that `make_header` wrote into the header of weights with the network's names.

    Raises:  CheckpointError for records that are not ours or contradict the weights.
    """
    try:
        arguments = dict(header["architecture"])
        if isinstance(arguments["vision_layers"], list):
            arguments["vision_layers"] = tuple(arguments["vision_layers"])
        stated = RECORDS[arguments.get("network")](**arguments)
        settings = PreprocessSettings(**header["preprocess"])
    except (KeyError, TypeError, ValueError) as exc:
        found = f"header: not one that clip-turbo wrote ({quote(str(exc))})"
        raise CheckpointError("weights", found, "architecture and preprocess", EXPORT_AGAIN) from exc
    read_choice(FILE, "interpolation", settings.interpolation, get_args(Interpolation))
    read_choice(FILE, "resize_mode", settings.resize_mode, get_args(ResizeMode))
    architecture = _infer(state_dict, stated)
    for name, value in vars(stated).items():
        if (shown := getattr(architecture, name)) != value:
            found = f"header: describes {name} {quote(str(value))}, and the weights' shapes {shown}"
            raise CheckpointError("weights", found, "the same", EXPORT_AGAIN)
    if settings.resolution_px != architecture.image_resolution:
        raise refuse(FILE, "resolution_px", settings.resolution_px, architecture.image_resolution)
    mean, std = read_triple(FILE, "mean", settings.mean), read_triple(FILE, "std", settings.std, above=0)
    settings = replace(settings, mean=mean, std=std)
    if isinstance(architecture, SiglipArchitecture):
        tokenizer = _read_tokenizer(header.get("tokenizer"), metadata.get(TOKENIZER_FILE))
    else:
        merges = header.get("merges")
        tokenizer = None if merges is None else make_tokenizer(merges, architecture.vocab_size)
    return Checkpoint(architecture, state_dict, settings, source="", tokenizer=tokenizer)


def _infer(state_dict: dict[str, torch.Tensor], stated: AnyArchitecture) -> AnyArchitecture:
    """Return the architecture of the weights' shapes, with what they leave open as the header states it."""
    transformer_heads = read_count(FILE, vars(stated), "transformer_heads")
    if isinstance(stated, SiglipArchitecture):
        return infer_siglip(
            state_dict,
            vision_heads=read_count(FILE, vars(stated), "vision_heads"),
            transformer_heads=transformer_heads,
            vision_activation=read_choice(FILE, "vision_activation", stated.vision_activation, get_args(Gelu)),
            text_activation=read_choice(FILE, "text_activation", stated.text_activation, get_args(Gelu)),
            image_resolution=read_count(FILE, vars(stated), "image_resolution"),
        )
    if isinstance(stated, PeArchitecture):
        return infer_pe(
            state_dict,
            vision_heads=read_count(FILE, vars(stated), "vision_heads"),
            pool_heads=read_count(FILE, vars(stated), "pool_heads"),
            transformer_heads=transformer_heads,
        )
    return infer_architecture(
        state_dict,
        activation=read_choice(FILE, "activation", stated.activation, get_args(Activation)),
        vision_heads=None if stated.vision_heads is None else read_count(FILE, vars(stated), "vision_heads"),
        transformer_heads=transformer_heads,
    )


def _read_tokenizer(header: Any, content: str | None) -> TokenizerFile:
    try:
        arguments = dict(header)
        adds = arguments["adds"]
        arguments["adds"] = None if adds is None else (bool(adds[0]), bool(adds[1]))
        tokenizer = TokenizerFile(content, f"{TOKENIZER_FILE} in the header", **arguments)
    except (LookupError, TypeError, ValueError) as exc:
        found = f"header: no tokenizer that clip-turbo wrote ({quote(str(exc))})"
        raise CheckpointError("weights", found, "one", EXPORT_AGAIN) from exc
    read_choice(FILE, "clean", tokenizer.clean, tuple(CLEANERS))
    return tokenizer
