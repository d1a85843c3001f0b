"""What a run reads, listed once and kept in the output, shard by shard. Knows nothing about decoding or vectors.

    OUT/_plan/shard-00000.parquet    id, path, size_bytes, modified_ns; error and message of a folder that could not be
                                     listed; kept: whether the row stands in the part that is to be replaced
    OUT/_plan/plan.json              how many entries and shards, what was passed over, the input's fingerprint

Entries go to the disk as they are listed, so that memory holds one shard. A plan in work is in _plan.new; it takes the
place of an older one only when it is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from clip.items import Failure, Item, Shard
from clip.whole_files import replacing, written

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from clip.items import Entry

PLAN, IN_WORK, MERGED, REPLACED, INTERRUPTED = "_plan", "_plan.new", "_plan.merged", "_plan.old", "_plan.part"
SHARD, SUMMARY = "shard-{:05d}.parquet", "plan.json"
# Paths as bytes: a name that is not UTF-8 has to be opened again.
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("path", pa.binary()),
        ("size_bytes", pa.int64()),
        ("modified_ns", pa.int64()),
        ("error", pa.string()),
        ("message", pa.string()),
        ("kept", pa.bool_()),
    ]
)
HASH_BYTES = 32


@dataclass(frozen=True)
class Outline:
    """What a shard's file tells without its entries."""

    mark: str
    entries: int
    kept: int


@dataclass(frozen=True)
class Plan:
    """The listing of an input, on the disk."""

    folder: Path
    shards: int
    entries: int
    ignored: dict[str, int]  # what was passed over, by reason
    fingerprint: str  # of the ids, sizes and times of change, whatever their order and shards

    def shard(self, index: int) -> Shard:
        """A shard's entries, in input order."""
        table = pq.read_table(self.folder / SHARD.format(index), schema=SCHEMA)
        rows = table.to_pylist()
        kept = frozenset(str(row["id"]) for row in rows if row["kept"])
        return Shard(index, [_entry(row) for row in rows], self.outline(index).mark, kept)

    def outline(self, index: int) -> Outline:
        """What is told of a shard without reading it."""
        found = pq.read_metadata(self.folder / SHARD.format(index))
        return Outline(found.metadata[b"mark"].decode(), found.num_rows, int(found.metadata[b"kept"]))

    def outlines(self) -> list[Outline]:
        """Of all shards, in their order."""
        return [self.outline(index) for index in range(self.shards)]

    def adopt(self) -> Plan:
        """Give a plan in work its name; an older one goes, when this one has its place."""
        final = self.folder.with_name(PLAN)
        replaced = self.folder.with_name(REPLACED)
        with written(final):
            shutil.rmtree(replaced, ignore_errors=True)
            if final.exists():
                final.rename(replaced)
            self.folder.rename(final)
            for name in (REPLACED, IN_WORK, MERGED, INTERRUPTED):
                shutil.rmtree(self.folder.with_name(name), ignore_errors=True)
        return Plan(final, self.shards, self.entries, self.ignored, self.fingerprint)

    def discard(self) -> None:
        """Remove a plan in work."""
        shutil.rmtree(self.folder, ignore_errors=True)


def write_plan(output: Path, shards: Iterable[Shard], ignored: Counter[str], name: str = IN_WORK) -> Plan:
    """List shards into a folder of OUT; `ignored` is read when the last has come.

    Raises:  StoreError where it cannot be written.
    """
    folder = output / name
    identities = 0
    count = entries = 0
    with written(folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for shard in shards:
            with replacing(folder / SHARD.format(shard.index)) as file:
                pq.write_table(_table(shard), file, compression="zstd")
            identities += sum(map(_hash_of, shard.entries))
            count, entries = count + 1, entries + len(shard.entries)
        # A sum does not depend on the order: an output that was kept up to date has that of a fresh one.
        fingerprint = (identities % 2 ** (8 * HASH_BYTES)).to_bytes(HASH_BYTES, "big").hex()
        plan = Plan(folder, count, entries, dict(ignored), fingerprint)
        with replacing(folder / SUMMARY) as file:
            summary = {key: value for key, value in asdict(plan).items() if key != "folder"}
            file.write(json.dumps(summary, indent=2).encode() + b"\n")
    return plan


def read_plan(output: Path) -> Plan | None:
    """The plan that stands in an output; None where there is none that is whole."""
    for name in (PLAN, REPLACED):  # the latter for a run that was killed between the two renames of `adopt`
        try:
            return Plan(output / name, **json.loads((output / name / SUMMARY).read_bytes()))
        except (OSError, ValueError, TypeError):
            continue
    return None


def interrupted_listing(output: Path) -> Iterator[Item]:
    """What a listing that was killed had found, in its order, out of the way of the next."""
    known, newer = output / INTERRUPTED, output / IN_WORK
    with written(output):
        if _whole_shards(newer) > _whole_shards(known):
            shutil.rmtree(known, ignore_errors=True)
            newer.rename(known)
    return _items_of(known)


def _items_of(folder: Path) -> Iterator[Item]:
    for index in range(_whole_shards(folder)):
        for entry in Plan(folder, 0, 0, {}, "").shard(index).entries:
            if isinstance(entry, Item):
                yield entry


def _whole_shards(folder: Path) -> int:
    return len(list(folder.glob(SHARD.format(0).replace("00000", "*"))))


def mark_of(entries: Iterable[Entry], before: str = "") -> str:
    """What tells a part of these entries, made from one that was marked `before`, from any other."""
    return hashlib.sha256(before.encode() + b"".join(map(_identity, entries))).hexdigest()[:32]


def _identity(entry: Entry) -> bytes:
    """What tells one input from another: an id, a size and a time of change."""
    told = f"{entry.size_bytes}\0{entry.modified_ns}" if isinstance(entry, Item) else "-"
    return f"{entry.id}\0{told}\n".encode()


def _hash_of(entry: Entry) -> int:
    return int.from_bytes(hashlib.blake2b(_identity(entry), digest_size=HASH_BYTES).digest(), "big")


def _table(shard: Shard) -> pa.Table:
    rows = [
        (entry.id, os.fsencode(entry.path), entry.size_bytes, entry.modified_ns, None, None, entry.id in shard.kept)
        if isinstance(entry, Item)
        else (entry.id, os.fsencode(entry.path), None, None, entry.error, entry.message, entry.id in shard.kept)
        for entry in shard.entries
    ]
    told = {"mark": shard.mark or mark_of(shard.entries), "kept": str(len(shard.kept))}
    columns = [list(column) for column in zip(*rows, strict=True)] or [[]] * len(SCHEMA)
    return pa.table(columns, schema=SCHEMA.with_metadata(told))


def _entry(row: dict[str, object]) -> Entry:
    path = os.fsdecode(row["path"])  # type: ignore[arg-type]
    if row["error"] is None:
        return Item(str(row["id"]), path, int(row["size_bytes"]), int(row["modified_ns"]))  # type: ignore[call-overload]
    return Failure(str(row["id"]), path, "read", str(row["error"]), str(row["message"]))
