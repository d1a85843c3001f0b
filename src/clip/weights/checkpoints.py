"""Read a local file or folder of weights as a Checkpoint, and write one.

It reads OpenAI's TorchScript archives, state dicts saved by any version of PyTorch, safetensors, and the folders of
transformers' CLIPModel and of open_clip, whose configurations hold what shapes do not show.
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
from .torch_file import FETCH_AGAIN, read_torch_file

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

SAVE_STATE_DICT = "Save the model's state_dict()."
# Keys under which training scripts save the state dict.
WRAPPERS = ("state_dict", "model_state_dict", "model")
PARALLEL_PREFIX = "module."  # DataParallel and DistributedDataParallel put it before every key
OPEN_CLIP_CONFIG, TRANSFORMERS_CONFIG = "open_clip_config.json", "config.json"
TRANSFORMERS_PREPROCESS = "preprocessor_config.json"
OPEN_CLIP_PREFIX = "open_clip_"  # of the name of a file that means nothing without its configuration
# By configuration: the weights files of a folder, of which the first that exists is read.
WEIGHTS = {
    OPEN_CLIP_CONFIG: ("open_clip_model.safetensors", "open_clip_pytorch_model.bin"),
    TRANSFORMERS_CONFIG: ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
                          "pytorch_model.bin.index.json"),
}  # fmt: skip

# Exceptions of our code for a configuration with wrong types, numbers or names.
_OF_ANOTHER_MAKE = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError, OSError)


def read_checkpoint(path: Path) -> Checkpoint:
    """Return the CLIP in a local file or folder, with the architecture that the shapes of its weights have.

    Raises:  UnsafeCheckpointError for a file with more than tensors and plain values, CheckpointError (a RuntimeError)
             for one that is damaged, is no CLIP, or differs from its configuration.
    """
    try:
        files = _find_weights(path) if path.is_dir() else [path]
        content: dict[str, Any] = {}
        header = None
        for file in files:
            tensors, header = _read_file(file)
            content |= tensors
        layout = _check_weights(path, files, content, header)
    except CheckpointError:
        raise  # it names its file
    except _OF_ANOTHER_MAKE as exc:
        found = f"not as its library writes it ({type(exc).__name__}: {quote(str(exc))})"
        raise CheckpointError(path, found, "weights and their configuration", "Fetch them again.") from exc
    return Checkpoint(
        layout.architecture,
        layout.state_dict,
        layout.preprocess,
        source=str(path),
        files=tuple(files),
        tokenizer=layout.tokenizer,
    )


def export(checkpoint: Checkpoint, path: Path, notes: Mapping[str, str] | None = None) -> None:
    """Write a checkpoint as one safetensors file with OpenAI's names, which `read_checkpoint` reads.

    Its header holds what shapes do not show, for models whose activation, head width or vocabulary is not OpenAI's,
    and `notes` for people. A vocabulary in a second file could get lost or be another model's, and the sha256 in a
    manifest would not cover it.
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


def draw_checkpoint(name: str, seed: int) -> Checkpoint:
    """Draw the weights of a released architecture at random: the same for the same seed and version of torch.

    Raises:  UnknownModelError (a RuntimeError) for a name that was not released.
    """
    if name not in RELEASES:
        remedy = "Pass a released name to draw its weights."
        raise UnknownModelError(f"model {name!r}", "not found", f"one of {list(RELEASES)}", remedy)
    architecture = RELEASES[name].architecture
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIP(**vars(architecture))
    settings = PreprocessSettings(architecture.image_resolution)
    return Checkpoint(architecture, model.state_dict(), settings, source=f"untrained:{seed}", seed=seed)


def _check_weights(path: Path, files: list[Path], content: dict[Any, Any], header: str | None) -> Layout:
    """Return the CLIP with these entries. Raises CheckpointError, naming `path`, where they make none."""
    try:
        state_dict = drop_archive_buffers(_check_tensors(content))
        _check_aliases(state_dict, sum(file.stat().st_size for file in files))
        layout = from_header(state_dict, json.loads(header)) if header else _read_layout(state_dict, files[0])
        check_fit(layout.state_dict, build_on_meta(lambda: CLIP(**vars(layout.architecture))).state_dict())
    except CheckpointError as exc:
        raise exc.about(path) from exc
    return layout


def _find_weights(folder: Path) -> list[Path]:
    for config, names in WEIGHTS.items():
        for name in names if (folder / config).is_file() else ():
            if (folder / name).is_file():
                return _list_shards(folder / name) if name.endswith(".index.json") else [folder / name]
    found = f"a folder without {OPEN_CLIP_CONFIG} or {TRANSFORMERS_CONFIG} and its weights"
    raise CheckpointError(folder, found, "that of an open_clip model or of a CLIPModel", "Pass one, or a weights file.")


