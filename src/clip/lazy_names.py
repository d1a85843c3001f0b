"""Names that a module has without importing them before somebody asks (PEP 562)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def resolve_lazily(
    namespace: dict[str, object], homes: Mapping[str, str]
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Return a module's `__getattr__` and `__dir__` for names that are at home elsewhere.

    `homes` maps each name to "module:attribute", or "module" alone; a leading dot starts from this package.
    """

    def getattr_(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"module {namespace['__name__']!r} has no attribute {name!r}")
        module, _, attribute = homes[name].partition(":")
        value: object = import_module(module, __package__)
        for part in filter(None, attribute.split(".")):
            value = getattr(value, part)
        namespace[name] = value
        return value

    return getattr_, lambda: sorted({*namespace, *homes})
