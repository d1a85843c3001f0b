"""What a run reads, listed once and kept in the output, shard by shard. Knows nothing about decoding or vectors.

    OUT/_plan/shard-00000.parquet    id, path, size_bytes, modified_ns; error and message of a folder that could not be
                                     listed; start, stop, members and limit of a pack, which is a shard of its own;
                                     values: of columns that go along, a JSON list; kept: whether the row stands in the
                                     part that is to be replaced
    OUT/_plan/listed.txt             what was named as input
    OUT/_plan/plan.json              how many entries and shards, what was passed over, the input's fingerprint

Entries go to the disk as they are listed, so that memory holds one shard. A plan in work is in _plan.new; it takes the
place of an older one only when it is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..atomic_files import atomic_write, sync_folder, translate_os_errors
from ..errors import StoreError
from ..records import ContainerPart, Failure, Item, Shard, id_hash

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Generator, Iterable, Iterator, Mapping
    from pathlib import Path

    from ..records import Entry

PLAN, IN_WORK, MERGED, REPLACED, INTERRUPTED = "_plan", "_plan.new", "_plan.merged", "_plan.old", "_plan.part"
SHARD, SUMMARY, LISTED = "shard-{:05d}.parquet", "plan.json", "listed.txt"
# Paths as bytes: a name that is not UTF-8 has to be opened again.
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("path", pa.binary()),
        ("size_bytes", pa.int64()),
        ("modified_ns", pa.int64()),
        ("error", pa.string()),
        ("message", pa.string()),
        ("start", pa.int64()),
        ("stop", pa.int64()),
        ("members", pa.int64()),
        ("limit", pa.int64()),
        ("columns", pa.string()),
        ("values", pa.string()),
        ("kept", pa.bool_()),
    ]
)
PACK_FIELDS = ("start", "stop", "members", "limit", "columns")
HASH_BYTES = 32


@dataclass(frozen=True)
class ShardSummary:
    """What a shard's file tells without its entries."""

    fingerprint: str
    entries: int
    kept: int


@dataclass(frozen=True)
class Plan:
    """The listing of an input, on the disk."""

    folder: Path
    shards: int
    entries: int
    packs: int  # of the entries
    total: int | None  # images, as far as they are known; None where an archive does not tell
    ignored: dict[str, int]  # what was passed over, by reason
    fingerprint: str  # of the ids, sizes and times of change, whatever their order and shards

    def shard(self, index: int) -> Shard:
        """A shard's entries, in input order. Raises: StoreError where they cannot be read."""
        with self._file(index) as file:
            table = pq.read_table(file)
            rows = table.to_pylist()
        entries = [from_row(row) for row in rows]
        kept = frozenset(entry.id for entry, row in zip(entries, rows, strict=True) if row["kept"])
        return Shard(index, entries, table.schema.metadata[b"mark"].decode(), kept)

    def summary(self, index: int) -> ShardSummary:
        """What is told of a shard without reading it."""
        with self._file(index) as file:
            found = pq.read_metadata(file)
        return ShardSummary(found.metadata[b"mark"].decode(), found.num_rows, int(found.metadata[b"kept"]))

    @contextmanager
    def _file(self, index: int) -> Generator[BinaryIO]:
        path = self.folder / SHARD.format(index)
        try:
            with path.open("rb") as file:  # as pyarrow takes no path that is not UTF-8
                yield file
        except (OSError, pa.ArrowException) as exc:
            raise StoreError(
                path,
                f"cannot be read ({next(iter(str(exc).splitlines()), type(exc).__name__)})",
                "the listing of the run",
                f"Remove {self.folder}, and run again: it lists, and keeps what is done.",
            ) from exc

    def summaries(self) -> list[ShardSummary]:
        """Of all shards, in their order."""
        return [self.summary(index) for index in range(self.shards)]

    def repeated(self, hashed: list[np.ndarray]) -> tuple[Entry, Entry] | None:
        """Two entries of the same id, if there are any, by the hashes of all ids that `ids_hashed` collected."""
        hashes = np.concatenate([np.empty(0, np.uint64), *hashed])
        hashes.sort()
        suspicious = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
        if not suspicious:
            return None
        seen: dict[str, Entry] = {}
        for entry in (entry for shard in self for entry in shard.entries):
            if id_hash(entry.id) in suspicious and seen.setdefault(entry.id, entry) is not entry:
                return seen[entry.id], entry
        return None

    def __iter__(self) -> Iterator[Shard]:
        return (self.shard(index) for index in range(self.shards))

    def adopt(self) -> Plan:
        """Give a plan in work its name; an older one goes, when this one has its place."""
        final = self.folder.with_name(PLAN)
        replaced = self.folder.with_name(REPLACED)
        with translate_os_errors(final):
            if final.exists():  # else what was replaced may be the only plan there is
                shutil.rmtree(replaced, ignore_errors=True)
                final.rename(replaced)
            self.folder.rename(final)
            sync_folder(final.parent)
            for name in (REPLACED, IN_WORK, MERGED, INTERRUPTED):
                shutil.rmtree(self.folder.with_name(name), ignore_errors=True)
        return replace(self, folder=final)

    def discard(self) -> None:
        """Remove a plan in work."""
        shutil.rmtree(self.folder, ignore_errors=True)


