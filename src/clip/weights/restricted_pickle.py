"""A pickle -> plain values and descriptions of tensors. Knows nothing about files, and runs nothing of what it reads.

Python's unpickler imports and calls what a pickle names, and some of its opcodes reserve memory before they read. Here
the standard library's `pickletools` takes the stream apart, and the few opcodes that weights need are carried out on
dicts, lists and tuples. A name outside the lists below is an `UnsafeCheckpointError`.
"""

from __future__ import annotations

import pickletools
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from ..errors import MAX_SHOWN, CheckpointError, UnsafeCheckpointError, quote

if TYPE_CHECKING:
    from collections.abc import Callable
    from io import BytesIO

MAX_OPCODES = 4_000_000  # a tensor takes about 60, so 60,000 tensors; RN50x64 has 1,353
MAX_KEY = 1_000  # characters; the longest of OpenAI's archives has 60
MAX_DIMENSIONS = 8  # of a tensor; a convolution's weight has 4

DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "DoubleStorage": torch.float64,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


@dataclass(frozen=True)
class Storage:
    """A run of numbers that the file keeps under `key`."""

    key: str
    dtype: torch.dtype
    numel: int


@dataclass(frozen=True)
class TensorLayout:
    """A tensor as the pickle describes it: which part of which storage, in which order. Nothing is checked yet."""

    storage: Storage
    offset: int  # [Unit: elements]
    shape: tuple[int, ...]
    stride: tuple[int, ...]  # [Unit: elements]


@dataclass
class ScriptObject:
    """A module of a TorchScript archive: its class's name and its attributes."""

    type_name: str
    attributes: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class _StorageType:
    dtype: torch.dtype


@dataclass(frozen=True)
class _ScriptClass:
    name: str


@dataclass(frozen=True)
class _Function:
    """One of the functions that we carry out ourselves instead of calling what the pickle names."""

    run: Callable[..., object]


class _Mark:
    """What MARK leaves on the stack."""


def _whole_numbers(found: object, most: int) -> tuple[int, ...]:
    """A short row of numbers that fit 64 bits; longer ones would cost the pickle a reference each and us a copy."""
    if isinstance(found, (list, tuple)) and len(found) <= most:
        numbers = tuple(n for n in found if type(n) is int and abs(n) < 2**63)
        if len(numbers) == len(found):
            return numbers
    raise CheckpointError(f"its pickle has no row of at most {most} numbers where a shape should be")


def _rebuild_tensor(storage: object, offset: object, shape: object, stride: object, *_: object) -> object:
    if not isinstance(storage, Storage):
        raise CheckpointError("its pickle describes a tensor without a storage")
    (start,) = _whole_numbers((offset,), 1)
    return TensorLayout(storage, start, _whole_numbers(shape, MAX_DIMENSIONS), _whole_numbers(stride, MAX_DIMENSIONS))


def _rebuild_device(*where: object) -> object:
    words = [str(part) for part in where if isinstance(part, str) or (type(part) is int and abs(part) < 2**31)]
    if len(words) != len(where) or sum(map(len, words)) > MAX_SHOWN:
        raise CheckpointError("its pickle names no device where one should be")
    return ":".join(words)


def _keep_first(value: object, *_: object) -> object:
    return value


def _check_key(key: object) -> object:
    """Refuse keys whose hash never ends (tuples nested twice) or collides (large numbers), or that fill memory."""
    short = isinstance(key, str) and len(key) <= MAX_KEY
    if short or isinstance(key, (bool, type(None))) or (type(key) is int and abs(key) < 2**31):
        return key
    raise UnsafeCheckpointError(_unexpected("has as a key", key if isinstance(key, str) else type(key)))


_DTYPE_NAMES = frozenset(str(dtype).removeprefix("torch.") for dtype in DTYPES.values())

