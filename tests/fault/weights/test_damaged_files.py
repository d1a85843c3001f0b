"""Weights files that are cut, scrambled or lie about their sizes: a CheckpointError that names the file."""

import io
import json
import random
import struct
import tarfile
import zipfile
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.archives import (
    FORMATS,
    LEGACY_MAGIC,
    SMALLEST,
    Call,
    deflated_zeros,
    edit_directory,
    nested,
    opcodes,
    pickled,
    safetensors,
    storage,
    tensor,
    torch_legacy,
    torch_zip,
)
from kit.guard import assert_refused

import clip
from clip.errors import CheckpointError
from clip.weights import torch_file

FILES = ("torchscript", "zip", "legacy", "state_dict", "safetensors")


@cache
def content_of(file_format: str) -> bytes:
    with TemporaryDirectory() as folder:
        return FORMATS[file_format](Path(folder) / "weights", SMALLEST["vit"]).read_bytes()


def positions(content: bytes) -> st.SearchStrategy[int]:
    """Anywhere, and more often where the structure is: at the ends and in the pickle."""
    near = (0, len(content), max(content.find(b"/data.pkl"), 0))
    return st.one_of(
        st.integers(0, len(content) - 1),
        *(st.integers(max(0, at - 2_000), min(len(content) - 1, at + 4_000)) for at in near),
    )


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file, written anew for each example."""
    return tmp_path_factory.mktemp("damaged") / "weights"


@pytest.mark.parametrize("file_format", FILES)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_truncated_file_is_refused_by_name(file_format: str, scratch: Path, data: st.DataObject) -> None:
    content = content_of(file_format)
    scratch.write_bytes(content[: data.draw(positions(content))])
    with pytest.raises(CheckpointError) as caught:
        clip.load(scratch, device="cpu")
    assert str(caught.value).startswith(f"{scratch}: ")


@pytest.mark.parametrize("file_format", FILES)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_file_with_other_bytes_loads_or_is_refused_by_name(
    file_format: str, scratch: Path, data: st.DataObject
) -> None:
    content = bytearray(content_of(file_format))
    for position in data.draw(st.lists(positions(bytes(content)), min_size=1, max_size=4)):
        content[position] = data.draw(st.integers(0, 255))
    scratch.write_bytes(content)
    try:
        clip.load(scratch, device="cpu")
        message = f"{scratch}: loaded"
    except CheckpointError as error:
        message = str(error)
    assert message.startswith(f"{scratch}: ")
    assert message.isprintable()


def tar_of_old() -> bytes:
    """What torch.save wrote before version 0.1.10."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            content = pickled({"protocol_version": 1000, "little_endian": True})
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


OTHER_FILES = {
    "nothing": b"",
    "a byte": b"\x80",
    "a text": b"the quick brown fox\n" * 100,
    "a page": b"<!DOCTYPE html><html><body>404</body></html>",
    "an image": b"\x89PNG\r\n\x1a\n" + bytes(100),
    "random bytes": random.Random(0).randbytes(10_000),
    "random bytes that start as a pickle": b"\x80\x02" + random.Random(1).randbytes(10_000),
    "random bytes that start as a zip": b"PK\x03\x04" + random.Random(2).randbytes(10_000),
    "an empty zip": b"PK\x05\x06" + bytes(18),
    "a tar": tar_of_old(),
    "JSON": json.dumps({"model": "weights"}).encode(),
    "eight bytes and a brace": bytes(8) + b"{",
}


