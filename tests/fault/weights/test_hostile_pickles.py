"""Weights files that would run code, fill the memory or never end. None does, and each is refused by name."""

import os
import pickle
import shutil
import struct
import subprocess
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from kit.archives import (
    LEGACY_MAGIC,
    SMALLEST,
    Call,
    Persistent,
    model_of,
    nested,
    opcodes,
    pickled,
    replace_records,
    script_archive,
    storage,
    tensor,
    torch_legacy,
    torch_zip,
)
from kit.guard import assert_refused

import clip

# What an unrestricted unpickler would call; each makes the file `canary`.
GADGETS: dict[str, Callable[[Path], Call]] = {
    "os.system": lambda canary: Call(os.system, (f"touch '{canary}'",)),
    "exec": lambda canary: Call(exec, (f"open({str(canary)!r}, 'w').close()",)),
    "subprocess": lambda canary: Call(subprocess.check_call, (["touch", str(canary)],)),
    "a method": lambda canary: Call(canary.touch, ()),
    "shutil": lambda canary: Call(shutil.copy, (__file__, str(canary))),
    "torch.save": lambda canary: Call(torch.save, ({}, str(canary))),
    "numpy": lambda canary: Call(np.savetxt, (str(canary), [0.0])),
}

# Where in a pickle a call can stand.
PLACES: dict[str, Callable[[Call], Any]] = {
    "the value": lambda bomb: bomb,
    "a dict's value": lambda bomb: {"weight": tensor(), "extra": bomb},
    "a dict's key": lambda bomb: {bomb: tensor()},
    "a list in a tuple": lambda bomb: {"weight": (1, [2, (bomb,)])},
    "an argument": lambda bomb: {"weight": Call(OrderedDict, ([("a", bomb)],))},
    "a tensor's storage": lambda bomb: {"weight": tensor(of=bomb)},
    "a tensor's hooks": lambda bomb: {"weight": Call(torch._utils._rebuild_tensor_v2, (storage(), 0, (), (), 0, bomb))},
    "a persistent id": lambda bomb: {"weight": tensor(of=Persistent(bomb))},
    "part of a persistent id": lambda bomb: {"weight": tensor(of=Persistent(("storage", bomb, "0", "cpu", 4)))},
}


