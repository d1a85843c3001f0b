"""The plan of a run: its listed input, kept in the output shard by shard.

    OUT/_plan/shard-00000.parquet    a row per entry: id, path, size_bytes, modified_ns; error and message of a folder
                                     that could not be listed; start, stop, members, limit and columns of a container
                                     part, which is a shard by itself; values: those of copied columns, as a JSON list,
                                     so that a resumed run needs nothing but OUT, and an update sees which changed;
                                     kept: whether an update carries the entry's row over from the earlier part; was:
                                     the id that the row has there, if it is another one
    OUT/_plan/plan.json              numbers of entries and shards, files passed over, fingerprint of the input
    OUT/_plan.new/listed.txt         the inputs, until they are listed

Entries are written while they are listed, so that memory holds one shard. A plan is written into _plan.new, and
replaces an earlier plan only when it is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa

from ..atomic_files import atomic_write, move_folder, open_regular, read_regular, remove_folder, translate_os_errors
from ..errors import StoreError
from ..records import ContainerPart, Entry, Failure, Item, Shard, id_hash
from .checksums import TableWriter, check_whole, dump_json, load_json
from .field_types import check_fields
from .parts import open_parquet, translate_damage

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterable, Iterator, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

    import pyarrow.parquet as pq


PLAN_FOLDERS = ("_plan", "_plan.new", "_plan.merged", "_plan.old", "_plan.part")
PLAN, IN_WORK, MERGED, REPLACED, INTERRUPTED = PLAN_FOLDERS
SHARD, SUMMARY, LISTED = "shard-{:05d}.parquet", "plan.json", "listed.txt"
SHARD_NAME = re.compile(r"shard-[0-9]{5,9}\.parquet")
FINGERPRINT_KEY, CARRIED_OVER = b"mark", b"kept"  # keys in a shard file's metadata, named as in version 0.1.0
# Paths are bytes, because a name that is not UTF-8 has to be opened again.
SCHEMA = pa.schema(
    [
        *[("id", pa.string()), ("path", pa.binary()), ("size_bytes", pa.int64()), ("modified_ns", pa.int64())],
        *[("error", pa.string()), ("message", pa.string())],
        *[("start", pa.int64()), ("stop", pa.int64()), ("members", pa.int64()), ("limit", pa.int64())],
        *[("columns", pa.string()), ("values", pa.string()), ("kept", pa.bool_()), ("was", pa.string())],
    ]
)
FILE_COLUMNS = ["id", "path", "size_bytes", "modified_ns"]
CONTAINER_COLUMNS = ("start", "stop", "members", "limit", "columns")
HASH_BYTES = 32
MAX_INPUTS_BYTES = 2**26  # names of inputs
EXPECTED = "the listing of the run"


@dataclass(frozen=True)
class ShardSummary:
    """What the footer of a shard's file says."""

    fingerprint: str
    entries: int
    carried_over: int  # entries whose rows an update takes from the earlier part


