"""Find the entries of a CLIP in what a file holds, and check that they are the weights of one.

Training scripts put a state dict into other dicts, under prefixes, beside heads, optimizers and arguments.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any

import torch

from ..errors import CheckpointError, quote
from ..network.architecture import drop_archive_buffers
from .layouts import Place, find_place, find_places, take_place
from .restricted_pickle import BEFORE_QUANTISED, MAX_KEY, Inert

if TYPE_CHECKING:
    from pathlib import Path

SAVE_STATE_DICT = "Save the model's state_dict()."
TAKE_STATE_DICT = (
    "If you trust the file, run where that class is installed: "
    "torch.save(torch.load(FILE, weights_only=False).state_dict(), 'weights.pt')"
)
MODULE_STATE = "_parameters"  # of each torch.nn.Module
# Entries that quantised weights have beside the whole numbers, by the library that makes them.
QUANTISED_ENTRIES = {
    "bitsandbytes": re.compile(r"\.(SCB|weight_format|(nested_)?(absmax|quant_map))$|\.quant_state\.bitsandbytes__"),
    "GPTQ or AWQ": re.compile(r"\.(qweight|qzeros|g_idx)$"),
    "torch.ao.quantization": re.compile(r"\._packed_params(\.|$)"),
    "optimum-quanto": re.compile(r"\.weight\._(data|scale|shift)$"),
    "compressed-tensors": re.compile(r"\.weight_(packed|zero_point|shape)$"),
    "a quantising program": re.compile(
        r"\.(weight|bias|input|scale)_(quant|scale|weight|quantized)$|\.(scale|zero_point)$"
    ),
}
# Keys under which training scripts save the state dict, the first that is there before any other.
WRAPPERS = ("state_dict", "model_state_dict", "model")
MAX_WRAPPERS = 3  # around a state dict, one in the other

_log = logging.getLogger("clip")


def unwrap(content: Any, path: Path) -> dict[Any, Any]:
    """Return the dict that has the entries of a CLIP, out of those that training scripts put around it.

    Raises:  CheckpointError for a value that is no dict, and for several CLIPs of which none has a usual name.
    """
    for _ in range(MAX_WRAPPERS):
        if not isinstance(content, dict) or find_places(content):
            break
        inner = {key: value for key, value in content.items() if isinstance(value, dict)}
        whole = [key for key, value in inner.items() if _holds_clip(value, MAX_WRAPPERS, set())]
        usual = next((name for names in (whole, inner) for name in WRAPPERS if name in names), None)
        if usual is None and len(whole) > 1:
            found = f"holds several CLIPs, under {' and '.join(quote(str(key)) for key in whole[:3])}"
            raise CheckpointError(path, found, "one", "Save the state dict of one of them.")
        if usual is None and not whole:
            break
        content = inner[whole[0] if usual is None or (whole and usual not in whole) else usual]
    if isinstance(content, dict):
        return content
    raise _refuse_value(f"found a {_name_type(content)}", "a state dict", content).about(path)


def _holds_clip(content: dict[Any, Any], depth: int, seen: set[int]) -> bool:
    if find_places(content):
        return True
    inner = [value for value in content.values() if isinstance(value, dict) and id(value) not in seen]
    seen.update(map(id, inner))  # dicts that are shared are looked at once
    return depth > 0 and any(_holds_clip(value, depth - 1, seen) for value in inner)


def _name_type(value: object) -> str:
    return quote(value.type_name) if isinstance(value, Inert) else type(value).__name__


def _refuse_value(found: str, expected: str, value: object) -> CheckpointError:
    """Return the error for a value where tensors should be."""
    if isinstance(value, Inert) and any(isinstance(part, dict) and MODULE_STATE in part for part in value.parts):
        found = f"holds a whole module, {quote(value.type_name)}, whose code would have to be run"
        return CheckpointError("weights", found, "its state dict", TAKE_STATE_DICT)
    return CheckpointError("weights", found, expected, SAVE_STATE_DICT)


def take_entries(content: dict[Any, Any]) -> tuple[dict[str, torch.Tensor], Place]:
    """Return the entries of the CLIP without their prefix, and where they were.

    Raises:  CheckpointError for names that are no names of weights, values that are no tensors, and another network.
    """
    if not content:
        raise CheckpointError("weights", "found no entries", "a state dict", SAVE_STATE_DICT)
    for key in content:
        if isinstance(key, str) and (len(key) > MAX_KEY or not key.isprintable()):
            found = f"entry {quote(key)} is no name of a weight"
            raise CheckpointError("weights", found, "those of a CLIP", "Pass the weights of a CLIP.")
    if not any(isinstance(value, torch.Tensor) for value in content.values()):
        first = next(iter(content.items()))
        key, value = next(((key, value) for key, value in content.items() if isinstance(value, Inert)), first)
        expected = f"a tensor in a state dict, or the state dict under one of {WRAPPERS}"
        raise _refuse_value(f"entry {quote(str(key))} is a {_name_type(value)}", expected, value)
    place = find_place(content)
    own, others = take_place(content, place)
    _check_quantised(own)
    for key, value in own.items():
        if not isinstance(value, torch.Tensor):
            found = f"entry {quote(key)} is a {_name_type(value)}"
            raise CheckpointError("weights", found, "a tensor", SAVE_STATE_DICT)
    others = [key for key in others if isinstance(content.get(key), torch.Tensor)]
    if others:
        _log.warning("left out %d entries that are no part of a CLIP, such as %s", len(others), quote(others[0]))
    return drop_archive_buffers(own), place


def _check_quantised(entries: dict[str, object]) -> None:
    """Refuse the entries of quantised weights, whose shapes may be any."""
    for key in entries:
        library = next((name for name, pattern in QUANTISED_ENTRIES.items() if pattern.search(key)), None)
        if library is not None:
            found = f"entry {quote(key)} is of weights that were quantised by {library}"
            raise CheckpointError("weights", found, "fractions", BEFORE_QUANTISED)


def check_numbers(state_dict: dict[str, torch.Tensor]) -> None:
    """Refuse whole numbers where weights should be: quantised ones mean nothing without their scales."""
    for key, tensor in state_dict.items():
        if not tensor.is_floating_point() and not key.endswith("num_batches_tracked"):
            found = f"entry {quote(key)} is of {tensor.dtype}, as of quantised weights"
            raise CheckpointError("weights", found, "fractions", BEFORE_QUANTISED)


def check_aliases(state_dict: dict[str, torch.Tensor], file_bytes: int) -> None:
    """Refuse tensors that share memory: a model has each of them once."""
    total = sum(tensor.numel() * tensor.element_size() for tensor in state_dict.values())
    if total > file_bytes:
        found = f"its tensors take {total:,} bytes and the file {file_bytes:,}"
        remedy = "Save the state dict with each tensor cloned."
        raise CheckpointError("weights", found, "tensors that do not share memory", remedy)
