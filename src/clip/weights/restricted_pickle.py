"""Read a pickle as plain values and descriptions of tensors, without running anything of it.

Python's unpickler imports and calls what a pickle names, and reserves memory before it reads: a hundred bytes can ask
for gigabytes. Here the standard library's `pickletools` splits the stream into opcodes, and the few that weights need
are carried out on dicts, lists and tuples. A class outside the lists below is only a name, and its instance an
`Inert` that holds what the pickle gave it. A call of anything else is an `UnsafeCheckpointError`.
"""

from __future__ import annotations

import pickletools
import re
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

SAVE_AGAIN = "Save the model's state_dict() alone, or as safetensors."
BEFORE_QUANTISED = "Pass the weights before they were quantised."
# Types and functions of quantised tensors: PyTorch's own, torchao's subclasses, other libraries'.
QUANTISED = re.compile(r"torch\.Q(U)?Int|_rebuild_qtensor|_rebuild_wrapper_subclass|torchao|bitsandbytes|quant", re.I)

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
    """A row of numbers that the file stores under `key`."""

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
class Name:
    """A class or function that the pickle names. It is not imported."""

    full: str


@dataclass
class Inert:
    """An instance of a class that weights do not need, as the arguments of a script. Nothing of it ever ran."""

    type_name: str
    parts: list[Any] = field(default_factory=list[Any])  # arguments, state and items, as the pickle gave them


@dataclass(frozen=True)
class _StorageType:
    dtype: torch.dtype


@dataclass(frozen=True)
class _ScriptClass:
    name: str


@dataclass(frozen=True)
class _Function:
    """One of our functions, which is called instead of the function that the pickle names."""

    run: Callable[..., object]


class _Mark:
    """The object that MARK puts on the stack."""


def _read_numbers(value: object, most: int) -> tuple[int, ...]:
    """Return a short row of 64-bit numbers. A long one costs the pickle a reference each time and us a copy."""
    if isinstance(value, (list, tuple)) and len(value) <= most:
        numbers = tuple(n for n in value if type(n) is int and abs(n) < 2**63)
        if len(numbers) == len(value):
            return numbers
    raise CheckpointError("weights", f"its pickle has no row of at most {most} numbers where a shape should be")


def _rebuild_tensor(storage: object, offset: object, shape: object, stride: object, *_: object) -> object:
    if not isinstance(storage, Storage):
        raise CheckpointError("weights", "its pickle describes a tensor without a storage")
    (start,) = _read_numbers((offset,), 1)
    return TensorLayout(storage, start, _read_numbers(shape, MAX_DIMENSIONS), _read_numbers(stride, MAX_DIMENSIONS))


def _rebuild_device(*where: object) -> object:
    words = [str(part) for part in where if isinstance(part, str) or (type(part) is int and abs(part) < 2**31)]
    if len(words) != len(where) or sum(map(len, words)) > MAX_SHOWN:
        raise CheckpointError("weights", "its pickle names no device where one should be")
    return ":".join(words)


def _keep_first(value: object, *_: object) -> object:
    return value


def _check_key(key: object) -> object:
    """Refuse keys whose hash never ends (tuples nested twice) or collides (large numbers), or that fill memory."""
    short = isinstance(key, str) and len(key) <= MAX_KEY
    if short or isinstance(key, (bool, type(None))) or (type(key) is int and abs(key) < 2**31):
        return key
    raise _unexpected("has as a key", key if isinstance(key, str) else type(key))


_DTYPE_NAMES = frozenset(str(dtype).removeprefix("torch.") for dtype in DTYPES.values())

_FUNCTIONS: dict[str, _Function] = {
    "collections.defaultdict": _Function(lambda *_: {}),
    "collections.OrderedDict": _Function(dict),  # without pairs; `reduce` checks the pairs where there are any
    "torch._utils._rebuild_tensor": _Function(_rebuild_tensor),
    "torch._utils._rebuild_tensor_v2": _Function(_rebuild_tensor),
    "torch._utils._rebuild_parameter": _Function(_keep_first),
    "torch._utils._rebuild_parameter_with_state": _Function(_keep_first),
    "torch.Size": _Function(lambda sizes=(): _read_numbers(sizes, MAX_DIMENSIONS)),
    "torch.device": _Function(_rebuild_device),
    # TorchScript states the type of a list; the list is the first argument.
    "torch.jit._pickle.build_intlist": _Function(_keep_first),
    "torch.jit._pickle.build_doublelist": _Function(_keep_first),
    "torch.jit._pickle.build_boollist": _Function(_keep_first),
    "torch.jit._pickle.build_tensorlist": _Function(_keep_first),
    "torch.jit._pickle.restore_type_tag": _Function(_keep_first),
}


