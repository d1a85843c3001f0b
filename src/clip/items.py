"""The records that travel between rooms. Knows nothing about how any of them is made.

Plain frozen dataclasses: a source makes an `Item`, a decode thread turns it into `Pixels` or a `Failure`, the store
writes either; `weights` makes a `Checkpoint`, `model` and `engine` read it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator
    from pathlib import Path

    import numpy as np
    import torch

    from clip.simple_tokenizer import SimpleTokenizer

Stage = Literal["read", "open", "decode", "encode"]
Activation = Literal["quick_gelu", "gelu"]
Interpolation = Literal["bicubic", "bilinear"]
ResizeMode = Literal["shortest", "squash"]  # the shorter side becomes the resolution, or both do
Decode = Literal["exact", "fast"]  # the reference's pixels bit for bit, or nearly and several times faster
Orient = Literal["none", "exif"]  # pixels as stored, or turned as the file says
Background = Literal["none", "white", "black"]
SixteenBit = Literal["clip", "scale"]  # 255 and more is white, or 65535 is
Frames = Literal["first", "all"]
LongText = Literal["fail", "cut"]  # a text of more tokens than the model reads is a failure row, or its tail goes
Kind = Literal["pictures", "texts", "pairs"]  # what the entries of a run are
TEXT = "string"  # a column's type
Triple = tuple[float, float, float]
# What vectors are computed in; "reference" is what OpenAI's code has on the device: fp32 on a CPU, fp16 on CUDA.
Precision = Literal["reference", "fp32", "fp16", "bf16", "int8", "fp8"]


def utf8_path(path: str) -> str:
    r"""A path as valid UTF-8: a byte that is none becomes \\xNN, and so that no two meet, a backslash is doubled."""
    return as_utf8(path.replace("\\", "\\\\"))


def as_utf8(text: str) -> str:
    r"""A text as valid UTF-8: a byte that was none, which is a surrogate here, becomes \\xNN."""
    try:
        encoded = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half of a pair, as JSON can spell it
        encoded = text.encode("utf-8", "surrogatepass")
    return encoded.decode("utf-8", "backslashreplace")


def id_hash(own_id: str) -> int:
    """Eight bytes of an id, the same in every process."""
    return int.from_bytes(hashlib.blake2b(own_id.encode(), digest_size=8).digest(), "little")


@dataclass(frozen=True, slots=True)
class Item:
    """One picture of a source, not yet read."""

    id: str  # stable name, valid UTF-8; in a folder the path relative to it, with forward slashes
    path: str  # where it is now; bytes that are not UTF-8 as surrogates, as the os module gives them
    size_bytes: int  # when it was listed
    modified_ns: int = 0  # likewise, since the epoch [Unit: ns]; 0 where the source does not tell
    values: tuple[str | None, ...] = ()  # of the columns that go along, as texts; a text that is embedded comes first


@dataclass(frozen=True, slots=True)
class Row:
    """What is stored of a picture beside its vector."""

    id: str
    path: str
    width: int  # of the original [Unit: px]
    height: int  # of the original [Unit: px]
    format: str  # Pillow's name: "JPEG", "PNG"
    size_bytes: int  # encoded
    sha256: str | None = None  # of the encoded picture, where a job asks for it
    values: tuple[str | None, ...] = ()  # the item's


@dataclass(frozen=True, slots=True)
class Pixels:
    """One decoded picture, cropped to what the model reads."""

    row: Row
    array: np.ndarray  # uint8 (R, R, 3), channels R, G, B
    tokens: np.ndarray | None = None  # int32 (L,), of the text it is a pair with


@dataclass(frozen=True, slots=True)
class Tokens:
    """One text as the model reads it."""

    row: Row
    tokens: np.ndarray  # int32 (L,)


@dataclass(frozen=True, slots=True)
class Failure:
    """The reason why an item has no vector. A row of `failures/`."""

    id: str
    path: str
    stage: Stage
    error: str  # name of the exception's type
    message: str


@dataclass(frozen=True, slots=True)
class Pack:
    """An archive or a table of pictures, or a part of one, that is read in order; a shard of its own."""

    name: str  # what the ids of its members begin with
    path: str
    size_bytes: int  # of the whole file, when it was listed
    modified_ns: int
    start: int = 0  # the first member of a zip, the first row group of a table
    stop: int | None = None  # behind the last one; None for all there are
    members: int | None = None  # how many, where that is known before they are read
    limit: int | None = None  # take no more
    columns: str = ""  # of a table: which of its columns are read, and how; other ones would make other rows

    @property
    def id(self) -> str:
        """Its own, other than those of the other parts."""
        return self.name if not self.start else f"{self.name}!{self.start}..."


@dataclass(frozen=True, slots=True)
class Member:
    """An entry of a pack, with its bytes."""

    item: Item
    data: bytes

    @property
    def id(self) -> str:
        """The item's."""
        return self.item.id

    @property
    def path(self) -> str:
        """The item's."""
        return self.item.path


Entry = Item | Failure | Pack  # what a listing finds


