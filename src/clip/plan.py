"""What a run reads, listed once and kept in the output, shard by shard. Knows nothing about decoding or vectors.

    OUT/_plan/shard-00000.parquet    id, path, size_bytes; error and message of a folder that could not be listed
    OUT/_plan/plan.json              how many entries and shards, what was passed over, the input's fingerprint

Entries go to the disk as they are listed, so that memory holds one shard. A plan in work is in _plan.new; a new listing
takes the place of an old one only after the two were found to be of the same input.
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
    from collections.abc import Iterable
    from pathlib import Path

PLAN, IN_WORK = "_plan", "_plan.new"
SHARD, SUMMARY = "shard-{:05d}.parquet", "plan.json"
# Paths as bytes: a name that is not UTF-8 has to be opened again.
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("path", pa.binary()),
        ("size_bytes", pa.int64()),
        ("error", pa.string()),
        ("message", pa.string()),
    ]
)


@dataclass(frozen=True)
class Plan:
    """The listing of an input, on the disk."""

    folder: Path
    shards: int
    entries: int
    ignored: dict[str, int]  # what was passed over, by reason
    fingerprint: str  # of the ids and sizes, in their order

    def shard(self, index: int) -> Shard:
        """A shard's entries, in input order."""
        rows = pq.read_table(self.folder / SHARD.format(index), schema=SCHEMA).to_pylist()
        return Shard(index, [_entry(row) for row in rows])

    def adopt(self) -> Plan:
        """Give a plan in work its name; an older one goes."""
        final = self.folder.with_name(PLAN)
        with written(final):
            shutil.rmtree(final, ignore_errors=True)
            self.folder.rename(final)
        return Plan(final, self.shards, self.entries, self.ignored, self.fingerprint)

    def discard(self) -> None:
        """Remove a plan in work."""
        shutil.rmtree(self.folder, ignore_errors=True)


def write_plan(output: Path, shards: Iterable[Shard], ignored: Counter[str]) -> Plan:
    """List shards into OUT/_plan.new; `ignored` is read when the last has come.

    Raises:  StoreError where it cannot be written.
    """
    folder = output / IN_WORK
    fingerprint = hashlib.sha256()
    count = entries = 0
    with written(folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for shard in shards:
            with replacing(folder / SHARD.format(shard.index)) as file:
                pq.write_table(_table(shard), file, compression="zstd")
            fingerprint.update(identities(shard))
            count, entries = count + 1, entries + len(shard.entries)
        plan = Plan(folder, count, entries, dict(ignored), fingerprint.hexdigest())
        with replacing(folder / SUMMARY) as file:
            summary = {key: value for key, value in asdict(plan).items() if key != "folder"}
            file.write(json.dumps(summary, indent=2).encode() + b"\n")
    return plan


def read_plan(output: Path) -> Plan | None:
    """The plan that stands in an output; None where there is none that is whole."""
    folder = output / PLAN
    try:
        return Plan(folder, **json.loads((folder / SUMMARY).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def identities(shard: Shard) -> bytes:
    """What tells one input from another: ids and sizes, a line each."""
    sizes = ((entry.id, entry.size_bytes if isinstance(entry, Item) else -1) for entry in shard.entries)
    return "".join(f"{name}\0{size}\n" for name, size in sizes).encode()


def _table(shard: Shard) -> pa.Table:
    rows = [
        (entry.id, os.fsencode(entry.path), entry.size_bytes, None, None)
        if isinstance(entry, Item)
        else (entry.id, os.fsencode(entry.path), None, entry.error, entry.message)
        for entry in shard.entries
    ]
    return pa.table([list(column) for column in zip(*rows, strict=True)] or [[]] * len(SCHEMA), schema=SCHEMA)


def _entry(row: dict[str, object]) -> Item | Failure:
    path = os.fsdecode(row["path"])  # type: ignore[arg-type]
    if row["error"] is None:
        return Item(str(row["id"]), path, int(row["size_bytes"]))  # type: ignore[call-overload]
    return Failure(str(row["id"]), path, "read", str(row["error"]), str(row["message"]))