# Calls that pickle writes for plain values beside weights: numbers and arrays of NumPy, bytes, sets, dates. They are
# not carried out either. Other callables with a small letter are functions, which weights have no need to name.
_MAKERS = frozenset(
    ("_codecs.encode", "copyreg._reconstructor", "functools.partial", "numpy.dtype",
     "numpy.ndarray", "builtins.set", "builtins.frozenset", "builtins.complex", "builtins.bytearray", "builtins.bytes",
     "builtins.slice", "builtins.range", "builtins.object", "collections.deque", "datetime.date", "datetime.datetime",
     "datetime.time", "datetime.timedelta", "datetime.timezone"),
)  # fmt: skip
_NUMPY_MAKERS = re.compile(
    r"numpy\.(?:_?core\.(?:multiarray|numeric)\.(?:_reconstruct|scalar|_frombuffer)|random\._.*)"
)
# Modules whose classes do something when they are called; refused so that such a file is not taken for a harmless one.
_ACTING = frozenset(
    ("asyncio", "ctypes", "importlib", "multiprocessing", "nt", "os", "posix", "pty", "runpy", "shutil", "socket",
     "subprocess", "sys", "webbrowser"),
)  # fmt: skip


_PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # as protocol 2 names them


def _is_value(name: str) -> bool:
    """Return whether calling this name makes a value: a class by PEP 8's capital letter, or one of `_MAKERS`."""
    module, _, last = name.rpartition(".")
    is_class = last[:1].isupper() and module.partition(".")[0] not in _ACTING
    return is_class or name in _MAKERS or _NUMPY_MAKERS.fullmatch(name) is not None


def _resolve(module: str, name: str) -> object:
    full = f"{_PYTHON_2.get(module, module)}.{name}"
    if full in _FUNCTIONS:
        return _FUNCTIONS[full]
    if module == "torch" and name in DTYPES:
        return _StorageType(DTYPES[name])
    if module == "torch" and name in _DTYPE_NAMES:
        return full
    if module.startswith("__torch__"):
        return _ScriptClass(full)
    return Name(full)


