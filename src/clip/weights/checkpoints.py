"""A local file or folder of weights -> a Checkpoint. Knows nothing about names, caches or networks.

Takes OpenAI's TorchScript archives, state dicts saved by any version of PyTorch, safetensors, and the folders of
transformers' CLIPModel and of open_clip, whose configurations tell what shapes cannot.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from ..errors import CheckpointError, UnknownModelError, quote
from ..model import CLIP
from ..network.architecture import drop_archive_buffers, infer_architecture
from ..network.meta_init import build_on_meta, check_fit
from ..network.records import HEADER_KEY, Checkpoint, PreprocessSettings
from .layouts import Layout, from_header, from_open_clip, from_transformers, is_transformers
from .releases import RELEASES
from .restricted_pickle import MAX_KEY
from .torch_file import read_torch_file

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

# Where training scripts put the state dict in what they save.
WRAPPERS = ("state_dict", "model_state_dict", "model")
PARALLEL_PREFIX = "module."  # DataParallel and DistributedDataParallel put it before every key
OPEN_CLIP_CONFIG, TRANSFORMERS_CONFIG = "open_clip_config.json", "config.json"
TRANSFORMERS_PREPROCESS = "preprocessor_config.json"
OPEN_CLIP_PREFIX = "open_clip_"  # of a file's name: such weights mean nothing without their configuration
# Files of a folder, the first that is there.
WEIGHTS = {
    OPEN_CLIP_CONFIG: ("open_clip_model.safetensors", "open_clip_pytorch_model.bin"),
    TRANSFORMERS_CONFIG: ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
                          "pytorch_model.bin.index.json"),
}  # fmt: skip


# What a configuration that holds other types, numbers or names than it should makes of the code that reads it.
_OF_ANOTHER_MAKE = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError, OSError)


def read_checkpoint(path: Path) -> Checkpoint:
    """The CLIP in a local file or folder; its architecture is read off the shapes of its weights.

    Raises:  UnsafeCheckpointError for a file that carries more than tensors and plain values, CheckpointError
             (a RuntimeError) for one that is damaged, no CLIP, or not what its configuration says.
    """
    try:
        files = _weights_in(path) if path.is_dir() else [path]
        content: dict[str, Any] = {}
        header = None
        for file in files:
            tensors, header = _read_file(file)
            content |= tensors
        state_dict = drop_archive_buffers(_check_tensors(content))
        _check_aliases(state_dict, sum(file.stat().st_size for file in files))
        layout = from_header(state_dict, json.loads(header)) if header else _layout(state_dict, files[0])
        check_fit(layout.state_dict, build_on_meta(lambda: CLIP(**vars(layout.architecture))).state_dict())
    except CheckpointError as exc:
        named = str(exc).startswith(str(path))
        raise exc if named else type(exc)(f"{path}: {exc}") from exc
    except _OF_ANOTHER_MAKE as exc:
        raise CheckpointError(
            path,
            f"not as its library writes it ({type(exc).__name__}: {quote(str(exc))})",
            "weights and their configuration",
            "Fetch them again.",
        ) from exc
    return Checkpoint(
        layout.architecture,
        layout.state_dict,
        layout.preprocess,
        source=str(path),
        files=tuple(files),
        tokenizer=layout.tokenizer,
    )


def export(checkpoint: Checkpoint, path: Path, notes: Mapping[str, str] | None = None) -> None:
    """Write a checkpoint as one safetensors file with OpenAI's names, which `read_checkpoint` takes.

    Its header keeps what shapes do not tell, for models whose activation, head width or vocabulary is not OpenAI's;
    and `notes`, which nothing reads but people.
    """
    from safetensors.torch import save_file

    header: dict[str, Any] = {
        "architecture": asdict(checkpoint.architecture),
        "preprocess": asdict(checkpoint.preprocess),
    }
    if checkpoint.tokenizer is not None:
        header["merges"] = [" ".join(pair) for pair in checkpoint.tokenizer.bpe_ranks]
    tensors = {key: tensor.contiguous() for key, tensor in checkpoint.state_dict.items()}
    save_file(tensors, path, metadata={**(notes or {}), HEADER_KEY: json.dumps(header)})


def untrained(name: str, seed: int) -> Checkpoint:
    """A released architecture with weights drawn at random, the same for the same seed and version of torch.

    Raises:  UnknownModelError (a RuntimeError) for a name that was not released.
    """
    if name not in RELEASES:
        raise UnknownModelError(
            f"model {name!r}",
            "not found",
            f"one of {list(RELEASES)}",
            "Untrained weights need a released name.",
        )
    architecture = RELEASES[name].architecture
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIP(**vars(architecture))
    settings = PreprocessSettings(architecture.image_resolution)
    return Checkpoint(architecture, model.state_dict(), settings, source=f"untrained:{seed}")


def _weights_in(folder: Path) -> list[Path]:
    for config, names in WEIGHTS.items():
        for name in names if (folder / config).is_file() else ():
            if (folder / name).is_file():
                return _shards(folder / name) if name.endswith(".index.json") else [folder / name]
    raise CheckpointError(
        f"a folder without {OPEN_CLIP_CONFIG} or {TRANSFORMERS_CONFIG} and its weights, expected that of an open_clip "
        "model or of a CLIPModel. Pass one, or a weights file."
    )


def _shards(index: Path) -> list[Path]:
    names = set(_read_json(index).get("weight_map", {}).values())
    if not names or any(not isinstance(name, str) or "/" in name or "\\" in name for name in names):
        raise CheckpointError(
            index,
            "names no files beside it",
            "a weight_map",
            "Fetch it again.",
        )
    return [index.with_name(name) for name in sorted(names)]


def _layout(state_dict: dict[str, torch.Tensor], file: Path) -> Layout:
    open_clip, transformers = file.with_name(OPEN_CLIP_CONFIG), file.with_name(TRANSFORMERS_CONFIG)
    if is_transformers(state_dict):
        if not transformers.is_file():
            raise CheckpointError(
                f"weights of a CLIPModel without their {TRANSFORMERS_CONFIG}, expected it beside them",
                "shapes do not tell the activation",
                remedy="Put it there.",
            )
        preprocess = file.with_name(TRANSFORMERS_PREPROCESS)
        settings = _read_json(preprocess) if preprocess.is_file() else None
        return from_transformers(state_dict, _read_json(transformers), settings)
    if open_clip.is_file():
        return from_open_clip(state_dict, _read_json(open_clip))
    if file.name.startswith(OPEN_CLIP_PREFIX):
        raise CheckpointError(
            f"weights of an open_clip model without their {OPEN_CLIP_CONFIG}, expected it beside them",
            "shapes do not tell the activation",
            remedy="Put it there.",
        )
    architecture = infer_architecture(state_dict)
    return Layout(state_dict, architecture, PreprocessSettings(architecture.image_resolution))


def _read_file(path: Path) -> tuple[dict[str, Any], str | None]:
    """The state dict in a file, and what `export` wrote into its header."""
    if not _is_safetensors(path):
        return _unwrapped(read_torch_file(path)), None
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  it is no dict
            return tensors, (file.metadata() or {}).get(HEADER_KEY)
    # Its reader checks the header; torch and Python object to what that lets through, shapes of 0 x 2**63 for one.
    except (SafetensorError, TypeError, ValueError, OverflowError, RuntimeError, MemoryError) as exc:
        raise CheckpointError(
            path,
            f"{quote(str(exc))}",
            "safetensors",
            "Fetch the file again.",
        ) from exc


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as exc:
        raise CheckpointError(
            path,
            f"not JSON ({quote(str(exc))})",
            "a configuration",
            "Fetch it again.",
        ) from exc
    if not isinstance(content, dict):
        raise CheckpointError(
            path,
            f"a {type(content).__name__}",
            "an object",
            "Fetch it again.",
        )
    return content


def _is_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"  # eight bytes of length, then a JSON object


def _unwrapped(content: Any) -> dict[str, Any]:
    if isinstance(content, dict):
        for wrapper in WRAPPERS:
            if isinstance(content.get(wrapper), dict):
                return content[wrapper]
        return content
    raise CheckpointError(f"found a {type(content).__name__}, expected a state dict. Save the model's state_dict().")


def _check_tensors(content: dict[Any, Any]) -> dict[str, torch.Tensor]:
    """The same dict where it is one of tensors, without DataParallel's prefix."""
    if not content:
        raise CheckpointError("found no entries, expected a state dict. Save the model's state_dict().")
    for key, value in content.items():
        if isinstance(key, str) and (len(key) > MAX_KEY or not key.isprintable()):
            raise CheckpointError(f"entry {quote(key)} is no name of a weight, expected those of a CLIP. Pass one.")
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise CheckpointError(
                f"entry {quote(str(key))} is a {type(value).__name__}, expected a tensor in a state dict, or the state "
                f"dict under one of {WRAPPERS}. Save the model's state_dict()."
            )
    if all(key.startswith(PARALLEL_PREFIX) for key in content):
        return {key.removeprefix(PARALLEL_PREFIX): value for key, value in content.items()}
    return content


def _check_aliases(state_dict: dict[str, torch.Tensor], file_bytes: int) -> None:
    total = sum(tensor.numel() * tensor.element_size() for tensor in state_dict.values())
    if total > file_bytes:
        raise CheckpointError(
            f"its tensors take {total:,} bytes and the file {file_bytes:,}, expected tensors that do not share memory. "
            "Save the state dict with each tensor cloned."
        )
