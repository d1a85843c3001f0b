"""Translate another library's names of weights to the network's, and back, by a table.

A table has for each of our names where the library has it: in pieces that are joined, in another shape, transposed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..errors import CheckpointError, CheckpointKeyError, quote

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

KINDS = ("weight", "bias")


@dataclass(frozen=True)
class Theirs:
    """Where a library has one of our tensors: in these pieces, joined in this order."""

    names: tuple[str, ...]
    around: int = 0  # axes of size 1 before its own
    transposed: bool = False
    parts: tuple[int, ...] = ()  # of the first axis that each of several pieces has; empty: the same of each


Table = dict[str, Theirs]


def name_both(modules: Mapping[str, str]) -> Table:
    """Return the names of the weights and biases of modules."""
    return {f"{ours}.{kind}": Theirs((f"{theirs}.{kind}",)) for ours, theirs in modules.items() for kind in KINDS}


def name_pool_of_timm(ours: str, pool: str) -> Table:
    """Return timm's names of an attention pool."""
    names = {
        f"{ours}.attn.in_proj_{kind}": Theirs((f"{pool}.q.{kind}", f"{pool}.kv.{kind}"), parts=(1, 2)) for kind in KINDS
    }
    modules = {"attn.out_proj": "proj", "ln_2": "norm", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    return {
        f"{ours}.probe": Theirs((f"{pool}.latent",), around=2),
        **names,
        **name_both({f"{ours}.{mine}": f"{pool}.{name}" for mine, name in modules.items()}),
    }


def name_blocks_of_timm(ours: str, blocks: str, layers: int) -> Table:
    """Return timm's names of the blocks of a ViT."""
    names: Table = {}
    own = {
        "attn.out_proj": "attn.proj",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
        "ln_1": "norm1",
        "ln_2": "norm2",
    }
    for n in range(layers):
        block, layer = f"{ours}.{n}", f"{blocks}.{n}"
        names |= {f"{block}.attn.in_proj_{kind}": Theirs((f"{layer}.attn.qkv.{kind}",)) for kind in KINDS}
        names |= name_both({f"{block}.{mine}": f"{layer}.{name}" for mine, name in own.items()})
    return names


def name_blocks_of_openai(ours: str, theirs: str, layers: int) -> Table:
    """Return the names of blocks that are OpenAI's, below another prefix."""
    names: Table = {}
    for n in range(layers):
        block, layer = f"{ours}.{n}", f"{theirs}.{n}"
        names |= {f"{block}.attn.in_proj_{kind}": Theirs((f"{layer}.attn.in_proj_{kind}",)) for kind in KINDS}
        modules = ("attn.out_proj", "mlp.c_fc", "mlp.c_proj", "ln_1", "ln_2")
        names |= name_both({f"{block}.{module}": f"{layer}.{module}" for module in modules})
    return names


def count_blocks(keys: Mapping[str, Tensor], prefix: str) -> int:
    """Return the blocks below a prefix, whose numbers come next in a name."""
    return len({key.removeprefix(prefix).partition(".")[0] for key in keys if key.startswith(prefix)})


def translate(state_dict: Mapping[str, Tensor], table: Table, network: str, remedy: str) -> dict[str, Tensor]:
    """Translate a library's names to ours.

    Raises:  CheckpointKeyError for an entry that is missing, CheckpointError for one that the network does not have, or
             that has another shape.
    """
    used = {name for theirs in table.values() for name in theirs.names}
    more = [key for key in state_dict if key not in used and not key.endswith(".position_ids")]
    if more:
        found = f"{len(more)} of its entries are of no {network}, such as {quote(more[0])}"
        raise CheckpointError("weights", found, remedy=remedy)
    missing = [name for name in used if name not in state_dict]
    if missing:
        found = f"{len(missing)} of a {network}'s entries are missing, such as {quote(min(missing))}"
        raise CheckpointKeyError("weights", found, remedy="Pass the whole state dict of one model.")
    return {ours: _join(state_dict, theirs) for ours, theirs in table.items()}


def _join(state_dict: Mapping[str, Tensor], theirs: Theirs) -> Tensor:
    pieces = [state_dict[name] for name in theirs.names]
    if any(piece.shape[1:] != pieces[0].shape[1:] for piece in pieces):
        shapes = " and ".join(str(tuple(piece.shape)) for piece in pieces)
        raise CheckpointError("weights", f"entries of {theirs.names[0]!r} have shapes {shapes}", "the same width")
    tensor = torch.cat(pieces) if len(pieces) > 1 else pieces[0]
    for _ in range(theirs.around if tensor.ndim >= theirs.around else 0):
        tensor = tensor.squeeze(0)  # which leaves an axis of another size for the comparison with the network's
    # Contiguous, so that products round as those of a library that has the tensor in our order.
    return tensor.T.contiguous() if theirs.transposed and tensor.ndim == 2 else tensor


def translate_back(state_dict: Mapping[str, Tensor], table: Table) -> dict[str, Tensor]:
    """Translate our names to a library's: the way back of `translate`."""
    theirs: dict[str, Tensor] = {}
    for ours, place in table.items():
        tensor = state_dict[ours].T if place.transposed else state_dict[ours]
        parts = place.parts or (1,) * len(place.names)
        unit = tensor.shape[0] // sum(parts) if len(parts) > 1 else 0
        pieces = tensor.split([unit * part for part in parts]) if unit else (tensor,)
        theirs |= {
            name: piece.reshape((1,) * place.around + piece.shape)
            for name, piece in zip(place.names, pieces, strict=True)
        }
    return theirs
