"""Update a plan: compare an output's earlier plan with what is listed now.

A shard in which nothing happened keeps its fingerprint, and so its part. In any other shard removed entries are left
out, changed ones are done again in their places, and the rest is carried over; new entries follow in new shards. The
comparison uses SQLite, which sorts and joins on the disk and comes with Python: memory holds one shard, and a byte per
listed entry.
"""

from __future__ import annotations

import builtins
import json
import sqlite3
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import InputError, StoreError
from ..records import ContainerPart, Entry, Item, Shard, in_shards, listed_id
from .parts import EMBEDDINGS, FAILURES
from .plan import MERGED, SCHEMA, Plan, compute_fingerprint, make_row, parse_row, write_plan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .writer import StoreWriter

SCRATCH = "compared.sqlite"
CACHE_KB = 32_000  # that SQLite may hold in memory
COLUMNS = [name for name in SCHEMA.names if name != "kept"]
# Failures that another try may avoid, besides those of the system; all others follow from the image's bytes.
TRANSIENT_ERRORS = frozenset({"TimeoutError", "ChildProcessError", "MemoryError"})


def update_plan(
    store: StoreWriter,
    earlier: Plan,
    listed: Plan,
    shard_size: int,
    *,
    retry: bool = False,
    content_hash: Callable[[Item], str | None] | None = None,
) -> tuple[Plan, int]:
    """Return a plan of the listed entries that keeps the earlier shards where it can, and how many entries are gone.

    `listed` is removed. With `retry`, failures that another try may avoid are tried again. An entry is unchanged if its
    size and modification time are, or with `content_hash` if its content is.

    Raises:  InputError where none of the earlier entries is listed any more; StoreError for a part that cannot be read.
    """
    try:
        with closing(_Listed(listed)) as now:
            shards = _Comparison(store, now, retry, content_hash).shards(earlier, shard_size)
            plan = write_plan(store.path, shards, Counter(listed.ignored), MERGED)
            gone = earlier.entries - sum(now.taken)
    except sqlite3.Error as exc:
        item = listed.folder / SCRATCH
        raise StoreError(item, f"cannot be written ({exc})", "a disk with space", "Make room, and run again.") from exc
    listed.discard()
    if earlier.entries and gone == earlier.entries:
        plan.discard()
        found = f"none of its {earlier.entries:,} {store.manifest.kind} is listed any more"
        remedy = "Check that the source is there, or pass `overwrite=True`."
        raise InputError(store.path, found, "some to bring it up to date", remedy)
    return plan, gone


class _Listed:
    """The entries of a plan, searchable by id."""

    def __init__(self, plan: Plan) -> None:
        self.taken = bytearray(plan.entries)  # 1 for each entry that `take` returned
        self._database = sqlite3.connect(plan.folder / SCRATCH, isolation_level=None)
        # Nothing in it outlives the job, so nothing is synced. It is in the output, where there is room.
        self._database.executescript(
            f"PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -{CACHE_KB};"
            f"CREATE TABLE listed (number INTEGER PRIMARY KEY, own_id TEXT, {', '.join(map(json.dumps, COLUMNS))})"
        )
        self._database.row_factory = sqlite3.Row
        number = 0
        for shard in plan:
            entries = ((entry.id, make_row(entry)) for entry in shard.entries)
            rows = [(place, own_id, *map(row.get, COLUMNS)) for place, (own_id, row) in enumerate(entries, number)]
            self._database.execute("BEGIN")
            self._database.executemany(f"INSERT INTO listed VALUES (?, ?{', ?' * len(COLUMNS)})", rows)
            self._database.execute("COMMIT")
            number += len(rows)
        self._database.execute("CREATE INDEX by_id ON listed (own_id)")

    def take(self, own_id: str) -> Entry | None:
        """Return the first entry with this id that was not taken before; None where there is none."""
        for row in self._database.execute("SELECT * FROM listed WHERE own_id = ? ORDER BY number", (own_id,)):
            if not self.taken[row["number"]]:  # an id occurs several times where a job keeps repeated ids
                self.taken[row["number"]] = 1
                return parse_row(row)
        return None

    def rest(self) -> Iterator[Entry]:
        """Yield the entries that were not taken, in the order of the listing."""
        for row in self._database.execute("SELECT * FROM listed ORDER BY number"):
            if not self.taken[row["number"]]:
                yield parse_row(row)

    def close(self) -> None:
        self._database.close()


