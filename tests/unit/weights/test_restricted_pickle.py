"""Pickles of plain values come back as they were; everything else is refused by name, and nothing is ever run."""

import argparse
import datetime
import enum
import functools
import os
import pickle
import pickletools
import struct
import types
from collections import Counter, OrderedDict, defaultdict, deque
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kit.archives import Call, Persistent, opcodes, pickled, storage, tensor

from clip.errors import CheckpointError, UnsafeCheckpointError
from clip.weights import restricted_pickle
from clip.weights.restricted_pickle import Inert, Name, ScriptObject, Storage, TensorLayout, read_pickle

KEYS = st.text() | st.integers(-(2**31) + 1, 2**31 - 1) | st.booleans() | st.none()
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(KEYS, inner),
    max_leaves=30,
)
OUTSIDE = Storage("0", torch.float32, 4)


def read(data: bytes) -> Any:
    return read_pickle(BytesIO(data))


def refusal(data: bytes) -> str:
    """The message of the CheckpointError, empty where there is a value; any other exception comes through."""
    try:
        read(data)
    except CheckpointError as error:
        return str(error)
    return ""


def program(*parts: bytes) -> bytes:
    return b"\x80\x02" + b"".join(parts) + b"."


@given(PLAIN, st.integers(2, 5))
@example(
    {"long": 2**5_000, "short": -1, "text": "\ud800".encode("utf-8", "surrogatepass").decode("utf-8", "replace")}, 2
)
@example([[]] * 3 + [(), ((),), {}, -0.0, float("inf")], 4)
def test_plain_values_come_back_with_their_types(value: Any, protocol: int) -> None:
    found = read(pickle.dumps(value, protocol))
    assert type(found) is type(value)
    assert pickle.dumps(found, 4) == pickle.dumps(pickle.loads(pickle.dumps(value, protocol)), 4)  # tells 1 from True


def test_a_shared_value_stays_one_object() -> None:
    inner = {"a": 1}
    first, second = read(pickled([inner, inner]))
    assert first is second