@dataclass(frozen=True)
class Plan:
    """A listed input on the disk."""

    folder: Path
    shards: int
    entries: int
    containers: int  # entries that are container parts
    total: int | None  # images; None where an archive does not say how many it holds
    ignored: dict[str, int]  # files and folders passed over, by reason
    fingerprint: str  # of all ids, sizes and modification times, in any order and any shards
    checked: bool = True  # its files carry checksums, as those of version 0.1.0 do not

    def to_json(self) -> dict[str, Any]:
        """Return the content of plan.json, whose keys are those of version 0.1.0."""
        values = {name: value for name, value in asdict(self).items() if name not in ("folder", "checked")}
        return {"packs" if name == "containers" else name: value for name, value in values.items()}

    @classmethod
    def from_json(cls, folder: Path, content: dict[str, Any], *, checked: bool = True) -> Plan:
        """Return the plan in a folder whose `to_json` this is. Raises: TypeError, ValueError for other content."""
        values = {"containers" if name == "packs" else name: value for name, value in content.items()}
        plan = cls(folder, **values, checked=checked)
        check_fields(plan)
        counts = [plan.shards, plan.entries, plan.containers, plan.total or 0, *plan.ignored.values()]
        if not all(type(number) is int and number >= 0 for number in counts):
            raise ValueError(f"it counts {counts}")
        return plan

    def shard(self, index: int) -> Shard:
        """Read a shard, its entries in input order. Raises: StoreError where it is not as it was written."""
        with self._open(index, wide=True) as file:
            table = file.read()
            if table.num_rows != file.metadata.num_rows:
                raise ValueError(f"it counts {file.metadata.num_rows:,} entries, and holds {table.num_rows:,}")
            for field in table.schema:
                expected = SCHEMA.field(field.name).type if field.name in SCHEMA.names else field.type
                if field.type != expected or table.schema.names.count(field.name) > 1:
                    raise ValueError(f"its column {field.name} is {field.type}, or occurs twice")
            fingerprint = self._summarise(file).fingerprint
            if (files := _parse_files(table)) is not None:
                return Shard(index, files, fingerprint)
            rows = table.to_pylist()
            entries = [parse_row(row) for row in rows]
            kept = [(entry.id, row.get("was")) for entry, row in zip(entries, rows, strict=True) if row["kept"]]
            renamed = {own_id: was for own_id, was in kept if was is not None}
            return Shard(index, entries, fingerprint, frozenset(own_id for own_id, _ in kept), renamed)

    def summary(self, index: int) -> ShardSummary:
        """Read the summary of a shard, without its entries. Raises: StoreError where it is not as it was written."""
        with self._open(index) as file:
            return self._summarise(file)

    def check(self, index: int) -> None:
        """Compare all of a shard's file with its checksum. Raises: StoreError where it is not as it was written."""
        path = self.folder / SHARD.format(index)
        with translate_damage(path, EXPECTED, self._remedy), open_regular(path) as file:
            check_whole(file, path.name)

    def _summarise(self, file: pq.ParquetFile) -> ShardSummary:
        notes = file.metadata.metadata or {}
        return ShardSummary(notes[FINGERPRINT_KEY].decode(), file.metadata.num_rows, int(notes[CARRIED_OVER]))

    def _open(self, index: int, *, wide: bool = False) -> AbstractContextManager[pq.ParquetFile]:
        path = self.folder / SHARD.format(index)
        return open_parquet(path, path.name, must_carry=self.checked, wide=wide, expected=EXPECTED, remedy=self._remedy)

    @property
    def _remedy(self) -> str:
        return f"Remove {self.folder}, and run again: the input is listed anew, and finished parts are kept."

    def summaries(self) -> list[ShardSummary]:
        """Read the summaries of all shards, in their order."""
        return [self.summary(index) for index in range(self.shards)]

    def find_repeated(self, hashes: list[np.ndarray]) -> tuple[Entry, Entry] | None:
        """Return two entries with the same id, if there are any; `hashes` are those of `collect_id_hashes`."""
        suspicious = find_repeated_hashes(hashes)
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
        """Put a new plan in the place of the earlier one, which is removed afterwards."""
        final = self.folder.with_name(PLAN)
        replaced = self.folder.with_name(REPLACED)
        with translate_os_errors(final):
            # Else a run was killed between the renames, or in one, and `replaced` may be the only plan.
            if (final / SUMMARY).exists():
                remove_folder(replaced, ignore_errors=True)
                move_folder(final, replaced, SUMMARY)
            remove_folder(final, ignore_errors=True)
            move_folder(self.folder, final, SUMMARY)
            (final / LISTED).unlink(missing_ok=True)
            for name in (REPLACED, IN_WORK, MERGED, INTERRUPTED):
                remove_folder(self.folder.with_name(name), ignore_errors=True)
        return replace(self, folder=final)

    def discard(self) -> None:
        """Remove a plan that was not adopted."""
        remove_folder(self.folder, ignore_errors=True)


def write_plan(
    output: Path,
    shards: Iterable[Shard],
    ignored: Counter[str],
    name: str = IN_WORK,
    inputs: str = "",
    *,
    has_base: bool = False,
) -> Plan:
    """Write shards into a folder of OUT as they come; `ignored` is read after the last one.

    `inputs` says what is listed, so that `recover_listing` knows an interrupted listing of the same. Paths that start
    at a base are the same wherever that is, and so belong to the fingerprint.

    Raises:  StoreError where it cannot be written.
    """
    folder = output / name
    hash_sum = count = entries = containers = 0
    total: int | None = 0
    with translate_os_errors(folder):
        remove_folder(folder, ignore_errors=True)
        folder.mkdir()
        with atomic_write(folder / LISTED) as file:
            file.write(inputs.encode("utf-8", "surrogateescape"))
        for shard in shards:
            identities = [identify(entry, has_base=has_base) for entry in shard.entries]
            with atomic_write(folder / SHARD.format(shard.index)) as file:
                table = _make_table(shard, identities)
                writer = TableWriter(file, table.schema, SHARD.format(shard.index))
                writer.write(table)
                writer.close()
            hash_sum += sum(map(_hash_identity, identities))
            count, entries = count + 1, entries + len(shard.entries)
            containers += sum(isinstance(entry, ContainerPart) for entry in shard.entries)
            members = [count_members(entry) for entry in shard.entries]
            total = None if total is None or None in members else total + sum(filter(None, members))
        # A sum does not depend on the order: an updated output has the fingerprint of a fresh one.
        fingerprint = (hash_sum % 2 ** (8 * HASH_BYTES)).to_bytes(HASH_BYTES, "big").hex()
        plan = Plan(folder, count, entries, containers, total, dict(ignored), fingerprint)
        with atomic_write(folder / SUMMARY) as file:
            file.write(dump_json(plan.to_json()))
    return plan