def raw(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def zip_in_zip(path: Path, data: bytes) -> Path:
    inner = torch_zip(path.with_suffix(".inner"), data)
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(inner, "archive/inner.pt")
    return path


@cache
def script_archive_bytes() -> bytes:
    with TemporaryDirectory() as folder:
        return script_archive(Path(folder) / "model.pt", model_of(SMALLEST["vit"])).read_bytes()


def script_archive_around(path: Path, data: bytes) -> Path:
    path.write_bytes(script_archive_bytes())
    return replace_records(path, lambda name, content: data if name.endswith("/data.pkl") else content)


# What kind of file the pickle stands in.
CARRIERS: dict[str, Callable[[Path, bytes], Path]] = {
    "a pickle": raw,
    "a zip": torch_zip,
    "a zip in a zip": zip_in_zip,
    "TorchScript": script_archive_around,
    "legacy": torch_legacy,
    "the keys of legacy": lambda path, data: torch_legacy(path, pickled({"a": tensor()}) + data),
    "the head of legacy": lambda path, data: raw(path, pickled(LEGACY_MAGIC) + data),
}


@pytest.mark.parametrize("gadget", GADGETS)
def test_the_bombs_of_this_file_go_off_in_pythons_unpickler(gadget: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    pickle.loads(pickled(GADGETS[gadget](canary)))
    assert canary.exists()


@pytest.mark.parametrize("gadget", GADGETS)
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_no_call_is_carried_out(gadget: str, protocol: int, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    data = pickled({"weight": GADGETS[gadget](canary)}, protocol)
    assert_refused(torch_zip(tmp_path / "bomb.pt", data), "UnsafeCheckpointError")
    assert not canary.exists()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("carrier", CARRIERS)
def test_no_call_is_carried_out_wherever_it_stands(carrier: str, place: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    data = pickled(PLACES[place](GADGETS["exec"](canary)))
    assert_refused(CARRIERS[carrier](tmp_path / "bomb.pt", data))
    assert not canary.exists()


@pytest.mark.parametrize("name", ["exec", "os.system"])
def test_a_name_that_only_looks_like_torchscript_is_not_called(name: str, tmp_path: Path) -> None:
    data = b"\x80\x02c__torch__." + name.encode() + b"\nexec\n" + opcodes(("1/0",)) + b"R."
    assert_refused(torch_zip(tmp_path / "bomb.pt", data), "UnsafeCheckpointError", "calls a _ScriptClass")


def test_the_code_of_a_torchscript_archive_is_not_run(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    hostile = f"\nimport os\nos.system('touch {canary}')\nopen({str(canary)!r}, 'w').close()\n".encode()
    path = raw(tmp_path / "bomb.pt", script_archive_bytes())
    replace_records(path, lambda name, content: hostile + content + hostile if "/code/" in name else content)
    model, _ = clip.load(path, device="cpu")
    assert torch.equal(model.ln_final.weight, model_of(SMALLEST["vit"]).ln_final.weight)
    assert not canary.exists()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("content", "error", "says"),
    [
        (torch.nn.Linear(2, 2), "", "holds a whole module, 'torch.nn.modules.linear.Linear'"),
        (model_of(SMALLEST["vit"]), "", "holds a whole module, 'clip.model.CLIP'"),
        ({"weight": np.zeros(3)}, "", "entry 'weight' is a 'numpy._core.multiarray._reconstruct'"),
        ({"weight": np.float32(3)}, "", "scalar'"),
        ({"weight": torch.zeros(3).to_sparse()}, "Unsafe", "'torch.serialization._get_layout'"),
        ({"weight": torch.zeros(3, dtype=torch.complex64)}, "Unsafe", "'torch.ComplexFloatStorage'"),
        ({"path": Path("a")}, "", "'pathlib.PosixPath'"),
        ({"weight": b"bytes"}, "", "'_codecs.encode'"),
        ({"weight": {1, 2}}, "", "set'"),
    ],
    ids=lambda value: value.strip("'")[:40] if isinstance(value, str) else "",
)
def test_a_file_of_other_things_than_weights_is_refused_by_name(
    content: object, error: str, says: str, zipped: bool, tmp_path: Path
) -> None:
    torch.save(content, tmp_path / "saved.pt", _use_new_zipfile_serialization=zipped)
    assert_refused(tmp_path / "saved.pt", f"{error}CheckpointError", says)


# Memory and time.

NEW_MODULE = b"c__torch__.M\nM\n)\x81"  # an object of a TorchScript class, still without attributes
WEIGHT = opcodes(tensor())
LAUGHS = {
    "lists": nested(lambda inner: [inner, inner], 40),
    "tuples": nested(lambda inner: (inner, inner), 40),
    "dicts": nested(lambda inner: {"a": inner, "b": inner}, 40),
}
MANY = list(range(100_000))
MEETING = b"".join(b"\x8a\x0b" + (k * (2**61 - 1)).to_bytes(11, "little") + b"N" for k in range(1, 200_001))


def program(*parts: bytes) -> bytes:
    return b"\x80\x04" + b"".join(parts) + b"."


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def module(*attributes: bytes) -> bytes:
    """An object of a TorchScript class; an attribute is its name and its value."""
    return NEW_MODULE + b"}(" + b"".join(attributes) + b"ub"


def rebuilt(sizes: bytes, strides: bytes) -> bytes:
    """The call that makes a tensor, with its shape and stride as opcodes."""
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + opcodes(storage()) + b"K\x00" + sizes + strides + b"\x89NtR"


def pickle_bombs() -> dict[str, bytes]:
    huge = opcodes(1 << 8 * 60_000) + b"r\x09\0\0\0"
    return {
        **{f"laughs of {kind}": pickled({"a": value}) for kind, value in LAUGHS.items()},
        **{f"laughs of {kind} as a device": pickled(Call(torch.device, (value,))) for kind, value in LAUGHS.items()},
        **{
            f"laughs of {kind} as a name": program(opcodes(value), text("a"), b"\x93") for kind, value in LAUGHS.items()
        },
        **{f"laughs of {kind} as a size": pickled(tensor(shape=(value,))) for kind, value in LAUGHS.items()},
        "laughs as a key": program(b"}", opcodes(LAUGHS["tuples"]), b"Ns"),
        "laughs as a key of an OrderedDict": pickled(Call(OrderedDict, ([(LAUGHS["tuples"], 1)],))),
        "keys of one hash": program(b"}(", MEETING, b"u"),
        "a list in itself": program(b"]q\x01(h\x01h\x01e"),
        "a dict in itself": program(b"}q\x01(", text("a"), b"h\x01", text("b"), b"h\x01u"),
        "nested 100,000 deep": program(b"]" * 100_000, b"a" * 99_999),
        "copies as a size": pickled({"a": [Call(torch.Size, (MANY,)) for _ in range(5_000)]}),
        "copies of pairs": program(
            opcodes([(n, n) for n in MANY]),
            b"r\x09\0\0\0",
            b"(",
            b"ccollections\nOrderedDict\nj\x09\0\0\0\x85R" * 500,
            b"t",
        ),
        "copies as attributes": program(
            opcodes(dict.fromkeys(map(str, MANY))), b"r\x09\0\0\0", b"(", (NEW_MODULE + b"j\x09\0\0\0b") * 1_000, b"t"
        ),
        "sizes of many digits": program(
            huge, rebuilt(b"(" + b"j\x09\0\0\0" * 20_000 + b"t", b"(" + b"K\x01" * 20_000 + b"t")
        ),
        "many sizes": program(rebuilt(b"(" + b"K\x01" * 100_000 + b"t", b"(" + b"K\x01" * 100_000 + b"t")),
        "a long key": program(b"}", text("k" * 8_000_000), WEIGHT, b"s"),
        "a key of many digits": program(b"}", opcodes(1 << 100_000), b"Ns"),
        "four million lists": program(b"]" * 3_900_000),
        "twenty megabytes": program(text("a" * 20_000_000)),
        "a huge memo": program(b"Nr\xff\xff\xff\xff"),
        "a huge text": program(b"\x8d" + struct.pack("<Q", 2**60)),
        "a huge bytearray": program(b"\x96" + struct.pack("<Q", 2**60)),
        "a huge frame": program(b"\x95" + struct.pack("<Q", 2**60), b"N"),
        "a huge number": program(b"\x8b\xff\xff\xff\x7f"),
        "a module in itself": program(NEW_MODULE, b"q\x01}", text("a"), b"h\x01sb"),
        "modules of one module": program(
            module(
                *(text("m") + module(*(text(f"w{i}") + WEIGHT for i in range(1_000))) + b"r\x09\0\0\0",),
                *(text(f"m{i}") + b"j\x09\0\0\0" for i in range(90_000)),
            )
        ),
        "modules of long names": program(
            module(text("n" * 8_000_000) + module(*(text(f"m{i}") + module() for i in range(10_000))))
        ),
        "tensors of long names": program(
            module(text("n" * 8_000_000) + module(*(text(f"w{i}") + WEIGHT for i in range(10_000))))
        ),
    }


PICKLE_BOMBS = pickle_bombs()


@pytest.mark.parametrize("name", PICKLE_BOMBS)
def test_a_pickle_that_would_fill_the_memory_or_never_end_is_refused(name: str, tmp_path: Path) -> None:
    assert_refused(torch_zip(tmp_path / "bomb.pt", PICKLE_BOMBS[name]))