@dataclass(frozen=True)
class _Comparison:
    """Compares an output with what is listed now."""

    store: StoreWriter
    now: _Listed
    retry: bool  # do failures again that may not occur again
    content_hash: Callable[[Item], str | None] | None

    def shards(self, earlier: Plan, shard_size: int) -> Iterator[Shard]:
        """Yield the earlier shards as they have to be now, then shards of what is new."""
        for shard in earlier:
            yield self._compare(shard)
        yield from in_shards(self.now.rest(), shard_size, earlier.shards)

    def _compare(self, old: Shard) -> Shard:
        """Return a shard as it has to be now, and which of its entries are carried over."""
        done = self.store.fingerprint(old.index) == old.fingerprint
        rows, failed = _read_outcomes(self.store, old)
        if not self.retry:
            failed = dict.fromkeys(failed, False)
        touched = not done
        entries: list[Entry] = []
        carried_over: set[str] = set()
        for before in old.entries:
            now = self.now.take(before.id)
            if now is None:
                touched = True
                continue
            entries.append(now)
            if isinstance(before, ContainerPart):  # a shard by itself, so nothing of it can be carried over
                touched |= before != now or any(failed.values())
                continue
            has_outcome = (done or before.id in old.carried_over) and not failed.get(before.id, before.id not in rows)
            if has_outcome and self._is_unchanged(before, now, rows.get(before.id)):
                carried_over.add(now.id)
            else:
                touched = True
        if not touched:
            return Shard(old.index, entries, old.fingerprint)
        return Shard(old.index, entries, compute_fingerprint(entries, old.fingerprint), frozenset(carried_over))

    def _is_unchanged(self, before: Entry, now: Entry, sha256: str | None) -> bool:
        if not isinstance(before, Item) or not isinstance(now, Item):
            return False  # a folder that could not be listed: the listing says what it is now
        if before.values != now.values:
            return False
        if self.content_hash is not None and sha256 is not None:
            return before.size_bytes == now.size_bytes and self.content_hash(now) == sha256
        return (before.size_bytes, before.modified_ns) == (now.size_bytes, now.modified_ns)


def _read_outcomes(store: StoreWriter, shard: Shard) -> tuple[dict[str, str | None], dict[str, bool]]:
    """Read what the part of a shard holds, by listed id.

    Returns the sha256 of each row (None where the job stores none), and whether each failure may not occur again.
    """
    listed = {entry.id for entry in shard.entries}
    rows: dict[str, str | None] = {}
    failed: dict[str, bool] = {}
    embeddings, failures = (store.parts.path(folder, shard.index) for folder in (EMBEDDINGS, FAILURES))
    columns = [name for name in ("id", "sha256") if name in store.schema.names]
    for row in store.parts.read_or_empty(embeddings, columns).to_pylist():
        rows[listed_id(row["id"], listed)] = row.get("sha256")
    for row in store.parts.read_or_empty(failures, ["id", "stage", "error"]).to_pylist():
        of_system = row["stage"] == "read" and _is_os_error(row["error"])
        own_id = listed_id(row["id"], listed)
        failed[own_id] = of_system or row["error"] in TRANSIENT_ERRORS or failed.get(own_id, False)
    return rows, failed


def _is_os_error(name: str) -> bool:
    error = getattr(builtins, name, None)
    return isinstance(error, type) and issubclass(error, OSError)