_FUNCTIONS: dict[str, _Function] = {
    "collections.OrderedDict": _Function(dict),  # of no pairs; `reduce` checks those there are
    "torch._utils._rebuild_tensor": _Function(_rebuild_tensor),
    "torch._utils._rebuild_tensor_v2": _Function(_rebuild_tensor),
    "torch._utils._rebuild_parameter": _Function(_keep_first),
    "torch._utils._rebuild_parameter_with_state": _Function(_keep_first),
    "torch.Size": _Function(lambda sizes=(): _whole_numbers(sizes, MAX_DIMENSIONS)),
    "torch.device": _Function(_rebuild_device),
    # TorchScript says of which type a list is; the list comes first.
    "torch.jit._pickle.build_intlist": _Function(_keep_first),
    "torch.jit._pickle.build_doublelist": _Function(_keep_first),
    "torch.jit._pickle.build_boollist": _Function(_keep_first),
    "torch.jit._pickle.build_tensorlist": _Function(_keep_first),
    "torch.jit._pickle.restore_type_tag": _Function(_keep_first),
}


def _resolve(module: str, name: str) -> object:
    full = f"{module}.{name}"
    if full in _FUNCTIONS:
        return _FUNCTIONS[full]
    if module == "torch" and name in DTYPES:
        return _StorageType(DTYPES[name])
    if module == "torch" and name in _DTYPE_NAMES:
        return full
    if module.startswith("__torch__"):
        return _ScriptClass(full)
    raise UnsafeCheckpointError(
        f"it holds {quote(full)}, expected only tensors and plain values. "
        "Save the model's state_dict() alone, or as safetensors."
    )


