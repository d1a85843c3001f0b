"""Read the tensors of a .pt file without running what is in it.

Three formats carry PyTorch weights: the zip of torch.save since 1.6, the same zip with code in it (TorchScript, in
which OpenAI published), and the bare pickles of older versions. `torch.jit.load` compiles the code of the second, and
an unrestricted unpickler runs whatever the others name. Here storages are memory-mapped, bounds are checked, and
`restricted_pickle` reads the rest. Errors are about "weights" until `read_torch_file` names the file.
"""

from __future__ import annotations

import io
import mmap
import re
import struct
import zipfile
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import torch

from ..errors import CheckpointError, quote
from .restricted_pickle import MAX_DIMENSIONS, MAX_KEY, Inert, ScriptObject, Storage, TensorLayout, read_pickle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

MAX_PICKLE_BYTES = 16 * 2**20  # the pickle of a state dict takes about 150 bytes per tensor
MAX_CODE_BYTES = 16 * 2**20  # of all classes of a TorchScript archive; a traced ViT-L/14 has 0.4 MB
MAX_RECORDS = 100_000  # files in a zip; RN50x64's archive has under 5,000
MAX_SHARING = 4  # times that a byte of the file may be used: a training script saves weights, averages and steps
MAX_MAPPINGS = 64  # of a file, one descriptor each; a process may have 256 on macOS, 1,024 on Linux
MAX_DEPTH = 32  # of nested containers
FETCH_AGAIN = "Fetch the file again."
ZIP_LOCAL_HEADER = struct.Struct("<4s5H3I2H")  # APPNOTE.TXT 4.3.7
PICKLE_PROTO = b"\x80"  # the opcode every binary pickle starts with
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # torch/serialization.py MAGIC_NUMBER
LEGACY_NUMEL = struct.Struct("<q")  # before each storage of a legacy file

# Exceptions of zipfile, zlib and struct for a file that is cut or scrambled.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    ValueError,
    EOFError,
    OverflowError,
    RuntimeError,  # encrypted records; NotImplementedError is one
    OSError,  # offsets before the start of the file or beyond what a file can have
    MemoryError,  # sizes that no file has
)

# The lists that TorchScript writes into the source of each class. They are read as text; the source is not run.
_CLASS = re.compile(r"^class (\w+)\(Module\):$", re.MULTILINE)
_ENTRIES = re.compile(r"^  __(?:parameters|buffers)__ = \[(.*)\]$", re.MULTILINE)


@dataclass(frozen=True)
class _Region:
    """The place of a storage in its file."""

    offset: int  # [Unit: bytes]
    size: int  # [Unit: bytes]


@dataclass(frozen=True)
class ScriptState:
    """The parameters and buffers of a TorchScript archive, and what its code shows of the network."""

    tensors: dict[str, torch.Tensor]
    classes: frozenset[str]
    uses_gelu: bool  # torch's GELU is called somewhere


def read_torch_file(path: Path) -> Any:
    """Return the value that torch.save or torch.jit.save wrote to `path`, with tensors that are views of the file.

    It has dicts, lists, tuples and plain values as they were saved, and an `Inert` for an instance of another class.
    A TorchScript archive gives a `ScriptState`. Mappings are private: writing to a tensor leaves the file unchanged.

    Raises:  UnsafeCheckpointError for anything but tensors and plain values, CheckpointError for a damaged file.
    """
    with path.open("rb") as file:
        try:
            if zipfile.is_zipfile(file):
                return _read_zip(file)
            file.seek(0)
            if file.read(1) != PICKLE_PROTO:
                raise CheckpointError("weights", "neither a whole zip nor a pickle", "PyTorch weights", FETCH_AGAIN)
            return _read_legacy(file)
        except CheckpointError as exc:
            raise exc.about(path) from exc
        except _DAMAGE as exc:
            found = f"the file is damaged ({quote(str(exc))})"
            raise CheckpointError(path, found, "PyTorch weights", FETCH_AGAIN) from exc