def test_pickles_in_a_row_are_read_one_by_one() -> None:
    stream = BytesIO(pickled("first") + pickled(["second"]) + b"tail")
    assert [read_pickle(stream), read_pickle(stream), stream.read()] == ["first", ["second"], b"tail"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (OrderedDict(a=1, b=[2]), {"a": 1, "b": [2]}),
        (Call(OrderedDict, ([("a", 1), ("b", 2)],)), {"a": 1, "b": 2}),
        (torch.Size([2, 3]), (2, 3)),
        (torch.device("cpu"), "cpu"),
        (torch.float16, "torch.float16"),
        (storage("7", 9, torch.HalfStorage), Storage("7", torch.float16, 9)),
        (tensor(shape=(2, 2), stride=(2, 1)), TensorLayout(OUTSIDE, 0, (2, 2), (2, 1))),
        (Call(torch._utils._rebuild_tensor, (storage(), 1, (), ())), TensorLayout(OUTSIDE, 1, (), ())),
        (Call(torch._utils._rebuild_parameter, (tensor(), True, OrderedDict())), TensorLayout(OUTSIDE, 0, (4,), (1,))),
        (Persistent(("storage", torch.FloatStorage, "0", "cpu", 4, None)), OUTSIDE),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_weights_consist_of_becomes_plain_values_and_layouts(value: object, expected: object) -> None:
    found = read(pickled(value))
    assert (found, type(found)) == (expected, type(expected))


def test_a_script_module_becomes_its_name_and_attributes() -> None:
    module = b"c__torch__.torch.nn.modules.linear\nLinear\n)\x81"
    found = read(program(module, opcodes({"training": False, "bias": None}), b"b"))
    assert found == ScriptObject("__torch__.torch.nn.modules.linear.Linear", {"training": False, "bias": None})


FUNCTIONS = [
    "builtins.eval",
    "builtins.getattr",
    "posix.system",
    "subprocess.Popen",
    "os.PathLike",
    "torch.load",
    "torch._utils._rebuild_sparse_tensor",
    "torch.storage._load_from_bytes",
    "torch.jit._pickle.__builtins__",
    "torch.FloatStorage.from_file",
    "numpy._core.multiarray.fromfile",
    "numpy.savetxt",
    "collections.OrderedDict.fromkeys",
    "a\nb.\x1b[31m",
    "x" * 1_000 + ".y",
]
# A line break would end the name that GLOBAL reads.
BY_LINE = [("GLOBAL", name) for name in FUNCTIONS if "\n" not in name]


@pytest.mark.parametrize(
    ("opcode", "name"), [*BY_LINE, *(("STACK_GLOBAL", name) for name in FUNCTIONS)], ids=lambda value: repr(value[:40])
)
def test_a_call_of_a_function_is_refused_by_name(opcode: str, name: str) -> None:
    module, _, attribute = name.rpartition(".")
    by_line = f"c{module}\n{attribute}\n".encode()
    function = by_line if opcode == "GLOBAL" else opcodes(module) + opcodes(attribute) + b"\x93"
    assert read(program(function)) == Name(name), "its name alone does no harm"
    with pytest.raises(UnsafeCheckpointError) as caught:
        read(program(function, opcodes(("argument",)), b"R"))
    assert repr(name)[:60].rstrip("'") in str(caught.value)
    assert len(str(caught.value)) < 300
    assert str(caught.value).isprintable()


# Each with the argument its opcode takes, and with what it takes from the stack.
UNUSED_OPCODES = {
    "POP": b"NN0",
    "DUP": b"N2",
    "POP_MARK": b"N(1",
    "INT": b"I1\n",
    "LONG": b"L1L\n",
    "FLOAT": b"F1\n",
    "STRING": b"S'a'\n",
    "UNICODE": b"Va\n",
    "LIST": b"(l",
    "DICT": b"(d",
    "GET": b"g0\n",
    "PUT": b"Np0\n",
    "INST": b"(iposix\nsystem\n",
    "OBJ": b"(}o",
    "EXT1": b"\x82\x01",
    "EXT2": b"\x83\x01\0",
    "EXT4": b"\x84\x01\0\0\0",
    "PERSID": b"P0\n",
    "NEXT_BUFFER": b"\x97",
    "READONLY_BUFFER": b"N\x98",
}


@pytest.mark.parametrize("name", UNUSED_OPCODES)
def test_an_opcode_that_weights_do_not_need_is_refused(name: str) -> None:
    assert name in [opcode.name for opcode in pickletools.opcodes]
    with pytest.raises(UnsafeCheckpointError, match=f"opcode {name},"):
        read(program(UNUSED_OPCODES[name]))


class Options(dict[str, Any]):
    """A dict with attributes, as configurations often are."""

    def __init__(self, **options: Any) -> None:
        super().__init__(options)
        self.name = "options"


class Mode(enum.Enum):
    FAST = 1


INSTANCES = {
    "argparse.Namespace": argparse.Namespace(model="ViT-B/32", lr=1e-5, layers=[1, 2]),
    "types.SimpleNamespace": types.SimpleNamespace(a=1),
    "a dict's child": Options(a=1, b={"c": (2,)}),
    "a list's child": type("Items", (list,), {"__module__": __name__})([1]),
    "enum": Mode.FAST,
    "pathlib": Path("a/b"),
    "a date": datetime.datetime(2024, 1, 2, tzinfo=datetime.UTC),
    "numpy's number": np.float64(0.5),
    "numpy's array": np.arange(3),
    "numpy's type": np.dtype("int8"),
    "a set": {1, "a"},
    "a frozen set": frozenset({1}),
    "bytes": b"\x00\xff",
    "complex": 1j,
    "defaultdict": defaultdict(int, a=1),
    "deque": deque([1]),
    "Counter": Counter("aab"),
    "partial": functools.partial(print, 1),
    "an exception": ValueError("a"),
    "a type": torch.nn.Linear,
}
globals()["Items"] = type(INSTANCES["a list's child"])


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("name", INSTANCES)
def test_instances_of_other_classes_are_read_and_stay_inert(name: str, protocol: int) -> None:
    value = INSTANCES[name]
    assert pickle.loads(pickle.dumps(value, protocol)) is not None
    found = read(pickle.dumps({"weight": 1, "value": value, "after": [2]}, protocol))
    assert (found["weight"], found["after"]) == (1, [2])
    assert type(found["value"]) in (Inert, Name, dict, list, tuple, bytes)


def test_an_inert_instance_holds_what_the_pickle_gave_it() -> None:
    found = read(pickle.dumps(argparse.Namespace(model="ViT-B/32"), 2))
    assert found == Inert("argparse.Namespace", [(), {}, {"model": "ViT-B/32"}])
    options = read(pickle.dumps(Options(a=1), 2))
    assert (options.type_name.rpartition(".")[2], options.parts) == ("Options", [(), {}, "a", 1, {"name": "options"}])


STORAGE_TYPE, ORDERED_DICT, SCRIPT = b"ctorch\nFloatStorage\n", b"ccollections\nOrderedDict\n", b"c__torch__\nM\n"


@pytest.mark.parametrize(
    ("data", "verb"),
    [
        (program(b"})R"), "calls a dict"),
        (program(STORAGE_TYPE, b")R"), "calls a _StorageType"),
        (program(SCRIPT, b")R"), "calls a _ScriptClass"),
        (program(ORDERED_DICT, b"}R"), "calls a _Function"),
        (program(opcodes("os.system"), b")R"), "calls 'os.system'"),
        (program(STORAGE_TYPE, b")\x81"), "makes a _StorageType"),
        (program(SCRIPT, b"N\x85\x81"), "makes a _ScriptClass"),
        (program(b"]}b"), "sets the state of a list"),
        (program(SCRIPT, b")\x81Nb"), "sets the state of a ScriptObject"),
        (program(SCRIPT, b"}b"), "sets the state of a _ScriptClass"),
        (program(b"]NNs"), "sets items of a list"),
        (program(SCRIPT, b"(NNu"), "sets items of a _ScriptClass"),
        (program(b"}Na"), "appends to a dict"),
        (program(b"}(Ne"), "appends to a dict"),
        (program(b"})Ns"), "has as a key a tuple"),
        (program(b"}", SCRIPT, b"Ns"), "has as a key a _ScriptClass"),
        (pickled(Call(OrderedDict, ([((1, 2), 3)],))), "has as a key a tuple"),
        (program(opcodes("module"), b"Q"), "refers to 'module'"),
        (pickled(Persistent(("storage", "FloatStorage", "0", "cpu", 4))), "refers to a tuple"),
        (pickled(Persistent(("storage", torch.FloatStorage, "0", "cpu", 4, ("view", 0, 1)))), "refers to a tuple"),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)
def test_what_weights_never_do_is_refused(data: bytes, verb: str) -> None:
    with pytest.raises(UnsafeCheckpointError) as caught:
        read(data)
    assert f"its pickle {verb}, expected only tensors" in str(caught.value)


@pytest.mark.parametrize(
    "value",
    [
        tensor(of="no storage"),
        tensor(offset=True),
        tensor(shape=(4.0,)),
        tensor(shape=("4",)),
        tensor(shape=None),
        Call(OrderedDict, ([1],)),
        Call(torch.Size, (1, 2)),
        storage(numel=4.0),
    ],
    ids=lambda value: repr(value)[-60:],
)
def test_a_description_that_makes_no_sense_is_refused(value: object) -> None:
    with pytest.raises(CheckpointError):
        read(pickled(value))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80",
        b"\x80\x02",
        b".",
        b"\x80\x02.",
        b"\x80\x02N",
        program(b"h\x00"),
        program(b"q\x00"),
        program(b"u"),
        program(b"(t\x86"),
        program(b"}(Nu"),
        program(b"X\xff\xff\xff\xff"),
        program(b"X\x01\0\0\0\xff"),
        program(b"\x8b\xff\xff\xff\xffa"),
        program(b"S'\\d'\n"),
        program(b"S" + b"x" * 10_000 + b"\n"),
        program(b"\xff"),
        *(program(opcode, struct.pack("<Q", 2**60), b"a") for opcode in (b"\x8d", b"\x8e", b"\x96")),
    ],
    ids=lambda data: repr(data[:12]),
)
def test_a_broken_pickle_is_a_checkpoint_error_of_one_short_line(data: bytes) -> None:
    with pytest.raises(CheckpointError) as caught:
        read(data)
    assert len(str(caught.value)) < 300
    assert str(caught.value).isprintable()