class _Machine:
    """The stack and the memo, and a method for each group of opcodes."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.copied = 0  # elements of containers that were copied; one opcode can ask for a copy of all there are

    def items_from_mark(self) -> list[Any]:
        items: list[Any] = []
        while not isinstance(top := self.stack.pop(), _Mark):
            items.append(top)
        return items[::-1]

    def tuple_of(self, count: int) -> None:
        items = [self.stack.pop() for _ in range(count)][::-1]
        self.stack.append(tuple(items))

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise UnsafeCheckpointError(_unexpected("sets items of", target))
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_check_key(key)] = value

    def append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise UnsafeCheckpointError(_unexpected("appends to", target))
        target.extend(items)

    def reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, _Function) or not isinstance(arguments, tuple):
            raise UnsafeCheckpointError(_unexpected("calls", function))
        if function is _FUNCTIONS["collections.OrderedDict"] and arguments:
            self.stack.append(self.ordered_dict(arguments[0]))
        else:
            self.stack.append(function.run(*arguments))

    def ordered_dict(self, pairs: object) -> dict[Any, Any]:
        if not isinstance(pairs, (list, tuple)) or not all(isinstance(p, (list, tuple)) and len(p) == 2 for p in pairs):
            raise CheckpointError("its pickle fills an OrderedDict with other things than pairs")
        self.count_copy(len(pairs))
        return {_check_key(pair[0]): pair[1] for pair in pairs}

    def count_copy(self, elements: int) -> None:
        self.copied += elements
        if self.copied > MAX_OPCODES:
            raise CheckpointError(f"its pickle copies over {MAX_OPCODES:,} elements, expected fewer")

    def new(self) -> None:
        arguments, cls = self.stack.pop(), self.stack.pop()
        if isinstance(cls, _ScriptClass) and arguments == ():
            self.stack.append(ScriptObject(cls.name))
        elif cls is _FUNCTIONS["collections.OrderedDict"] and arguments == ():
            self.stack.append({})
        else:
            raise UnsafeCheckpointError(_unexpected("makes", cls))

    def build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, ScriptObject) and isinstance(state, dict):
            self.count_copy(len(state))
            target.attributes.update(state)
        elif not (isinstance(target, dict) and isinstance(state, dict)):
            # An OrderedDict's state is the _metadata of a state dict, which holds version numbers only.
            raise UnsafeCheckpointError(_unexpected("sets the state of", target))

    def persistent(self) -> None:
        match self.stack.pop():
            case ("storage", _StorageType(dtype), str(key), str(), int(numel), *view) if view in ([], [None]):
                self.stack.append(Storage(key, dtype, numel))
            case other:
                raise UnsafeCheckpointError(_unexpected("refers to", other))

    def step(self, name: str, arg: Any) -> None:
        """Carry out one opcode; names as in `pickletools`."""
        stack = self.stack
        match name:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                stack.append(_Mark())
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(name == "NEWTRUE")
            case (
                "BININT" | "BININT1" | "BININT2" | "LONG1" | "LONG4" | "BINFLOAT"
                | "BINUNICODE" | "SHORT_BINUNICODE" | "BINUNICODE8" | "BINSTRING" | "SHORT_BINSTRING"
            ):  # fmt: skip
                stack.append(arg)
            case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_TUPLE":
                stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}[name]())
            case "TUPLE":
                stack.append(tuple(self.items_from_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                self.tuple_of(int(name[-1]))
            case "BINPUT" | "LONG_BINPUT":
                self.put(arg)
            case "MEMOIZE":
                self.put(len(self.memo))
            case "BINGET" | "LONG_BINGET":
                stack.append(self.memo[arg])
            case "SETITEM":
                self.set_items([stack.pop(), stack.pop()][::-1])
            case "SETITEMS":
                self.set_items(self.items_from_mark())
            case "APPEND":
                self.append([stack.pop()])
            case "APPENDS":
                self.append(self.items_from_mark())
            case "GLOBAL":
                stack.append(_resolve(*arg.split(" ", 1)))
            case "STACK_GLOBAL":
                attribute, module = stack.pop(), stack.pop()
                if not isinstance(module, str) or not isinstance(attribute, str):
                    raise CheckpointError("its pickle names a class by something else than text")
                stack.append(_resolve(module, attribute))
            case "REDUCE":
                self.reduce()
            case "NEWOBJ":
                self.new()
            case "BUILD":
                self.build()
            case "BINPERSID":
                self.persistent()
            case _:
                raise UnsafeCheckpointError(
                    f"it uses the pickle opcode {name}, expected those of tensors and plain values. "
                    "Save the model's state_dict() alone, or as safetensors."
                )


def _unexpected(verb: str, found: object) -> str:
    kind = found if isinstance(found, type) else type(found)
    what = quote(found) if isinstance(found, str) else f"a {kind.__name__}"
    return (
        f"its pickle {verb} {what}, expected only tensors and plain values. "
        "Save the model's state_dict() alone, or as safetensors."
    )


def read_pickle(stream: BytesIO) -> Any:
    """The value of the pickle that starts where `stream` stands; leaves it after the pickle's last byte.

    Dicts, lists, tuples, strings, numbers, booleans, None, `TensorLayout`, `ScriptObject`; an OrderedDict is a dict.

    Raises:  UnsafeCheckpointError for anything else, CheckpointError for a broken pickle.
    """
    machine = _Machine()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # text opcodes with escapes that Python deprecates, before they are refused
        return _run(machine, stream)


def _run(machine: _Machine, stream: BytesIO) -> Any:
    try:
        for count, (opcode, arg, _) in enumerate(pickletools.genops(stream)):
            if count > MAX_OPCODES:
                raise CheckpointError(f"its pickle has over {MAX_OPCODES:,} opcodes, expected fewer")
            if opcode.name == "STOP":
                return machine.stack.pop()
            machine.step(opcode.name, arg)
    # What a stream that is no pickle, or a damaged one, makes of the parser and of the stack.
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, RecursionError, EOFError) as exc:
        raise CheckpointError(
            f"its pickle is damaged ({type(exc).__name__}",
            f"{quote(str(exc))})",
        ) from exc
    raise CheckpointError("its pickle has no end")