class _Machine:
    """The stack and the memo, and a method for each group of opcodes."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.copied = 0  # elements of containers that were copied; one opcode can copy all there are

    def pop_to_mark(self) -> list[Any]:
        items: list[Any] = []
        while not isinstance(top := self.stack.pop(), _Mark):
            items.append(top)
        return items[::-1]

    def make_tuple(self, count: int) -> None:
        items = [self.stack.pop() for _ in range(count)][::-1]
        self.stack.append(tuple(items))

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Inert):
            target.parts.extend(items)
            return
        if not isinstance(target, dict):
            raise _unexpected("sets items of", target)
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_check_key(key)] = value

    def append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, (list, Inert)):
            raise _unexpected("appends to", target)
        (target.parts if isinstance(target, Inert) else target).extend(items)

    def reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if isinstance(function, Name) and isinstance(arguments, tuple) and _is_value(function.full):
            self.stack.append(Inert(function.full, [arguments]))
            return
        if not isinstance(function, _Function) or not isinstance(arguments, tuple):
            raise _unexpected("calls", function)
        if function is _FUNCTIONS["collections.OrderedDict"] and arguments:
            self.stack.append(self.make_dict(arguments[0]))
        else:
            self.stack.append(function.run(*arguments))

    def make_dict(self, pairs: object) -> dict[Any, Any]:
        if not isinstance(pairs, (list, tuple)) or not all(isinstance(p, (list, tuple)) and len(p) == 2 for p in pairs):
            raise CheckpointError("weights", "its pickle fills an OrderedDict with other things than pairs")
        self.count_copy(len(pairs))
        return {_check_key(pair[0]): pair[1] for pair in pairs}

    def count_copy(self, elements: int) -> None:
        self.copied += elements
        if self.copied > MAX_OPCODES:
            raise CheckpointError("weights", f"its pickle copies over {MAX_OPCODES:,} elements", "fewer")

    def make_object(self, *, keywords: bool = False) -> None:
        named = self.stack.pop() if keywords else {}
        arguments, cls = self.stack.pop(), self.stack.pop()
        if isinstance(cls, Name):
            self.stack.append(Inert(cls.full, [arguments, named]))
        elif isinstance(cls, _ScriptClass) and arguments == ():
            self.stack.append(ScriptObject(cls.name))
        elif cls is _FUNCTIONS["collections.OrderedDict"] and arguments == ():
            self.stack.append({})
        else:
            raise _unexpected("makes", cls)

    def build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, ScriptObject) and isinstance(state, dict):
            self.count_copy(len(state))
            target.attributes.update(state)
        elif isinstance(target, Inert):
            target.parts.append(state)
        elif not (isinstance(target, dict) and isinstance(state, dict)):
            # An OrderedDict's state is the _metadata of a state dict, which holds version numbers only.
            raise _unexpected("sets the state of", target)

    def load_storage(self) -> None:
        match self.stack.pop():
            case ("storage", _StorageType(dtype), str(key), str(), int(numel), *view) if view in ([], [None]):
                self.stack.append(Storage(key, dtype, numel))
            case ("module", Name() as cls, *_):  # as older versions write a class, with its source
                self.stack.append(cls)
            case ("storage", Name(full), *_):
                raise _unexpected("has numbers of a", full)
            case other:
                raise _unexpected("refers to", other)

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
                | "BINBYTES" | "SHORT_BINBYTES" | "BINBYTES8" | "BYTEARRAY8"
            ):  # fmt: skip
                stack.append(arg)
            case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_TUPLE" | "EMPTY_SET":
                stack.append({"EMPTY_DICT": dict, "EMPTY_TUPLE": tuple}.get(name, list)())
            case "TUPLE" | "FROZENSET":  # sets become lists and tuples, as their members may have no hash
                stack.append(tuple(self.pop_to_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                self.make_tuple(int(name[-1]))
            case "BINPUT" | "LONG_BINPUT":
                self.put(arg)
            case "MEMOIZE":
                self.put(len(self.memo))
            case "BINGET" | "LONG_BINGET":
                stack.append(self.memo[arg])
            case "SETITEM":
                self.set_items([stack.pop(), stack.pop()][::-1])
            case "SETITEMS":
                self.set_items(self.pop_to_mark())
            case "APPEND":
                self.append([stack.pop()])
            case "APPENDS" | "ADDITEMS":
                self.append(self.pop_to_mark())
            case "GLOBAL":
                stack.append(_resolve(*arg.split(" ", 1)))
            case "STACK_GLOBAL":
                attribute, module = stack.pop(), stack.pop()
                if not isinstance(module, str) or not isinstance(attribute, str):
                    raise CheckpointError("weights", "its pickle names a class by something else than text")
                stack.append(_resolve(module, attribute))
            case "REDUCE":
                self.reduce()
            case "NEWOBJ" | "NEWOBJ_EX":
                self.make_object(keywords=name == "NEWOBJ_EX")
            case "BUILD":
                self.build()
            case "BINPERSID":
                self.load_storage()
            case _:
                found = f"it uses the pickle opcode {name}"
                raise UnsafeCheckpointError("weights", found, "those of tensors and plain values", SAVE_AGAIN)


def _unexpected(verb: str, value: object) -> UnsafeCheckpointError:
    kind = value if isinstance(value, type) else type(value)
    text = value.full if isinstance(value, Name) else value.type_name if isinstance(value, Inert) else value
    name = quote(text) if isinstance(text, str) else f"a {kind.__name__}"
    if isinstance(text, str) and QUANTISED.search(text):
        found = f"it is quantised: its pickle {verb} {name}"
        return UnsafeCheckpointError("weights", found, "fractions", BEFORE_QUANTISED)
    return UnsafeCheckpointError("weights", f"its pickle {verb} {name}", "only tensors and plain values", SAVE_AGAIN)


def read_pickle(stream: BytesIO) -> Any:
    """Return the value of the pickle at the stream's position, and leave the stream after the pickle's last byte.

    A value is a dict, list, tuple, string, bytes, number, boolean, None, `TensorLayout` or `ScriptObject`; an
    OrderedDict becomes a dict. A class is a `Name`, and an instance of one an `Inert`.

    Raises:  UnsafeCheckpointError for anything else, CheckpointError for a broken pickle.
    """
    machine = _Machine()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of deprecated escapes in text opcodes, which are refused afterwards
        return _run(machine, stream)


def _run(machine: _Machine, stream: BytesIO) -> Any:
    try:
        for count, (opcode, arg, _) in enumerate(pickletools.genops(stream)):
            if count > MAX_OPCODES:
                raise CheckpointError("weights", f"its pickle has over {MAX_OPCODES:,} opcodes", "fewer")
            if opcode.name == "STOP":
                return machine.stack.pop()
            machine.step(opcode.name, arg)
    # Errors of the parser and of the stack for a stream that is no pickle, or a damaged one.
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, RecursionError, EOFError) as exc:
        raise CheckpointError("weights", f"its pickle is damaged ({type(exc).__name__}: {quote(str(exc))})") from exc
    raise CheckpointError("weights", "its pickle has no end")