def _list_shards(index: Path) -> list[Path]:
    names = set(_read_json(index).get("weight_map", {}).values())
    if not names or any(not isinstance(name, str) or "/" in name or "\\" in name for name in names):
        raise CheckpointError(index, "names no files of its folder", "a weight_map", "Fetch it again.")
    return [index.with_name(name) for name in sorted(names)]


def _read_layout(state_dict: dict[str, torch.Tensor], file: Path) -> Layout:
    open_clip, transformers = file.with_name(OPEN_CLIP_CONFIG), file.with_name(TRANSFORMERS_CONFIG)
    if is_transformers(state_dict):
        if not transformers.is_file():
            raise _missing_configuration("a CLIPModel", TRANSFORMERS_CONFIG)
        preprocess = file.with_name(TRANSFORMERS_PREPROCESS)
        settings = _read_json(preprocess) if preprocess.is_file() else None
        return from_transformers(state_dict, _read_json(transformers), settings)
    if open_clip.is_file():
        return from_open_clip(state_dict, _read_json(open_clip))
    if file.name.startswith(OPEN_CLIP_PREFIX):
        raise _missing_configuration("an open_clip model", OPEN_CLIP_CONFIG)
    architecture = infer_architecture(state_dict)
    return Layout(state_dict, architecture, PreprocessSettings(architecture.image_resolution))


def _missing_configuration(model: str, config: str) -> CheckpointError:
    expected = "it in the same folder, as shapes do not show the activation"
    return CheckpointError("weights", f"weights of {model} without their {config}", expected, "Put it there.")


def _read_file(path: Path) -> tuple[dict[str, Any], str | None]:
    """Return the state dict in a file, and the header that `export` wrote."""
    if not _is_safetensors(path):
        return _unwrap(read_torch_file(path), path), None
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  it is no dict
            return tensors, (file.metadata() or {}).get(HEADER_KEY)
    # safetensors checks the header; torch and Python raise for what that check misses, shapes of 0 x 2**63 for one.
    except (SafetensorError, TypeError, ValueError, OverflowError, RuntimeError, MemoryError) as exc:
        raise CheckpointError(path, f"damaged ({quote(str(exc))})", "safetensors", FETCH_AGAIN) from exc


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as exc:
        found = f"{path.name} is not JSON ({quote(str(exc))})"
        raise CheckpointError(path.parent, found, "a configuration", "Fetch it again.") from exc
    if not isinstance(content, dict):
        found = f"{path.name} holds a {type(content).__name__}"
        raise CheckpointError(path.parent, found, "an object", "Fetch it again.")
    return content


def _is_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"  # eight bytes of length, then a JSON object


def _unwrap(content: Any, path: Path) -> dict[str, Any]:
    if isinstance(content, dict):
        for wrapper in WRAPPERS:
            if isinstance(content.get(wrapper), dict):
                return content[wrapper]
        return content
    raise CheckpointError(path, f"found a {type(content).__name__}", "a state dict", SAVE_STATE_DICT)


def _check_tensors(content: dict[Any, Any]) -> dict[str, torch.Tensor]:
    """Return a dict of tensors without DataParallel's prefix. Raises CheckpointError for other entries."""
    if not content:
        raise CheckpointError("weights", "found no entries", "a state dict", SAVE_STATE_DICT)
    for key, value in content.items():
        if isinstance(key, str) and (len(key) > MAX_KEY or not key.isprintable()):
            found = f"entry {quote(key)} is no name of a weight"
            raise CheckpointError("weights", found, "those of a CLIP", "Pass the weights of a CLIP.")
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            expected = f"a tensor in a state dict, or the state dict under one of {WRAPPERS}"
            found = f"entry {quote(str(key))} is a {type(value).__name__}"
            raise CheckpointError("weights", found, expected, SAVE_STATE_DICT)
    if all(key.startswith(PARALLEL_PREFIX) for key in content):
        return {key.removeprefix(PARALLEL_PREFIX): value for key, value in content.items()}
    return content


def _check_aliases(state_dict: dict[str, torch.Tensor], file_bytes: int) -> None:
    total = sum(tensor.numel() * tensor.element_size() for tensor in state_dict.values())
    if total > file_bytes:
        found = f"its tensors take {total:,} bytes and the file {file_bytes:,}"
        remedy = "Save the state dict with each tensor cloned."
        raise CheckpointError("weights", found, "tensors that do not share memory", remedy)
