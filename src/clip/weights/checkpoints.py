"""Read a local file or folder of weights as a Checkpoint, and write one.

It reads OpenAI's TorchScript archives, state dicts saved by any version of PyTorch, safetensors, and the folders of
transformers' CLIPModel, of sentence-transformers and of open_clip, whose configurations hold what shapes do not show.
What differs between families of networks is in `families`.
"""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..errors import CheckpointError, InputError, UnknownModelError, quote
from ..network.architecture import infer_architecture
from ..network.meta_init import check_fit
from ..network.records import HEADER_KEY, Checkpoint, PreprocessSettings
from ..tokenizer_file import TokenizerFile
from .configurations import (
    OPEN_CLIP_CONFIG,
    TRANSFORMERS_CONFIG,
    Configuration,
    load_json,
    read_preprocess,
    read_transformers_preprocess,
)
from .entries import check_aliases, check_numbers, take_entries, unwrap
from .families import AnyConfiguration, build, lay_out, name_configuration, read_any_configuration
from .folders import find_clip_folder, find_weights
from .headers import make_header, read_header
from .layouts import Place, from_transformers
from .origin import find_script_sign, find_sign, refuse_network, refuse_origin
from .pe import PE_NAMES, find_pe, find_pe_naming, make_pe_settings, read_pe
from .releases import RELEASES
from .siglip import SIGLIP_NAMES, find_naming, find_siglip, make_settings, read_siglip
from .spellings import find_spelled
from .torch_file import FETCH_AGAIN, ScriptState, read_torch_file

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping


OPEN_CLIP_PREFIX = "open_clip_"  # of the name of a file that means nothing without its configuration

# Exceptions of our code for a configuration with wrong types, numbers or names.
_OF_ANOTHER_MAKE = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError, OSError)


@dataclass(frozen=True)
class _Content:
    """What the files of a checkpoint hold."""

    value: object  # as it was saved
    state_dict: dict[Any, Any]  # the dict in it that has the CLIP's entries
    metadata: dict[str, str] = field(default_factory=dict[str, str])
    archive: ScriptState | None = None


def read_checkpoint(path: Path, architecture: str | os.PathLike[str] | None = None) -> Checkpoint:
    """Return the CLIP in a local file or folder, with the architecture that the shapes of its weights have.

    `architecture` says what shapes leave open, instead of the configuration beside the weights: one of OpenAI's names,
    one of open_clip's, or the path of a configuration.

    Raises:  UnsafeCheckpointError for a file that would call functions, CheckpointError (a RuntimeError) for one that
             is damaged, is no CLIP, differs from its configuration or has none where it needs one; InputError for an
             architecture that is not known.
    """
    named = None if architecture is None else _find_configuration(os.fspath(architecture))
    with _translate_errors(path):
        files = find_weights(find_clip_folder(path)) if path.is_dir() else [path]
        read = _check_weights(path, files, _read_files(files), named)
    return replace(read, source=str(path), files=tuple(files))


@contextmanager
def _translate_errors(path: Path) -> Generator[None]:
    try:
        yield
    except CheckpointError:
        raise  # it names its file
    except _OF_ANOTHER_MAKE as exc:
        found = f"not as its library writes it ({type(exc).__name__}: {quote(str(exc))})"
        raise CheckpointError(path, found, "weights and their configuration", "Fetch them again.") from exc


def export(checkpoint: Checkpoint, path: Path, notes: Mapping[str, str] | None = None) -> None:
    """Write a checkpoint as one safetensors file with OpenAI's names, which `read_checkpoint` reads.

    Its header holds what shapes do not show, for models whose activation, head width or vocabulary is not OpenAI's,
    and `notes` for people. A vocabulary in a second file could get lost or be another model's, and the sha256 in a
    manifest would not cover it.
    """
    from safetensors.torch import save_file

    tensors = {key: tensor.contiguous() for key, tensor in checkpoint.state_dict.items()}
    save_file(tensors, path, metadata={**(notes or {}), **make_header(checkpoint)})