@pytest.mark.parametrize("name", OTHER_FILES)
def test_a_file_of_another_kind_is_refused_by_name(name: str, tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_bytes(OTHER_FILES[name])
    assert_refused(tmp_path / "weights.pt")


# Tensors that reach beyond what the file has; the storage holds four numbers.
NO_FIT = {
    "offset 1": tensor(offset=1),
    "offset -1": tensor(offset=-1),
    "offset 2**63": tensor(offset=2**63),
    "five numbers": tensor(shape=(5,)),
    "stride 2": tensor(stride=(2,)),
    "stride -1": tensor(stride=(-1,)),
    "stride 2**63": tensor(shape=(1,), stride=(2**63,)),
    "shape -4": tensor(shape=(-4,)),
    "shape -2, -2": tensor(shape=(-2, -2), stride=(2, 1)),
    "a trillion numbers": tensor(shape=(10**12,)),
    "a trillion times one number": tensor(shape=(10**12,), stride=(0,)),
    "a million times a million": tensor(shape=(10**6, 10**6), stride=(0, 0)),
    "nothing times 2**62": tensor(shape=(0, 2**62, 2**62), stride=(1, 1, 1)),
    "nothing times 2**70": tensor(shape=(0, 2**70), stride=(1, 1)),
    "two sizes, one stride": tensor(shape=(2, 2)),
    "nine dimensions": tensor(shape=(1,) * 9, stride=(1,) * 9),
    "a storage of five": tensor(storage(numel=5), shape=(1,)),
    "a storage of -1": tensor(storage(numel=-1), shape=(1,)),
    "a storage of 2**62": tensor(storage(numel=2**62), shape=(2**61,)),
    "a storage of 2**64": tensor(storage(numel=2**64), shape=(2**64,)),
    "a storage of doubles": tensor(storage(kind=torch.DoubleStorage), shape=(1,)),
    "a storage that is missing": tensor(storage("1"), shape=(1,)),
    "a storage elsewhere": tensor(storage("../data.pkl", 1), shape=(1,)),
}


@pytest.mark.parametrize("write", [torch_zip, torch_legacy], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", NO_FIT)
def test_a_tensor_that_does_not_fit_its_storage_is_refused(name: str, write: Any, tmp_path: Path) -> None:
    outcome = assert_refused(write(tmp_path / "weights.pt", pickled({"weight": NO_FIT[name]})))
    assert "KeyError" not in outcome.errors, "it got as far as the names of the entries"


@pytest.mark.parametrize("write", [torch_zip, torch_legacy], ids=["zip", "legacy"])
def test_tensors_that_share_a_storage_do_not_multiply_it(write: Any, tmp_path: Path) -> None:
    shared = tensor(storage(numel=2**16), shape=(2**16,))
    value = {str(i): Call(shared.function, shared.arguments) for i in range(60_000)}
    assert_refused(write(tmp_path / "weights.pt", pickled(value), data=bytes(2**18)), says="share memory")


@pytest.mark.parametrize("shift", range(4))
def test_tensors_of_two_far_numbers_do_not_multiply_their_storage(shift: int, tmp_path: Path) -> None:
    far = tensor(storage(numel=2**18), shape=(2,), stride=(2**18 - 1,))  # what lies between them is no part of them
    value = {"k" * (1 + shift): 0} | {str(i): Call(far.function, far.arguments) for i in range(20_000)}
    assert_refused(torch_legacy(tmp_path / "weights.pt", pickled(value), data=bytes(2**20)))


# Zips.

PLAIN = pickled({"weight": tensor()})
MODULE = b"\x80\x02c__torch__.M\nM\n)\x81}" + opcodes("w") + opcodes(tensor()) + b"sb."
CLASSES = "".join(f'class M{i}(Module):\n  __parameters__ = ["a", ]\n' for i in range(20_000)).encode()
MANY_MODULES = b"".join(opcodes(f"m{i}") + b"c__torch__.M\nM%d\n)\x81" % i for i in range(20_000))


@pytest.mark.parametrize(
    ("record", "fields"),
    [
        *(
            (record, {"header_offset": offset})
            for record in ("data.pkl", "data/0")
            for offset in (7, 10**6, 2**44, 2**63)
        ),
        *((record, {"file_size": 17}) for record in ("data.pkl", "data/0")),
        *((record, {"file_size": 2**20, "compress_size": 2**20}) for record in ("data.pkl", "data/0")),
        *((record, {"file_size": 2**40, "compress_size": 2**40}) for record in ("data.pkl", "data/0")),
        *((record, {"compress_type": method}) for record in ("data.pkl", "data/0") for method in (8, 14, 99)),
        *((record, {"flag_bits": 1}) for record in ("data.pkl", "data/0")),
        ("data.pkl", {"CRC": 0}),
        ("byteorder", {"header_offset": 2**44}),
        ("byteorder", {"compress_type": zipfile.ZIP_LZMA}),
        ("byteorder", {"compress_type": zipfile.ZIP_BZIP2}),
        ("byteorder", {"flag_bits": 1}),
    ],
    ids=str,
)
def test_a_zip_whose_directory_lies_is_refused(record: str, fields: dict[str, int], tmp_path: Path) -> None:
    path = torch_zip(tmp_path / "weights.pt", PLAIN, {"byteorder": b"little"})
    outcome = assert_refused(edit_directory(path, record, **fields))
    assert "KeyError" not in outcome.errors, "it got as far as the names of the entries"


@pytest.mark.parametrize("said", [3 * 2**30, 6, 1_000_000], ids=["honest", "as little", "as code"])
@pytest.mark.parametrize("record", ["data.pkl", "data/0", "byteorder", "code/__torch__/M.py"])
def test_a_record_that_inflates_to_gigabytes_is_refused(record: str, said: int, tmp_path: Path) -> None:
    bomb = deflated_zeros(3 * 2**10)
    path = torch_zip(
        tmp_path / "weights.pt", MODULE, {record: bomb} if record in ("byteorder",) or "code" in record else {}
    )
    if record == "data.pkl":
        path = torch_zip(path, bomb)
    elif record == "data/0":
        path = torch_zip(path, PLAIN, data=bomb)
    edit_directory(path, record, compress_type=zipfile.ZIP_DEFLATED, file_size=said)
    assert_refused(path)


def test_a_record_compressed_as_pytorch_never_does_is_refused(tmp_path: Path) -> None:
    broken = b"\x09\x04\x05\x00\x5d\x00\x00\x80\x00" + b"\xff" * 100  # a header of LZMA, and no LZMA
    path = torch_zip(tmp_path / "weights.pt", PLAIN, {"byteorder": broken})
    assert_refused(edit_directory(path, "byteorder", compress_type=zipfile.ZIP_LZMA, file_size=6))


def test_records_that_overlap_do_not_multiply(tmp_path: Path) -> None:
    value = {str(i): tensor(storage(str(i), 2**18), shape=(2**18,)) for i in range(1_500)}
    path = torch_zip(
        tmp_path / "weights.pt", pickled(value), {f"data/{i}": b"" for i in range(1, 1_500)}, data=bytes(2**20)
    )
    with zipfile.ZipFile(path, "a") as archive:
        first = archive.getinfo("archive/data/0")
        for i in range(1, 1_500):
            info = archive.getinfo(f"archive/data/{i}")
            info.header_offset, info.file_size, info.compress_size = first.header_offset, 2**20, 2**20
        archive.writestr("archive/edited", b"")
    assert "KeyError" not in assert_refused(path).errors


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ({"code/__torch__/M.py": CLASSES}, "no network that we know"),
        ({"code/__torch__/M.py": b"\xff not UTF-8"}, "damaged"),
        ({"code/__torch__/M.py": b"no class at all"}, "no network that we know"),
        ({}, "no network that we know"),
    ],
    ids=["20,000 classes", "no text", "no class", "no code"],
)
def test_the_code_of_an_archive_takes_little_time_to_look_at(code: dict[str, bytes], says: str, tmp_path: Path) -> None:
    many = b"\x80\x02c__torch__.M\nM\n)\x81}(" + MANY_MODULES + opcodes("w") + opcodes(tensor()) + b"ub."
    assert_refused(torch_zip(tmp_path / "weights.pt", many, code, method=zipfile.ZIP_DEFLATED), says=says)


