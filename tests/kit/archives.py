"""Builders of weights files: as PyTorch and safetensors write them, and by hand as nobody should."""

import io
import pickle
import struct
import warnings
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from clip.model import CLIP, convert_weights
from clip.network.records import Architecture
from kit import formula

# The least a CLIP can be: files of some hundred kilobytes that tests read many times.
SMALLEST = {
    "vit": Architecture(8, 32, 1, 64, 16, 4, 8, 64, 1, 1),
    "rn": Architecture(8, 32, (1, 1, 1, 1), 2, None, 4, 8, 64, 1, 1),
}
StateDict = dict[str, torch.Tensor]
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first value of a file by torch.save before 1.6
_weights = cache(formula.state_dict)


def model_of(architecture: Architecture, *, mixed: bool = False) -> CLIP:
    """The network with its weights by formula, fp32 or split as OpenAI's."""
    model = formula.layout(architecture)
    model.load_state_dict(_weights(architecture), assign=True)
    if mixed:
        convert_weights(model)
    return model.eval()


def script_archive(path: Path, model: CLIP) -> Path:
    """A TorchScript archive in the shape of OpenAI's, split into fp16 and fp32 as theirs. Spoils the model."""
    pixels = model.visual.input_resolution
    for name in ("input_resolution", "context_length", "vocab_size"):
        size = pixels if name == "input_resolution" else model.__dict__.pop(name)
        model.register_buffer(name, torch.tensor(size))
    image, text = torch.zeros(1, 3, pixels, pixels), torch.zeros(1, int(model.context_length), dtype=torch.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that tracing is deprecated, and that shapes become constants
        methods = {"encode_image": image, "encode_text": text, "forward": (image, text)}
        traced = torch.jit.trace_module(model, methods, check_trace=False)
        convert_weights(model)  # after tracing, so that the CPU computes in fp32; both hold the same tensors
        torch.jit.save(traced, path)
    return path


def _saved(wrap: Callable[[StateDict], Any], **options: Any) -> Callable[[Path, Architecture], Path]:
    def write(path: Path, architecture: Architecture) -> Path:
        torch.save(wrap(_weights(architecture)), path, **options)
        return path

    return write


def _safetensors(path: Path, architecture: Architecture) -> Path:
    save_file(_weights(architecture), path)
    return path


def _parallel(weights: StateDict) -> StateDict:
    return {f"module.{key}": tensor for key, tensor in weights.items()}


# Every kind of file `clip.load` takes. The TorchScript archive stores fp16, the others fp32.
FORMATS: dict[str, Callable[[Path, Architecture], Path]] = {
    "torchscript": lambda path, architecture: script_archive(path, model_of(architecture)),
    "zip": _saved(lambda weights: weights),
    "zip, OrderedDict with metadata": _saved(lambda weights: _with_metadata(weights)),
    "legacy": _saved(lambda weights: weights, _use_new_zipfile_serialization=False),
    "legacy, parameters": _saved(
        lambda weights: {
            key: torch.nn.Parameter(tensor, tensor.is_floating_point()) for key, tensor in weights.items()
        },
        _use_new_zipfile_serialization=False,
    ),
    "state_dict": _saved(lambda weights: {"epoch": 3, "state_dict": weights, "optimizer": {"state": {0: [0.5]}}}),
    "state_dict, module.": _saved(lambda weights: {"state_dict": _parallel(weights)}),
    "model_state_dict": _saved(lambda weights: {"model_state_dict": weights}),
    "model": _saved(lambda weights: {"model": weights}),
    "safetensors": _safetensors,
}


def _with_metadata(weights: StateDict) -> OrderedDict[str, torch.Tensor]:
    """As `state_dict()` gives it: with the modules' versions in an attribute."""
    ordered = OrderedDict(weights)
    ordered._metadata = OrderedDict({"": {"version": 1}})  # type: ignore[attr-defined]
    return ordered


# By hand.


@dataclass(eq=False)
class Call:
    """Pickled as a call: unpicklers carry it out."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.function, self.arguments


@dataclass(eq=False)
class Persistent:
    """Pickled as a reference to what lies outside the pickle, which is how PyTorch refers to storages."""

    value: object


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: object) -> object:
        return obj.value if isinstance(obj, Persistent) else None


def pickled(value: object, protocol: int = 2) -> bytes:
    stream = io.BytesIO()
    _Pickler(stream, protocol).dump(value)
    return stream.getvalue()


def opcodes(value: object) -> bytes:
    """What pushes a value, to put between other opcodes."""
    return pickled(value)[2:-1]


def storage(key: str = "0", numel: Any = 4, kind: type = torch.FloatStorage) -> Persistent:
    return Persistent(("storage", kind, key, "cpu", numel))


def tensor(of: Any = None, offset: Any = 0, shape: Any = (4,), stride: Any = (1,)) -> Call:
    arguments = (storage() if of is None else of, offset, shape, stride, False, OrderedDict())
    return Call(torch._utils._rebuild_tensor_v2, arguments)


def torch_zip(
    path: Path, pickle_bytes: bytes, records: dict[str, bytes] | None = None, method: int = 0, data: bytes = bytes(16)
) -> Path:
    """A zip around a pickle, with a storage "0" of `data`; `method` compresses the other `records`."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle_bytes)
        archive.writestr("archive/data/0", data)
        for name, content in (records or {}).items():
            archive.writestr(f"archive/{name}", content, method)
    return path


def replace_records(path: Path, change: Callable[[str, bytes], bytes]) -> Path:
    """The same zip with what `change` makes of each record's name and content."""
    with zipfile.ZipFile(path) as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in records.items():
            archive.writestr(name, change(name, content))
    return path


def edit_directory(path: Path, record: str, **fields: int) -> Path:
    """Write other numbers into a record's entry of a zip's directory; the record itself stays as it is."""
    with zipfile.ZipFile(path, "a") as archive:
        info = archive.getinfo(f"archive/{record}")
        for name, value in fields.items():
            setattr(info, name, value)
        archive.writestr("archive/edited", b"")  # makes zipfile write its directory anew
    return path


def torch_legacy(
    path: Path, pickle_bytes: bytes, *, keys: object = None, data: bytes = bytes(16), numel: int | None = None
) -> Path:
    """The format before torch 1.6 around a pickle, with a storage "0" of fp32 `data`, or said to be of `numel`."""
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    head = [pickled(part) for part in (LEGACY_MAGIC, 1001, system)]
    length = struct.pack("<q", len(data) // 4 if numel is None else numel)
    path.write_bytes(b"".join([*head, pickle_bytes, pickled(["0"] if keys is None else keys), length, data]))
    return path


def safetensors(path: Path, header: bytes, data: bytes = bytes(4), header_bytes: int | None = None) -> Path:
    """A header as it is, with another length before it where one is given."""
    path.write_bytes(struct.pack("<Q", len(header) if header_bytes is None else header_bytes) + header + data)
    return path


def deflated_zeros(mebibytes: int) -> bytes:
    """A deflate stream of so many zeros, put together from equal blocks."""
    compressor = zlib.compressobj(wbits=-15)
    compressor.compress(b"")
    block = compressor.compress(bytes(2**20)) + compressor.flush(zlib.Z_FULL_FLUSH)
    return block * mebibytes + compressor.flush()


def nested(kind: Callable[[Any], Any], depth: int) -> Any:
    """A container that holds the next one twice, and so on: 2 to the power of `depth` ways to the innermost."""
    value: Any = 0
    for _ in range(depth):
        value = kind(value)
    return value