def _read_zip(file: BinaryIO) -> Any:
    with zipfile.ZipFile(file) as archive:
        records = {info.filename: info for info in archive.infolist()}
        if len(records) > MAX_RECORDS:
            raise CheckpointError("weights", f"the zip has {len(records):,} records", f"at most {MAX_RECORDS:,}")
        roots = [name.removesuffix("/data.pkl") for name in records if re.fullmatch(r"[^/]+/data\.pkl", name)]
        if len(roots) != 1:
            found = f"a zip with {len(roots)} pickles of weights"
            raise CheckpointError("weights", found, "one", "Pass a file that torch.save or torch.jit.save wrote.")
        root = roots[0]
        byteorder = records.get(f"{root}/byteorder")
        if byteorder and _read_record(archive, byteorder, len("little")) != b"little":
            remedy = "Save the weights again on a little-endian machine."
            raise CheckpointError("weights", "its numbers are big-endian", "little-endian", remedy)
        _locate_record(file, records[f"{root}/data.pkl"])  # raises for a compressed one
        value = read_pickle(io.BytesIO(_read_record(archive, records[f"{root}/data.pkl"], MAX_PICKLE_BYTES)))

        def locate(storage: Storage) -> _Region:
            name = f"{root}/data/{storage.key}"
            if name not in records:
                found = f"record {quote(name)} is missing, though a tensor is in it"
                raise CheckpointError("weights", found, remedy=FETCH_AGAIN)
            return _locate_record(file, records[name])

        if not isinstance(value, ScriptObject):
            return _put_tensors(value, _Mapper(file, _find_storages(value), locate))
        sources = _ScriptSources(archive, root, records)
        entries = dict(_find_script_tensors(value, sources))
        tensors = _put_tensors(entries, _Mapper(file, _find_storages(entries), locate))
        return ScriptState(tensors, frozenset(sources.asked), sources.uses_gelu)


def _read_record(archive: zipfile.ZipFile, info: zipfile.ZipInfo, most: int) -> bytes:
    """Return the bytes of a record. Without the limit zipfile would inflate everything before it checks the size."""
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.file_size > most:
        found = f"record {quote(info.filename)} is {info.file_size:,} bytes, compressed by method {info.compress_type}"
        raise CheckpointError("weights", found, f"at most {most:,}, deflated or stored", FETCH_AGAIN)
    with archive.open(info) as record:
        return record.read(most + 1)


def _locate_record(file: BinaryIO, info: zipfile.ZipInfo) -> _Region:
    """Return the place of a record's bytes, read from its local header and checked against the file's size."""
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 0x1:
        expected = "it stored as PyTorch does"
        remedy = "Save the file again with torch.save."
        raise CheckpointError("weights", f"record {quote(info.filename)} is compressed or encrypted", expected, remedy)
    if info.filename.endswith(".pkl") and info.file_size > MAX_PICKLE_BYTES:
        found = f"its pickle takes {info.file_size:,} bytes"
        raise CheckpointError("weights", found, f"at most {MAX_PICKLE_BYTES:,}")
    file.seek(info.header_offset)
    header = ZIP_LOCAL_HEADER.unpack(file.read(ZIP_LOCAL_HEADER.size))
    name_bytes, extra_bytes = header[-2:]
    offset = info.header_offset + ZIP_LOCAL_HEADER.size + name_bytes + extra_bytes
    size = file.seek(0, io.SEEK_END)
    if header[0] != b"PK\x03\x04" or info.file_size != info.compress_size or offset + info.file_size > size:
        found = f"record {quote(info.filename)} ends beyond the file's {size:,} bytes"
        raise CheckpointError("weights", found, "it inside", FETCH_AGAIN)
    return _Region(offset, info.file_size)


def _read_legacy(file: BinaryIO) -> Any:
    """Read the format before torch 1.6: magic number, version, system, value, storage keys, then the storages."""
    position = 0

    def read_next() -> Any:
        nonlocal position
        file.seek(position)
        stream = io.BytesIO(file.read(MAX_PICKLE_BYTES))
        value = read_pickle(stream)
        position += stream.tell()
        return value

    if read_next() != LEGACY_MAGIC:
        remedy = "Save the model's state_dict() with torch.save, or as safetensors."
        raise CheckpointError("weights", "a pickle without PyTorch's magic number", "a file of torch.save", remedy)
    _version, system, value, keys = (read_next() for _ in range(4))
    if not isinstance(system, dict) or system.get("little_endian") is not True or not isinstance(keys, list):
        found = "its header is not that of torch.save on a little-endian machine"
        raise CheckpointError("weights", found, remedy="Save the weights again on such a machine.")
    starts: dict[str, int] = {}
    stated = {storage.key: storage for storage in _find_storages(value)}
    for key in keys:
        if not isinstance(key, str) or key not in stated:
            raise CheckpointError("weights", "a storage has no tensor in it", remedy="Save the weights again.")
        file.seek(position)
        (numel,) = LEGACY_NUMEL.unpack(file.read(LEGACY_NUMEL.size))
        if numel != stated[key].numel:
            expected = f"the {stated[key].numel:,} of its tensors"
            raise CheckpointError("weights", f"storage {quote(key)} has {numel:,} elements", expected, FETCH_AGAIN)
        starts[key] = position = position + LEGACY_NUMEL.size
        position += max(numel, 0) * stated[key].dtype.itemsize
    file_bytes = file.seek(0, io.SEEK_END)

    def locate(storage: Storage) -> _Region:
        size = storage.numel * storage.dtype.itemsize
        if storage.key not in starts or size < 0 or starts[storage.key] + size > file_bytes:
            found = f"storage {quote(storage.key)} ends beyond the file's {file_bytes:,} bytes"
            raise CheckpointError("weights", found, "it inside", FETCH_AGAIN)
        return _Region(starts[storage.key], size)

    return _put_tensors(value, _Mapper(file, _find_storages(value), locate))