def draw_checkpoint(name: str, seed: int) -> Checkpoint:
    """Draw the weights of a released architecture at random: the same for the same seed and version of torch.

    Raises:  UnknownModelError (a RuntimeError) for a name that was not released.
    """
    tokenizer = None
    if siglip := find_siglip(name):
        architecture, settings = siglip, make_settings(siglip.image_resolution)
        tokenizer = TokenizerFile(None, f"untrained {name}", "open_clip", "<pad>")
    elif pe := find_pe(name):
        architecture, settings = pe, make_pe_settings(pe.image_resolution)
    elif released := find_spelled(name, RELEASES):
        architecture = RELEASES[released].architecture
        settings = PreprocessSettings(architecture.image_resolution)
    else:
        remedy = "Pass a released name to draw its weights, or one of open_clip's SigLIPs or PE-Cores."
        known = [*RELEASES, *SIGLIP_NAMES, *PE_NAMES]
        raise UnknownModelError(f"model {name!r}", "not found", f"one of {known}", remedy)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        weights = build(architecture).state_dict()
    return Checkpoint(architecture, weights, settings, f"untrained:{seed}", tokenizer=tokenizer, seed=seed)


def _find_configuration(architecture: str) -> AnyConfiguration:
    if known := name_configuration(architecture):
        return known
    path = Path(architecture)
    if path.is_dir():
        folder = find_clip_folder(path)
        path = next(
            (folder / name for name in (OPEN_CLIP_CONFIG, TRANSFORMERS_CONFIG) if (folder / name).is_file()), path
        )
    if not path.is_file():
        expected = "one of OpenAI's names, one of open_clip's as ViT-H-14, or the path of a configuration"
        raise InputError("`architecture`", f"found {quote(architecture)}", expected, "Pass one.")
    try:
        with _translate_errors(path):
            return read_any_configuration(path)
    except CheckpointError as exc:
        raise exc.about(path) from exc


def _read_files(files: list[Path]) -> _Content:
    """Read the one file of a checkpoint, or all of its parts."""
    if len(files) == 1:
        return _read_file(files[0])
    parts: dict[Any, Any] = {}
    for file in files:
        entries = _read_file(file).state_dict
        if twice := next((key for key in entries if key in parts), None):
            raise CheckpointError(file, f"entry {quote(str(twice))} is in another part too", "it once", FETCH_AGAIN)
        parts |= entries
    return _Content(parts, parts)


def _read_file(path: Path) -> _Content:
    if not _is_safetensors(path):
        value = read_torch_file(path)
        if isinstance(value, ScriptState):
            return _Content(value.tensors, value.tensors, archive=value)
        return _Content(value, unwrap(value, path))
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  it is no dict
            return _Content(tensors, tensors, file.metadata() or {})
    # safetensors checks the header; torch and Python raise for what that check misses, shapes of 0 x 2**63 for one.
    except (SafetensorError, TypeError, ValueError, OverflowError, RuntimeError, MemoryError) as exc:
        raise CheckpointError(path, f"damaged ({quote(str(exc))})", "safetensors", FETCH_AGAIN) from exc


def _check_weights(path: Path, files: list[Path], content: _Content, named: AnyConfiguration | None) -> Checkpoint:
    """Return the CLIP with these entries. Raises CheckpointError, naming `path`, where they make none."""
    try:
        state_dict, place = take_entries(content.state_dict)
        check_aliases(state_dict, sum(file.stat().st_size for file in files))
        header = content.metadata.get(HEADER_KEY)
        if header is not None:
            read = read_header(state_dict, json.loads(header), content.metadata)
            _check_named(named, read)
        else:
            read = _read_network(state_dict, place, content, files[0], named)
        check_fit(read.state_dict, lay_out(read.architecture).state_dict())
        check_numbers(read.state_dict)
    except CheckpointError as exc:
        raise exc.about(path) from exc
    return read