@dataclass(frozen=True)
class Columns:
    """Which columns of lists and tables the entries are made of."""

    entry: str | None = None  # names or holds the pictures, or is the texts; the one with a usual name without
    id: str | None = None
    kind: Kind = "pictures"
    text: str | None = None  # of pairs: the texts
    keep: tuple[str, ...] = ()  # others whose values go along
    types: tuple[str, ...] = ()  # which these have in the output, as pyarrow names them; texts without

    @property
    def named(self) -> list[str]:
        """Those that the user named."""
        return [name for name in (self.entry, self.id, self.text, *self.keep) if name]

    @property
    def kept(self) -> list[tuple[str, str]]:
        """The columns that are kept, with their types."""
        return list(zip(self.keep, self.types or (TEXT,) * len(self.keep), strict=True))

    @property
    def taken(self) -> list[tuple[str, str]]:
        """What `Item.values` are made of, with their types, apart from the texts of a run of texts."""
        return self.kept if self.text is None else [(self.text, TEXT), *self.kept]


@dataclass(frozen=True, slots=True)
class Shard:
    """Entries of a source that become one Parquet part. What could not even be listed is a Failure."""

    index: int
    entries: list[Entry]
    mark: str = ""  # what the part carries when it holds these entries; of their identities where it is empty
    kept: frozenset[str] = frozenset()  # ids whose rows stand in the part that this one replaces


def listed_id(own_id: str, listed: Container[str]) -> str:
    """The id under which a row's picture was listed: its own, or that of the file whose frame it is."""
    file = own_id.rpartition("#")[0]
    return file if own_id not in listed and file in listed else own_id


def in_shards(entries: Iterable[Entry], size: int, first: int = 0) -> Iterator[Shard]:
    """Entries in shards of `size`, numbered from `first`; a pack is a shard of its own."""
    group: list[Entry] = []
    for entry in entries:
        if group and (isinstance(entry, Pack) or len(group) == size):
            yield Shard(first, group)
            first, group = first + 1, []
        if isinstance(entry, Pack):
            yield Shard(first, [entry])
            first += 1
        else:
            group.append(entry)
    if group:
        yield Shard(first, group)


@dataclass(frozen=True)
class Architecture:
    """The arguments of `clip.model.CLIP`, in its order and with OpenAI's names."""

    embed_dim: int
    image_resolution: int  # [Unit: px]
    vision_layers: int | tuple[int, int, int, int]  # a tuple means ModifiedResNet
    vision_width: int
    vision_patch_size: int | None  # [Unit: px]; None for ModifiedResNet
    context_length: int
    vocab_size: int
    transformer_width: int
    transformer_heads: int
    transformer_layers: int
    # What no released model needs, and shapes alone do not tell:
    activation: Activation = "quick_gelu"
    vision_heads: int | None = None  # of a ViT; None: one for every 64 channels
    vision_mlp_width: int | None = None  # of a ViT; None: four times its width
    transformer_mlp_width: int | None = None  # None: four times the width


HEADER_KEY = "clip-turbo"  # of a safetensors file's metadata, under which are the records that we write there
BYTE_MAX = 255.0
# Means and standard deviations of the training pictures, RGB in 0..1. openai/CLIP@d05afc4 clip/clip.py:85.
OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class PreprocessSettings:
    """What a checkpoint asks of the pictures it is shown."""

    resolution_px: int
    mean: Triple = OPENAI_MEAN
    std: Triple = OPENAI_STD
    interpolation: Interpolation = "bicubic"
    resize_mode: ResizeMode = "shortest"


@dataclass(frozen=True)
class Checkpoint:
    """Weights, and all that is known of where they come from."""

    architecture: Architecture
    state_dict: dict[str, torch.Tensor]  # OpenAI's keys; tensors may be views of the file
    preprocess: PreprocessSettings
    source: str  # a path, or "untrained:SEED"
    files: tuple[Path, ...] = ()  # that the weights were read from
    tokenizer: SimpleTokenizer | None = None  # of a vocabulary of its own; None for that of the released models


@dataclass(frozen=True)
class Calibration:
    """The pictures by which a model was quantised."""

    pixels: np.ndarray  # uint8 (N, R, R, 3)

    @cached_property
    def sha256(self) -> str:
        """Of the pixels and their shape, in hexadecimal."""
        return hashlib.sha256(str(self.pixels.shape).encode() + self.pixels.tobytes()).hexdigest()


@dataclass(frozen=True)
class Guards:
    """What a picture may cost; one that is beyond becomes a failure row before it is decoded."""

    max_bytes: int = 2**31 - 1  # of the file; no format we decode gains from more
    max_pixels: int = 100_000_000  # width times height; Pillow itself refuses 179 million and more
    max_aspect: float | None = None  # the longer side over the shorter; without, only the resized canvas has a limit
    max_frames: int = 1000  # of a file, where all are taken; those beyond become one failure row


@dataclass(frozen=True)
class Policies:
    """How a file is read where there is a choice. Each default is the reference's way."""

    orient: Orient = "none"
    background: Background = "none"  # what transparent pictures are laid on; "none" drops their alpha
    sixteen_bit: SixteenBit = "clip"  # for grey pictures of 16 bits and more
    frames: Frames = "first"  # of animations and files of several pages


@dataclass(frozen=True)
class DeviceRow:
    """A device of this machine, and what its engine can compute in."""

    device: str
    name: str
    backend: str  # library and version
    precisions: tuple[str, ...]  # the first is what "reference" means there