class _ScriptSources:
    """The code of a TorchScript archive, searched for its lists of parameters and buffers."""

    def __init__(self, archive: zipfile.ZipFile, root: str, records: dict[str, zipfile.ZipInfo]) -> None:
        self.archive = archive
        self.root = root
        self.records = records
        self.known: dict[str, dict[str, set[str]]] = {}  # by module: the entries of each of its classes
        self.left_bytes = MAX_CODE_BYTES
        self.asked: set[str] = set()  # the classes of the archive's modules
        self.uses_gelu = False

    def list_entries(self, type_name: str) -> set[str] | None:
        """Return the names of the parameters and buffers of a class; None where its source does not list them."""
        self.asked.add(type_name)
        module, _, cls = type_name.rpartition(".")
        if module not in self.known:
            self.known[module] = self._parse(module)
        return self.known[module].get(cls)

    def _parse(self, module: str) -> dict[str, set[str]]:
        info = self.records.get(f"{self.root}/code/{module.replace('.', '/')}.py")
        if info is None:
            return {}
        source = _read_record(self.archive, info, self.left_bytes).decode("utf-8")
        self.left_bytes -= len(source)
        self.uses_gelu |= "torch.gelu(" in source
        classes = list(_CLASS.finditer(source))
        entries: dict[str, set[str]] = {}
        ends = [cls.start() for cls in classes[1:]] + [len(source)]
        for start, end in zip(classes, ends, strict=False):
            lists = _ENTRIES.findall(source, start.end(), end)
            if lists:
                entries[start[1]] = {name.strip(' "') for names in lists for name in names.split(",")} - {""}
        return entries


def _find_script_tensors(root: ScriptObject, sources: _ScriptSources) -> Iterator[tuple[str, object]]:
    """Yield the state dict of a module: its parameters and buffers, named by their path, and no other attributes."""
    seen = {id(root)}
    pending: list[tuple[str, ScriptObject]] = [("", root)]
    for prefix, module in pending:
        entries = sources.list_entries(module.type_name)
        for name, value in module.attributes.items():
            path = f"{prefix}{name}"
            if len(path) > MAX_KEY:
                found = f"its names are over {MAX_KEY} characters long"
                raise CheckpointError("weights", found, "those of one network")
            if isinstance(value, ScriptObject):
                if id(value) in seen:
                    raise CheckpointError("weights", "one of its modules has two places", "the tree of one network")
                seen.add(id(value))
                pending.append((f"{path}.", value))
            elif isinstance(value, TensorLayout) and (entries is None or name in entries):
                yield path, value