def test_a_memo_with_huge_numbers_and_a_frame_with_a_huge_length_cost_nothing() -> None:
    frame = b"\x95" + struct.pack("<Q", 2**60)
    assert read(program(frame, b"Nr\xff\xff\xff\xffj\xff\xff\xff\xff")) is None


def test_opcodes_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restricted_pickle, "MAX_OPCODES", 100)
    assert read(program(b"N" * 90)) is None
    with pytest.raises(CheckpointError, match="over 100 opcodes"):
        read(program(b"N" * 200))


SAVED = pickled({f"layer{i}.weight": tensor(storage(str(i), 6), 0, (2, 3), (3, 1)) for i in range(3)})


@given(st.integers(0, len(SAVED) - 1))
def test_a_pickle_cut_anywhere_is_a_checkpoint_error(length: int) -> None:
    with pytest.raises(CheckpointError):
        read(SAVED[:length])


@given(st.lists(st.tuples(st.integers(0, len(SAVED) - 1), st.integers(0, 255)), min_size=1, max_size=4))
@settings(max_examples=500, deadline=None)
def test_a_pickle_with_other_bytes_gives_a_value_or_a_checkpoint_error(changes: list[tuple[int, int]]) -> None:
    data = bytearray(SAVED)
    for position, byte in changes:
        data[position] = byte
    assert len(refusal(bytes(data))) < 500


@pytest.fixture(scope="module")
def canary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bombs") / "canary"


@given(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=3))
@settings(max_examples=300, deadline=None)
def test_no_change_of_bytes_makes_a_bomb_go_off(canary: Path, changes: list[tuple[int, int]]) -> None:
    bomb = bytearray(pickled([Call(exec, (f"open({str(canary)!r}, 'w').close()",)), Call(os.mkdir, (str(canary),))]))
    for position, byte in changes:
        bomb[position % len(bomb)] = byte
    refusal(bytes(bomb))
    assert not canary.exists()


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_any_bytes_give_a_value_or_a_checkpoint_error(data: bytes) -> None:
    assert len(refusal(b"\x80\x02" + data)) < 500
