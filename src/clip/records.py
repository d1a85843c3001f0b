"""The records that travel between rooms. Knows nothing about how any of them is made."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from .errors import ClipError

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Mapping

    import numpy as np

    from .budgets import Hold


Stage = Literal["read", "open", "decode", "encode"]
Kind = Literal["images", "texts", "pairs"]  # what the entries of a run are
TEXT = "string"  # a column's type
STDIN = "-"  # as an input
SHARD_VALUE_BYTES = 256_000_000  # of the copied values of a shard's entries, captions say, which are listed as a whole


def utf8_path(path: str) -> str:
    r"""Return a path as valid UTF-8: other bytes become \\xNN; backslashes are doubled, to keep paths distinct."""
    return path if path.isascii() and "\\" not in path else as_utf8(path.replace("\\", "\\\\"))


def as_utf8(text: str) -> str:
    r"""Return a text as valid UTF-8: a surrogate, which was another byte in a file, becomes \\xNN."""
    try:
        encoded = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half of a pair, as JSON can spell it
        encoded = text.encode("utf-8", "surrogatepass")
    return encoded.decode("utf-8", "backslashreplace")


def join_root(root: str, path: str) -> str:
    """Return where the path of an entry leads: one that is relative starts at the root; a URL stays."""
    return path if not root or "://" in path else os.path.join(root, path)  # noqa: PTH118  strings: ten million paths


def shorten(path: str) -> str:
    """Return a path as it is from the current folder, where it is below that."""
    try:
        here = os.path.join(os.getcwd(), "")  # noqa: PTH109, PTH118
    except OSError:  # the current folder was removed
        return path
    return path[len(here) :] if path.startswith(here) else path


def decode_path(path: str) -> bytes:
    r"""Return the bytes that a file's path has on the disk; the opposite of `utf8_path`, where it wrote the path."""
    spelt = re.compile(rb"\\(?:\\|x([0-9a-f]{2}))")
    return spelt.sub(lambda match: bytes.fromhex(match[1].decode()) if match[1] else b"\\", os.fsencode(path))


def link_to(path: str) -> str:
    """Return the address of a path, for a browser or a terminal; for a member of an archive, the archive's."""
    if "://" in path:
        return path
    name = os.path.abspath(decode_path(path))  # noqa: PTH100  of bytes
    container = name.partition(b"!")[0]
    if not os.path.lexists(name) and os.path.isfile(container):  # noqa: PTH113
        name = container
    return Path(os.fsdecode(name)).as_uri()


def id_hash(own_id: str) -> int:
    """Return a hash of an id, eight bytes, the same in every process."""
    return int.from_bytes(hashlib.blake2b(own_id.encode(), digest_size=8).digest(), "little")


class Item(NamedTuple):  # its pickle and its making take half of a dataclass's time, and there are millions
    """One image of a source, not yet read."""

    id: str  # stable name, valid UTF-8; in a folder the path relative to it, with forward slashes
    path: str  # from the root of its source, `join_root`; bytes that are not UTF-8 as surrogates, as of the os module
    size_bytes: int  # when it was listed
    modified_ns: int = 0  # when it was listed, since the epoch [Unit: ns]; 0 where the source does not say
    values: tuple[str | None, ...] = ()  # of the copied columns, as texts; a text that is embedded comes first


class Row(NamedTuple):
    """What is stored of an image beside its vector."""

    id: str
    path: str
    width: int  # of the original [Unit: px]
    height: int  # of the original [Unit: px]
    format: str  # Pillow's name: "JPEG", "PNG"
    size_bytes: int  # encoded
    sha256: str | None = None  # of the encoded image, where a job asks for it
    warning: str | None = None  # what was wrong beside the pixels, or that a text's tail is left out
    values: tuple[str | None, ...] = ()  # the item's