def test_a_zip_of_other_things_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/b/data.pkl", PLAIN)
    assert_refused(path, says="a zip with 0 pickles of weights")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", PLAIN)
        archive.writestr("b/data.pkl", PLAIN)
    assert_refused(path, says="a zip with 2 pickles of weights")


def test_a_zip_of_a_big_endian_machine_is_refused(tmp_path: Path) -> None:
    path = torch_zip(tmp_path / "weights.pt", PLAIN, {"byteorder": b"big"})
    assert_refused(path, says="big-endian")


def test_a_zip_of_too_many_records_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_file, "MAX_RECORDS", 3)
    path = torch_zip(tmp_path / "weights.pt", PLAIN, {"a": b"", "b": b""})
    with pytest.raises(CheckpointError, match="has 4 records, expected at most 3"):
        clip.load(path, device="cpu")


# Legacy files.


@pytest.mark.parametrize("numel", [3, 5, 2**40, 2**55, 2**61 - 1, 2**63 - 1, -1, -(2**63)])
def test_a_legacy_file_whose_lengths_lie_is_refused(numel: int, tmp_path: Path) -> None:
    path = torch_legacy(tmp_path / "weights.pt", PLAIN, numel=numel)
    assert "KeyError" not in assert_refused(path).errors


KEYS = {
    "none": [],
    "another": ["1"],
    "a list": [["0"]],
    "a dict": [{}],
    "no list": {"0": 0},
    "a tuple nested twice": [nested(lambda inner: (inner, inner), 50)],
    "a long one": ["k" * 5_000_000],
}