class _Mapper:
    """Makes tensors of layouts, as views of the file.

    Neighbouring storages share a mapping, because Python's mmap keeps a file descriptor open for each, and RN50x64 has
    1,353 tensors. A mapping is freed once its last tensor is copied into the model, so that loading peaks at the model
    and a little more, not at the model and the file.
    """

    def __init__(self, file: BinaryIO, storages: Iterable[Storage], locate: Callable[[Storage], _Region]) -> None:
        self.file_bytes = file.seek(0, io.SEEK_END)
        self.used_bytes = 0
        self.regions: dict[str, _Region] = {}
        for storage in dict.fromkeys(storages):
            place = locate(storage)
            if place.size >= self.regions.get(storage.key, place).size:
                self.regions[storage.key] = place
        self.mapped: dict[str, tuple[mmap.mmap, int]] = {}  # by key: its mapping, and where the storage begins in it
        for group in _group_regions(self.regions):
            first, last = self.regions[group[0]], self.regions[group[-1]]
            start = first.offset - first.offset % mmap.ALLOCATIONGRANULARITY
            mapping = mmap.mmap(file.fileno(), last.offset + last.size - start, access=mmap.ACCESS_COPY, offset=start)
            for key in group:
                self.mapped[key] = mapping, self.regions[key].offset - start

    def make_tensor(self, layout: TensorLayout) -> torch.Tensor:
        """Return a view of the layout's part of the file. Raises CheckpointError where it exceeds its storage."""
        storage, region = layout.storage, self.regions[layout.storage.key]
        itemsize = storage.dtype.itemsize
        first, last = layout.offset, layout.offset
        numel = 1
        for size, stride in zip(layout.shape, layout.stride, strict=False):
            last += (size - 1) * stride
            numel *= size
        if (
            len(layout.shape) != len(layout.stride)
            or len(layout.shape) > MAX_DIMENSIONS
            or min((first, *layout.shape, *layout.stride)) < 0
            or not 0 <= storage.numel * itemsize <= region.size
            or numel > storage.numel  # repeated elements cost the file nothing and us memory
            or (numel and last >= storage.numel)
        ):
            raise CheckpointError(
                "weights",
                f"a tensor of shape {layout.shape}, stride {layout.stride} and offset {layout.offset} does not fit "
                f"its storage of {min(storage.numel, region.size // itemsize):,} elements",
                remedy=FETCH_AGAIN,
            )
        self.used_bytes += (last - first + 1) * itemsize if numel else 0  # the elements between strides are read too
        if self.used_bytes > MAX_SHARING * self.file_bytes:
            found = f"its tensors take over {MAX_SHARING} times the file's {self.file_bytes:,} bytes"
            remedy = "Save the state dict with each tensor cloned."
            raise CheckpointError("weights", found, "tensors that do not share memory", remedy)
        if numel == 0:
            return torch.empty(layout.shape, dtype=storage.dtype)
        flat = self._make_flat(storage, first, last - first + 1)
        return flat.as_strided(layout.shape, layout.stride)

    def _make_flat(self, storage: Storage, first: int, count: int) -> torch.Tensor:
        mapping, start = self.mapped[storage.key]
        start += first * storage.dtype.itemsize
        if start % storage.dtype.itemsize:  # legacy files do not align their storages
            data = bytearray(mapping[start : start + count * storage.dtype.itemsize])
            return torch.frombuffer(data, dtype=storage.dtype)
        return torch.frombuffer(mapping, dtype=storage.dtype, count=count, offset=start)


def _group_regions(regions: dict[str, _Region]) -> Iterator[list[str]]:
    """Yield the keys of neighbouring regions in at most MAX_MAPPINGS groups of about the same size."""
    share = sum(region.size for region in regions.values()) // MAX_MAPPINGS
    group: list[str] = []
    size = 0
    for key, region in sorted(regions.items(), key=lambda item: item[1].offset):
        if not region.size:
            continue
        group.append(key)
        size += region.size
        if size > share:
            yield group
            group, size = [], 0
    if group:
        yield group


def _put_tensors(value: Any, mapper: _Mapper) -> Any:
    """Return the value with a tensor in place of each layout."""
    done: dict[int, Any] = {}  # by id, so that a shared value is converted once, however many references it has

    def convert(value: Any, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise CheckpointError("weights", f"its values nest over {MAX_DEPTH} deep", "a state dict")
        if not isinstance(value, (TensorLayout, dict, list, tuple)):
            return value
        if id(value) not in done:
            if isinstance(value, TensorLayout):
                done[id(value)] = mapper.make_tensor(value)
            elif isinstance(value, dict):
                done[id(value)] = {key: convert(item, depth + 1) for key, item in value.items()}
            else:
                done[id(value)] = type(value)(convert(item, depth + 1) for item in value)
        return done[id(value)]

    return convert(value, 0)


def _find_storages(value: Any) -> Iterator[Storage]:
    pending = [value]
    seen: set[int] = set()
    while pending:
        value = pending.pop()
        if isinstance(value, TensorLayout):
            yield value.storage
        elif isinstance(value, (dict, list, tuple, Inert)) and id(value) not in seen:
            seen.add(id(value))
            pending.extend(_members(value))


def _members(value: dict[Any, Any] | list[Any] | tuple[Any, ...] | Inert) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value.parts if isinstance(value, Inert) else value