@dataclass(frozen=True, slots=True)
class Pixels:
    """One decoded image, cropped to what the model reads, or to what that crop depends on."""

    row: Row
    array: np.ndarray  # uint8 (R, R, 3), channels R, G, B; with a window (rows, columns, 1 or 3), not resized yet
    tokens: np.ndarray | None = None  # int32 (L,), of the text it is a pair with
    stored_turned: bool = False  # whether the file says that it is to be turned, and it was not
    window: tuple[int, ...] | None = None  # images.windows.Window, of an image that is resized where the model runs


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

    @classmethod
    def of(cls, entry: Item | Member | ContainerPart, stage: Stage, exc: BaseException) -> Failure:
        """Return what an exception makes of an entry; the entry's name is not repeated in the message."""
        message = exc.reason if isinstance(exc, ClipError) else str(exc)
        return cls(entry.id, entry.path, stage, type(exc).__name__, message)


@dataclass(frozen=True, slots=True)
class ContainerPart:
    """An archive or a table of images, or a part of one, that is read in order and is a shard by itself."""

    name: str  # what the ids of its members begin with
    path: str
    size_bytes: int  # of the whole file, when it was listed
    modified_ns: int
    start: int = 0  # the first member of a zip, the first row group of a table
    stop: int | None = None  # after the last one; None for all there are
    members: int | None = None  # how many, where that is known before they are read
    limit: int | None = None  # take no more
    columns: str = ""  # of a table: which of its columns are read, and how; other ones would make other rows

    @property
    def id(self) -> str:
        """An id that no other part of the file has."""
        return self.name if not self.start else f"{self.name}!{self.start}..."


@dataclass(frozen=True, slots=True)
class Member:
    """An item together with its bytes: out of a container, or fetched from a server."""

    item: Item
    data: bytes
    held: Hold | None = field(default=None, compare=False, repr=False)  # counts the bytes in a budget

    @property
    def id(self) -> str:
        """The item's."""
        return self.item.id

    @property
    def path(self) -> str:
        """The item's."""
        return self.item.path

    def release(self) -> None:
        """Say that its bytes are held no more."""
        if self.held is not None:
            self.held.release()


def add_warning(row: Row, warning: str | None) -> Row:
    """Return a row with one more thing that was wrong, if there is one."""
    return row._replace(warning="; ".join(filter(None, (row.warning, warning)))) if warning else row


def count_values(values: Iterable[str | None]) -> int:
    """Return how many bytes the copied values of a row take, about."""
    return sum(len(value) for value in values if value)


def count_bytes(entry: object) -> int:
    """Return how many bytes an entry holds, about: a member's encoded ones, and copied values."""
    if isinstance(entry, Member):
        return len(entry.data) + count_values(entry.item.values)
    return count_values(entry.values) if isinstance(entry, Item) else 0


Entry = Item | Failure | ContainerPart  # what a listing finds


@dataclass(frozen=True, slots=True)
class Shard:
    """Entries of a source that become one Parquet part. An entry that could not even be listed is a Failure."""

    index: int
    entries: list[Entry]
    fingerprint: str = ""  # what the part carries when it holds these entries; of their identities where it is empty
    carried_over: frozenset[str] = frozenset()  # ids whose rows an update takes from the part that this one replaces
    renamed: Mapping[str, str] = field(default_factory=dict[str, str])  # of these, ids that are others in that part


def listed_id(own_id: str, listed: Container[str]) -> str:
    """Return the id under which a row's image was listed: its own, or its file's where it is a frame."""
    file = own_id.rpartition("#")[0]
    return file if own_id not in listed and file in listed else own_id


def in_shards(
    entries: Iterable[Entry], size: int, first: int = 0, max_value_bytes: int = SHARD_VALUE_BYTES
) -> Iterator[Shard]:
    """Yield entries in shards of `size`, numbered from `first`; each container part is a shard by itself.

    A shard ends earlier where the copied values of its entries would be more than `max_value_bytes`.
    """
    group: list[Entry] = []
    held = 0
    for entry in entries:
        size_bytes = count_values(entry.values) if isinstance(entry, Item) else 0
        if group and (isinstance(entry, ContainerPart) or len(group) == size or held + size_bytes > max_value_bytes):
            yield Shard(first, group)
            first, group, held = first + 1, [], 0
        held += size_bytes
        if isinstance(entry, ContainerPart):
            yield Shard(first, [entry])
            first += 1
        else:
            group.append(entry)
    if group:
        yield Shard(first, group)