def write_plan(output: Path, shards: Iterable[Shard], ignored: Counter[str], name: str = IN_WORK, of: str = "") -> Plan:
    """List shards into a folder of OUT; `ignored` is read when the last has come. `of` tells what is being listed.

    Raises:  StoreError where it cannot be written.
    """
    folder = output / name
    identities = 0
    count = entries = packs = 0
    total: int | None = 0
    with translate_os_errors(folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        with atomic_write(folder / LISTED) as file:
            file.write(of.encode("utf-8", "surrogateescape"))
        for shard in shards:
            with atomic_write(folder / SHARD.format(shard.index)) as file:
                pq.write_table(_table(shard), file, compression="zstd")
            identities += sum(map(_hash_of, shard.entries))
            count, entries = count + 1, entries + len(shard.entries)
            packs += sum(isinstance(entry, ContainerPart) for entry in shard.entries)
            told = [count_members(entry) for entry in shard.entries]
            total = None if total is None or None in told else total + sum(filter(None, told))
        # A sum does not depend on the order: an output that was kept up to date has that of a fresh one.
        fingerprint = (identities % 2 ** (8 * HASH_BYTES)).to_bytes(HASH_BYTES, "big").hex()
        plan = Plan(folder, count, entries, packs, total, dict(ignored), fingerprint)
        with atomic_write(folder / SUMMARY) as file:
            summary = {key: value for key, value in asdict(plan).items() if key != "folder"}
            file.write(json.dumps(summary, indent=2).encode() + b"\n")
    return plan


def ids_hashed(shards: Iterable[Shard], into: list[np.ndarray]) -> Iterator[Shard]:
    """The same shards; the hashes of their ids, eight bytes each, are collected on the way."""
    for shard in shards:
        into.append(np.array([id_hash(entry.id) for entry in shard.entries], np.uint64))
        yield shard


def read_plan(output: Path) -> Plan | None:
    """The plan that stands in an output; None where there is none that is whole."""
    for name in (PLAN, REPLACED):  # the latter for a run that was killed between the two renames of `adopt`
        try:
            return Plan(output / name, **json.loads((output / name / SUMMARY).read_bytes()))
        except (OSError, ValueError, TypeError):
            continue
    return None


def interrupted_listing(output: Path, of: str) -> Iterator[Item]:
    """What a listing of the same that was killed had found, in its order, out of the way of the next."""
    known, newer = output / INTERRUPTED, output / IN_WORK
    with translate_os_errors(output):
        for folder in (known, newer):
            if folder.exists() and _listed(folder) != of:
                shutil.rmtree(folder)
        if _whole_shards(newer) > _whole_shards(known):
            shutil.rmtree(known, ignore_errors=True)
            newer.rename(known)
    return _items_of(known)


def remove_plan(output: Path) -> None:
    """Remove the plan that stands."""
    with translate_os_errors(output):
        for name in (REPLACED, PLAN):
            if (output / name).exists():
                shutil.rmtree(output / name)


def _listed(folder: Path) -> str | None:
    try:
        return (folder / LISTED).read_bytes().decode("utf-8", "surrogateescape")
    except OSError:
        return None


def _items_of(folder: Path) -> Iterator[Item]:
    for index in range(_whole_shards(folder)):
        for entry in Plan(folder, 0, 0, 0, 0, {}, "").shard(index).entries:
            if isinstance(entry, Item):
                yield entry


def _whole_shards(folder: Path) -> int:
    return len(list(folder.glob(SHARD.format(0).replace("00000", "*"))))


def compute_fingerprint(entries: Iterable[Entry], before: str = "") -> str:
    """What tells a part of these entries, made from one that was marked `before`, from any other."""
    return hashlib.sha256(before.encode() + b"".join(map(_identity, entries))).hexdigest()[:32]


def count_members(entry: Entry) -> int | None:
    """How many images an entry stands for; None where it does not tell."""
    if not isinstance(entry, ContainerPart):
        return 1
    return entry.members if entry.limit is None or entry.members is None else min(entry.members, entry.limit)


def _identity(entry: Entry) -> bytes:
    """What tells one input from another: an id, a size and a time of change."""
    told = "-" if isinstance(entry, Failure) else f"{entry.size_bytes}\0{entry.modified_ns}"
    part = f"\0{entry.start}\0{entry.stop}\0{entry.limit}\0{entry.columns}" if isinstance(entry, ContainerPart) else ""
    values = f"\0{json.dumps(entry.values)}" if isinstance(entry, Item) and entry.values else ""
    return f"{entry.id}\0{told}{part}{values}\n".encode()


def _hash_of(entry: Entry) -> int:
    return int.from_bytes(hashlib.blake2b(_identity(entry), digest_size=HASH_BYTES).digest(), "big")


def _table(shard: Shard) -> pa.Table:
    rows = [{**as_row(entry), "kept": entry.id in shard.kept} for entry in shard.entries]
    told = {"mark": shard.fingerprint or compute_fingerprint(shard.entries), "kept": str(len(shard.kept))}
    return pa.Table.from_pylist(rows, schema=SCHEMA.with_metadata(told))


def as_row(entry: Entry) -> dict[str, Any]:
    """An entry as plain values, which `from_row` makes an entry again."""
    row: dict[str, Any] = {"id": entry.id, "path": os.fsencode(entry.path)}
    if isinstance(entry, Failure):
        return row | {"error": entry.error, "message": entry.message}
    row |= {"size_bytes": entry.size_bytes, "modified_ns": entry.modified_ns}
    if isinstance(entry, ContainerPart):
        return row | {name: getattr(entry, name) for name in PACK_FIELDS} | {"id": entry.name}
    if entry.values:
        row["values"] = json.dumps(entry.values)  # in ASCII: what is not UTF-8 in a list comes through too
    return row


def from_row(row: Mapping[str, Any]) -> Entry:
    """What `as_row` was given."""
    path = os.fsdecode(row["path"])
    if row["error"] is not None:
        return Failure(row["id"], path, "read", row["error"], row["message"])
    if row["start"] is not None:
        pack = (row[name] for name in PACK_FIELDS)
        return ContainerPart(row["id"], path, row["size_bytes"], row["modified_ns"], *pack)
    values = tuple(json.loads(row["values"])) if row["values"] else ()
    return Item(row["id"], path, row["size_bytes"], row["modified_ns"], values)