@pytest.mark.parametrize("name", KEYS)
def test_a_legacy_file_with_other_keys_is_refused(name: str, tmp_path: Path) -> None:
    path = torch_legacy(tmp_path / "weights.pt", PLAIN, keys=KEYS[name])
    assert "KeyError" not in assert_refused(path).errors


@pytest.mark.parametrize(
    "head", [[LEGACY_MAGIC + 1], [LEGACY_MAGIC, 1001, {"little_endian": False}], [LEGACY_MAGIC, 1001, 0]]
)
def test_a_legacy_file_of_another_head_is_refused(head: list[object], tmp_path: Path) -> None:
    parts = [*head, *[LEGACY_MAGIC, 1001, {"little_endian": True}][len(head) :], {"weight": tensor()}, ["0"]]
    (tmp_path / "weights.pt").write_bytes(b"".join(map(pickled, parts)) + struct.pack("<q", 4) + bytes(16))
    assert "KeyError" not in assert_refused(tmp_path / "weights.pt").errors


# Safetensors.


def entry(shape: list[int], start: int = 0, end: int = 4, dtype: str = "F32") -> bytes:
    return json.dumps({"dtype": dtype, "shape": shape, "data_offsets": [start, end]}).encode()


SAFETENSORS: dict[str, dict[str, Any]] = {
    "a header of 2**63 bytes": {"header": b'{"w":' + entry([1]) + b"}", "header_bytes": 2**63},
    "a header of 2**40 bytes": {"header": b'{"w":' + entry([1]) + b"}", "header_bytes": 2**40},
    "a header of no bytes": {"header": b'{"w":' + entry([1]) + b"}", "header_bytes": 0},
    "half a header": {"header": b'{"w":' + entry([1]), "data": b""},
    "no entry": {"header": b"{}", "data": b""},
    "bytes of no entry": {"header": b"{}"},
    "overlapping entries": {"header": b'{"w":' + entry([1]) + b',"v":' + entry([1]) + b"}"},
    "one name twice": {"header": b'{"w":' + entry([1]) + b',"w":' + entry([1], 4, 8) + b"}", "data": bytes(8)},
    "too few bytes": {"header": b'{"w":' + entry([2], 0, 8) + b"}"},
    "a shape of more": {"header": b'{"w":' + entry([2]) + b"}"},
    "a shape of -1": {"header": b'{"w":' + entry([-1]) + b"}"},
    "a shape of 2**80": {"header": b'{"w":' + entry([2**40, 2**40]) + b"}"},
    "a shape of 0 times 2**63": {"header": b'{"w":' + entry([0, 2**63], 0, 0) + b"}", "data": b""},
    "offsets backwards": {"header": b'{"w":' + entry([1], 4, 0) + b"}"},
    "offsets of 2**64": {"header": b'{"w":' + entry([1], 2**64 - 4, 2**64) + b"}"},
    "numbers of six bits": {"header": b'{"w":' + entry([4], 0, 3, "F6_E2M3") + b"}", "data": bytes(3)},
    "numbers of a kind unknown": {"header": b'{"w":' + entry([1], dtype="F33") + b"}"},
    "nested 50,000 deep": {"header": b"{" + b'"a":{' * 50_000},
    "a name of a megabyte": {"header": b'{"' + b"w" * 2**20 + b'":' + entry([1]) + b"}"},
    "a name of two lines": {"header": b'{"w\\n\\u001b[31m":' + entry([1]) + b"}"},
}


@pytest.mark.parametrize("name", SAFETENSORS)
def test_a_safetensors_file_that_lies_is_refused(name: str, tmp_path: Path) -> None:
    outcome = assert_refused(safetensors(tmp_path / "weights.safetensors", **SAFETENSORS[name]))
    assert "KeyError" not in outcome.errors, "it got as far as the names of the entries"
