"""Notice changes of a tower: of its modules, its hooks, its methods and its weights, however they are made.

A call looks at what shows without reading the weights: that slots hold the same objects, that versions and addresses of
tensors are the same, that there are no hooks. Writes behind torch's version counters (`p.data.mul_`, numpy) show in
none of these. But whoever writes needs a part of the model in hand: either one that it holds, which the counts of
references tell, or one that the model has handed out since, which the model notes (`Handouts`). Only then the weights
are read, and compared by their digest.
"""

from __future__ import annotations

import operator
import sys
from typing import Any

import torch
from torch import Tensor, nn

from .digest import Digest, digest
from .loaded_model import CONTAINERS, HOOKS, classes_of, functions_of
from .modes import is_plain

_use_count = getattr(torch._C, "_storage_Use_Count", None)  # pyright: ignore[reportPrivateUsage]  no public name
_version = operator.attrgetter("_version")
_ONE_OWNER = next(map(sys.getrefcount, [object()]))  # what `map` counts of an object that a list alone refers to


class Handouts:
    """A descriptor that notes when a module's parts are taken: every way to them reads `_modules` or `_parameters`."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: nn.Module | None, owner: type | None = None) -> Any:
        if instance is None:
            return self
        note_handout(instance, self._name)
        try:
            return instance.__dict__[self._name]
        except KeyError:
            raise AttributeError(self._name) from None

    def __set__(self, instance: nn.Module, value: object) -> None:
        note_handout(instance, self._name)
        instance.__dict__[self._name] = value


def note_handout(model: nn.Module, name: str) -> None:
    """Note that a part of a model, or all its modules or parameters, is handed out and may be changed from now on."""
    if torch.compiler.is_compiling():  # it has the part while it traces only
        return
    paths = model.__dict__.get("_fast_paths")
    if paths is not None:
        paths.note_handout(name)


class Watch:
    """A tower as it is now: its modules and tensors, and what shows of them."""

    def __init__(self, model: nn.Module, members: tuple[str, ...]) -> None:
        root = {kind: model.__dict__[kind] for kind in ("_parameters", "_modules")}
        self.modules: list[nn.Module] = []
        slots: list[tuple[dict[str, Any], str, Any]] = []
        for container in root.values():
            slots += [(container, name, value) for name, value in container.items() if name in members]
        for _, _, value in slots:
            self.modules += list(value.modules()) if isinstance(value, nn.Module) else []
        self._dicts = [module.__dict__ for module in self.modules]
        self._kept = [dict(attributes) for attributes in self._dicts]
        self._containers = [attributes[kind] for attributes in self._dicts for kind in CONTAINERS]
        self._sizes = list(map(len, self._containers))
        slots += [(container, *item) for container in self._containers for item in container.items()]
        self._hooks = [attributes[kind] for attributes in self._dicts for kind in HOOKS]
        self._hook_counts = list(map(len, self._hooks))
        self.types = list(map(type, self.modules))
        self._attributes_of_classes = list(map(vars, classes_of(set(self.types))))
        self._attribute_counts = list(map(len, self._attributes_of_classes))
        functions = functions_of(set(self.types))
        self._owners_of_functions, self._names_of_functions, self._functions = zip(*functions, strict=True)
        self._masks = [mask for kept in self._kept if isinstance(mask := kept.get("attn_mask"), Tensor)]
        # Columns, over which `map` runs without a step of Python for each.
        self._holders, self._names, self._values = (list(column) for column in zip(*slots, strict=True))
        found = [value for value in self._values if isinstance(value, Tensor)] + self._masks
        self.tensors = list({id(tensor): tensor for tensor in found}.values())
        self._count_owners()

    def _count_owners(self) -> None:
        """Count the references that the tower and this watch have to each object: with more, somebody else has one."""
        owners: dict[int, int] = {}
        # A slot or an attribute of the tower, and the record of it here.
        for value in [*self._values, *self._masks]:
            owners[id(value)] = owners.get(id(value), 0) + 2
        for mask in self._masks:
            owners[id(mask)] += 1  # `_kept` has it too
        self._objects: list[object] = [*self.modules, *self.tensors]
        listed = 2  # in `modules` or `tensors`, and in `_objects`
        self._owners = [owners[id(value)] + listed - 1 + _ONE_OWNER for value in self._objects]

    def look_at_tensors(self) -> str | None:
        """Take the tensors' memory, versions and addresses as they are; return what bars them from the lean graph."""
        self._storages = [tensor.untyped_storage() for tensor in self.tensors]  # held, so that no address is used again
        self._pointers = [storage._cdata for storage in self._storages]  # pyright: ignore[reportPrivateUsage]
        self._users = [2] * len(self._pointers)  # the tensor, and `_storages`
        self._addresses = list(map(Tensor.data_ptr, self.tensors))
        try:
            self._versions = list(map(_version, self.tensors))
        except RuntimeError:
            return "its weights were made in inference mode, where torch counts no versions"
        weights = [tensor for tensor in self._weights() if tensor.is_floating_point()]
        device = weights[0].device
        if not all(is_plain(weight, device) for weight in weights):
            return "its weights are not plain tensors on one device"
        dtypes = {weight.dtype for weight in weights}
        if dtypes <= {torch.float32} or (device.type == "cuda" and dtypes <= {torch.float16, torch.float32}):
            return None
        return f"its weights are {' and '.join(sorted(map(str, dtypes)))}"

    def structure_is_kept(self, *, thoroughly: bool) -> bool:
        """Return whether modules, slots, hooks and methods are the same; thoroughly, all attributes of modules too."""
        try:
            return (
                list(map(type, self.modules)) == self.types
                and all(map(operator.is_, map(operator.getitem, self._holders, self._names), self._values))
                and list(map(len, self._containers)) == self._sizes
                and list(map(len, self._hooks)) == self._hook_counts
                and tuple(map(getattr, self._owners_of_functions, self._names_of_functions)) == self._functions
                and list(map(len, self._attributes_of_classes)) == self._attribute_counts
                and not (thoroughly and self._dicts != self._kept)
            )
        except (
            AttributeError,
            KeyError,
            RuntimeError,
        ):  # a method or a slot is gone; two tensors were compared, as an attribute is another one
            return False

    def weights_show_no_change(self) -> bool:
        """Return whether versions and addresses of all tensors are the same."""
        versions, addresses = map(_version, self.tensors), map(Tensor.data_ptr, self.tensors)
        return list(versions) == self._versions and list(addresses) == self._addresses

    def is_held(self) -> bool:
        """Return whether somebody holds a module or a tensor of the tower, or memory of one, and so may write to it."""
        if _use_count is None or list(map(sys.getrefcount, self._objects)) != self._owners:
            return True
        return list(map(_use_count, self._pointers)) != self._users

    def requires_grad(self) -> bool:
        """Return whether a gradient with respect to a weight may be wanted."""
        return any(map(operator.attrgetter("requires_grad"), self.tensors))

    def take_digest(self) -> Digest:
        """Return the digest of the weights."""
        return digest(self._weights())

    def _weights(self) -> list[Tensor]:
        masks = set(map(id, self._masks))  # eager casts them, which changes nothing
        return [tensor for tensor in self.tensors if id(tensor) not in masks]

    def masks_differ(self, original: Any) -> bool:
        """Return whether a mask of this tower is not that of the network as it was built."""
        wanted = original.transformer.resblocks[0].attn_mask
        return not all(
            torch.equal(mask.to(wanted), wanted) for mask in {id(mask): mask for mask in self._masks}.values()
        )
