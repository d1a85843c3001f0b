"""Check that the fields of a record that was read from a file have the types that the record declares."""

from __future__ import annotations

from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


def check_fields(record: Any) -> None:
    """Raise TypeError for the first field of a dataclass whose value is not of its declared type."""
    for name, kind in _types_of(type(record)).items():
        value = getattr(record, name)
        if not _fits(value, kind):
            raise TypeError(f"its {name} is {str(value)[:60]!r}")


@cache
def _types_of(record: type) -> dict[str, Any]:
    return get_type_hints(record, localns={"Path": Any})


def _fits(value: Any, kind: Any) -> bool:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if origin is Literal:
        return value in arguments
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in arguments)
    if origin is tuple:  # tuple[T, ...]
        return isinstance(value, tuple) and all(_fits(one, arguments[0]) for one in value)
    if origin is dict:
        return isinstance(value, dict) and all(
            _fits(k, arguments[0]) and _fits(v, arguments[1]) for k, v in value.items()
        )
    if kind is int:
        return type(value) is int or (type(value) is float and value.is_integer())  # as 1e9 was given to a job
    if kind is bool:
        return type(value) in (bool, int) and value in (0, 1)
    if kind is float:
        return type(value) in (int, float)
    return value is None if kind is NoneType else isinstance(value, kind)