def collect_id_hashes(shards: Iterable[Shard], hashes: list[np.ndarray]) -> Iterator[Shard]:
    """Yield the same shards, and append the hashes of their ids, eight bytes each, to `hashes`."""
    for shard in shards:
        hashes.append(np.array([id_hash(entry.id) for entry in shard.entries], np.uint64))
        yield shard


def find_repeated_hashes(hashes: list[np.ndarray]) -> set[int]:
    """Return the hashes that occur more than once. Shapes: uint64 (N,) each."""
    (ordered := np.concatenate([np.empty(0, np.uint64), *hashes])).sort()  # of ten million ids a copy is 80 MB
    return set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())


def read_plan(output: Path) -> Plan | None:
    """Read the plan of an output; return None where there is no complete one.

    Raises:  StoreError for a plan that is not as it was written, or has fewer shards than it counts.
    """
    for name in (PLAN, REPLACED):  # the second for a run that was killed between the two renames of `adopt`
        folder = output / name
        if not (folder / SUMMARY).exists():
            continue
        remedy = f"Remove {folder}, and run again: the input is listed anew, and finished parts are kept."
        with translate_damage(folder / SUMMARY, "it as clip embed wrote it", remedy):
            content, checked = load_json(folder / SUMMARY)
            plan = Plan.from_json(folder, content, checked=checked)
        if plan.shards > _count_shards(folder):
            missing = next(n for n in range(plan.shards) if not (folder / SHARD.format(n)).exists())
            found = f"cannot be read: it is not there, of {plan.shards:,} that {SUMMARY} counts"
            raise StoreError(folder / SHARD.format(missing), found, EXPECTED, remedy)
        return plan
    return None


def recover_listing(output: Path, inputs: str) -> Iterator[Item]:
    """Yield the items that a killed listing of the same inputs had written, in their order.

    Its files are moved first, so that the next listing does not remove them.
    """
    known, newer = output / INTERRUPTED, output / IN_WORK
    with translate_os_errors(output):
        for folder in (known, newer):
            if folder.exists() and _read_inputs(folder) != inputs:
                remove_folder(folder)
        if _count_shards(newer) > _count_shards(known):
            remove_folder(known, ignore_errors=True)
            move_folder(newer, known, LISTED)
    return _read_items(known)


def remove_plan(output: Path) -> None:
    """Remove the plan of an output."""
    with translate_os_errors(output):
        for name in (REPLACED, PLAN):
            if (output / name).exists():
                remove_folder(output / name)


def _read_inputs(folder: Path) -> str | None:
    try:
        return read_regular(folder / LISTED, MAX_INPUTS_BYTES).decode("utf-8", "surrogateescape")
    except OSError:
        return None


def _read_items(folder: Path) -> Iterator[Item]:
    for index in range(_count_shards(folder)):
        for entry in Plan(folder, 0, 0, 0, 0, {}, "", checked=False).shard(index).entries:
            if isinstance(entry, Item):
                yield entry


def _count_shards(folder: Path) -> int:
    return sum(SHARD_NAME.fullmatch(path.name) is not None for path in folder.iterdir()) if folder.is_dir() else 0


def compute_fingerprint(entries: Iterable[Entry], earlier: str = "", *, has_base: bool = False) -> str:
    """Return the fingerprint of a part with these entries; `earlier` is the fingerprint that it replaces."""
    return _hash_identities([identify(entry, has_base=has_base) for entry in entries], earlier)


def _hash_identities(identities: list[bytes], earlier: str = "") -> str:
    return hashlib.sha256(earlier.encode() + b"".join(identities)).hexdigest()[:32]


def count_members(entry: Entry) -> int | None:
    """Return how many images an entry stands for; None where an archive does not say."""
    if not isinstance(entry, ContainerPart):
        return 1
    return entry.members if entry.limit is None or entry.members is None else min(entry.members, entry.limit)