def _read_network(
    state_dict: dict[str, torch.Tensor], place: Place, content: _Content, file: Path, named: AnyConfiguration | None
) -> Checkpoint:
    """Read what the configuration says, that which was named or lies beside the weights; without one, assume OpenAI's.

    Raises:  CheckpointError where OpenAI's network may not be assumed.
    """
    if pe := find_pe_naming(place, state_dict):
        return read_pe(state_dict, pe, named or _read_if_there(file.with_name(OPEN_CLIP_CONFIG)))
    if siglip := find_naming(place, state_dict):
        config = file.with_name(TRANSFORMERS_CONFIG if siglip == "transformers" else OPEN_CLIP_CONFIG)
        return read_siglip(state_dict, siglip, file, named or _read_if_there(config))
    transformers = place.naming == "transformers"
    weights = from_transformers(state_dict) if transformers else state_dict
    sign = None if content.archive is None else find_script_sign(content.archive)
    configuration = named
    if named is None and (content.archive is None or sign):  # OpenAI's archives show what they are
        configuration = _read_beside(file, transformers=transformers)
    if not isinstance(configuration, (Configuration, type(None))):
        raise refuse_network(configuration, Configuration.network)
    if configuration is not None:
        _check_script(content.archive, configuration)
        architecture, settings = configuration.apply(weights)
        if transformers and configuration.preprocess is None:
            settings = read_transformers_preprocess(*read_preprocess(file.parent), architecture.image_resolution)
        return Checkpoint(architecture, weights, settings, source="")
    if transformers:
        raise refuse_origin(f"weights of a CLIPModel without their {TRANSFORMERS_CONFIG}")
    if file.name.startswith(OPEN_CLIP_PREFIX):
        raise refuse_origin(f"weights of an open_clip model without their {OPEN_CLIP_CONFIG}")
    architecture = infer_architecture(weights)
    if content.archive is None:
        others = {"prefix": place.prefix, **content.metadata}
        sign = find_sign(content.value, content.state_dict, others, file, architecture)
    if sign is not None:
        raise refuse_origin(sign)
    return Checkpoint(architecture, weights, PreprocessSettings(architecture.image_resolution), source="")


def _read_if_there(config: Path) -> AnyConfiguration | None:
    return read_any_configuration(config) if config.is_file() else None


def _read_beside(file: Path, *, transformers: bool) -> AnyConfiguration | None:
    """Return what the configuration in the folder of weights says; for OpenAI's names open_clip's comes first."""
    theirs, open_clip = file.with_name(TRANSFORMERS_CONFIG), file.with_name(OPEN_CLIP_CONFIG)
    if not transformers and open_clip.is_file():
        return read_any_configuration(open_clip)
    if transformers and theirs.is_file():
        return read_any_configuration(theirs)
    if theirs.is_file():  # of weights with OpenAI's names only one of a CLIP counts; any script may have a config.json
        try:
            config = load_json(theirs)
        except CheckpointError:
            return None
        if isinstance(config, dict) and (
            config.get("model_type") == "clip" or {"model_cfg", "vision_cfg"} & config.keys()
        ):
            return read_any_configuration(theirs)
    return None


def _check_named(named: AnyConfiguration | None, read: Checkpoint) -> None:
    """Refuse an architecture that contradicts the header of an exported file."""
    if named is not None and named.apply(read.state_dict)[0] != read.architecture:
        found = f"{named.origin}: another activation or other heads than in its header"
        raise CheckpointError("weights", found, "the same", "Leave `architecture` out.")


def _check_script(archive: ScriptState | None, configuration: Configuration) -> None:
    """Refuse a configuration whose activation the code of a TorchScript archive contradicts."""
    if archive is None:
        return
    quick = any(name.endswith("QuickGELU") for name in archive.classes)
    shown = "gelu" if archive.uses_gelu else "quick_gelu" if quick else configuration.activation
    if shown != configuration.activation:
        found = f"{configuration.origin}: the activation is {configuration.activation}"
        raise CheckpointError("weights", found, f"{shown}, as in the archive's code", "Pass the one of these weights.")


def _is_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"  # eight bytes of length, then a JSON object