def identify(entry: Entry, *, has_base: bool) -> bytes:
    """Return what distinguishes an entry of an input from any other: its id, size, modification time and values.

    Its path too, where paths start at a base.
    """
    path = b"\0" + os.fsencode(entry.path) if has_base else b""
    version = "-" if isinstance(entry, Failure) else f"{entry.size_bytes}\0{entry.modified_ns}"
    part = f"\0{entry.start}\0{entry.stop}\0{entry.limit}\0{entry.columns}" if isinstance(entry, ContainerPart) else ""
    values = f"\0{json.dumps(entry.values)}" if isinstance(entry, Item) and entry.values else ""
    return f"{entry.id}\0{version}{part}{values}".encode() + path + b"\n"


def _hash_identity(identity: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(identity, digest_size=HASH_BYTES).digest(), "big")


def _make_table(shard: Shard, identities: list[bytes]) -> pa.Table:
    fingerprint = shard.fingerprint or _hash_identities(identities)
    metadata = {FINGERPRINT_KEY: fingerprint, CARRIED_OVER: str(len(shard.carried_over))}
    schema = SCHEMA.with_metadata(metadata)
    if not shard.carried_over and all(isinstance(entry, Item) and not entry.values for entry in shard.entries):
        items = cast("list[Item]", shard.entries)
        paths = [os.fsencode(item.path) for item in items]
        columns = [[item.id for item in items], paths, [item.size_bytes for item in items]]
        columns.append([item.modified_ns for item in items])
        others = [pa.nulls(len(items), kind) for kind in SCHEMA.types[len(columns) :]]
        others[SCHEMA.names.index("kept") - len(columns)] = pa.repeat(False, len(items))
        return pa.table([*columns, *others], schema=schema)
    carried, renamed = shard.carried_over, shard.renamed
    rows = [{**make_row(one), "kept": one.id in carried, "was": renamed.get(one.id)} for one in shard.entries]
    return pa.Table.from_pylist(rows, schema=schema)


def _parse_files(table: pa.Table) -> list[Entry] | None:
    """Return the entries of a shard that are all files without values, by columns; None for others.

    Row by row it takes ten times as long.
    """
    if not {"kept", *SCHEMA.names} <= {"was", *table.schema.names}:
        return None
    given, others = table.select(FILE_COLUMNS), table.drop_columns([*FILE_COLUMNS, "kept"])
    if any(column.null_count for column in given.columns) or any(len(c) != c.null_count for c in others.columns):
        return None
    if not table.num_rows or any(chunk.true_count for chunk in table.column("kept").chunks):
        return None
    ids, paths, sizes, times = (column.to_pylist() for column in given.columns)
    if min(sizes) < 0 or min(times) < 0:
        return None
    return list(map(Item, ids, map(os.fsdecode, paths), sizes, times))


def make_row(entry: Entry) -> dict[str, Any]:
    """Return an entry as plain values; `parse_row` is the inverse."""
    row: dict[str, Any] = {"id": entry.id, "path": os.fsencode(entry.path)}
    if isinstance(entry, Failure):
        return row | {"error": entry.error, "message": entry.message}
    row |= {"size_bytes": entry.size_bytes, "modified_ns": entry.modified_ns}
    if isinstance(entry, ContainerPart):
        return row | {name: getattr(entry, name) for name in CONTAINER_COLUMNS} | {"id": entry.name}
    if entry.values:
        row["values"] = json.dumps(entry.values)  # in ASCII, so that text of a list that is not UTF-8 is kept too
    return row


def parse_row(row: Mapping[str, Any]) -> Entry:
    """Return the entry that `make_row` was given."""
    path = os.fsdecode(row["path"])
    numbers = ("size_bytes", *CONTAINER_COLUMNS[:-1])
    if row["id"] is None or min(row[name] or 0 for name in numbers) < 0:
        raise ValueError(f"its entry {row['id']!r} has no id, or a number below 0")
    if row["error"] is not None:
        return Failure(row["id"], path, "read", row["error"], row["message"])
    if row["size_bytes"] is None or row["modified_ns"] is None:
        raise ValueError(f"its entry {row['id']!r} has no size or time")
    if row["start"] is not None:
        bounds = (row[name] for name in CONTAINER_COLUMNS)
        return ContainerPart(row["id"], path, row["size_bytes"], row["modified_ns"], *bounds)
    values = tuple(json.loads(row["values"])) if row["values"] else ()
    if not all(value is None or isinstance(value, str) for value in values):
        raise TypeError(f"its entry {row['id']!r} has values that are no texts")
    return Item(row["id"], path, row["size_bytes"], row["modified_ns"], values)
