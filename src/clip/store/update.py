"""An output brought up to date: what stands, compared with what is listed now. Knows nothing about pixels or models.

Shards that nothing happened to keep their fingerprint, and so their parts. In the others what is gone is left out, what has
changed is done again in its place, and the rest is kept; what is new follows in shards of its own. The comparison is
done in a database on the disk: memory holds a shard, and a byte for each listed entry.
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
from ..records import ContainerPart, Item, Shard, in_shards, listed_id
from .parts import EMBEDDINGS, FAILURE_SCHEMA, FAILURES, PART, read_standing
from .plan import MERGED, SCHEMA, as_row, compute_fingerprint, from_row, write_plan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..records import Entry
    from .plan import Plan
    from .writer import StoreWriter

SCRATCH = "compared.sqlite"
CACHE_KB = 32_000  # that SQLite may hold in memory
COLUMNS = [name for name in SCHEMA.names if name != "kept"]
# Failures that another try may not have, beside those of the system; all others follow from the image's bytes.
TRANSIENT_ERRORS = frozenset({"TimeoutError", "ChildProcessError", "MemoryError"})


def updated_plan(
    store: StoreWriter,
    standing: Plan,
    listed: Plan,
    shard_size: int,
    *,
    retry: bool = False,
    content_hash: Callable[[Item], str | None] | None = None,
) -> tuple[Plan, int]:
    """A plan of the entries that are listed, in the shards that stand as far as they do; and how many are gone.

    `listed` is used up. With `retry` failures that may pass are done again. Entries are unchanged when size and time of
    change are, or with `content_hash` when their content is.

    Raises:  InputError where nothing that stands is listed any more; StoreError for a part that cannot be read.
    """
    try:
        with closing(_Listed(listed)) as found:
            shards = _Comparison(store, found, retry, content_hash).shards(standing, shard_size)
            plan = write_plan(store.path, shards, Counter(listed.ignored), MERGED)
            gone = standing.entries - sum(found.used)
    except sqlite3.Error as exc:
        raise StoreError(
            f"{listed.folder / SCRATCH}",
            f"cannot be written ({exc})",
            "a disk with space",
            "Make room, run again.",
        ) from exc
    listed.discard()
    if standing.entries and gone == standing.entries:
        plan.discard()
        raise InputError(
            f"{store.path}: none of its {standing.entries:,} {store.manifest.kind} is listed any more, expected "
            "some to bring it up to date. Check that the source is there, or pass --overwrite."
        )
    return plan, gone


class _Listed:
    """The entries of a plan, to be found by their ids."""

    def __init__(self, plan: Plan) -> None:
        self.used = bytearray(plan.entries)
        self._database = sqlite3.connect(plan.folder / SCRATCH, isolation_level=None)
        # Nothing of it outlives the job, so nothing is synced; it lies in the output, where there is room.
        self._database.executescript(
            f"PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -{CACHE_KB};"
            f"CREATE TABLE listed (number INTEGER PRIMARY KEY, own_id TEXT, {', '.join(map(json.dumps, COLUMNS))})"
        )
        self._database.row_factory = sqlite3.Row
        number = 0
        for shard in plan:
            told = ((entry.id, as_row(entry)) for entry in shard.entries)
            rows = [(place, own_id, *map(row.get, COLUMNS)) for place, (own_id, row) in enumerate(told, number)]
            self._database.execute("BEGIN")
            self._database.executemany(f"INSERT INTO listed VALUES (?, ?{', ?' * len(COLUMNS)})", rows)
            self._database.execute("COMMIT")
            number += len(rows)
        self._database.execute("CREATE INDEX by_id ON listed (own_id)")

    def take(self, own_id: str) -> Entry | None:
        """The first entry of this id that was not taken yet; None where there is none."""
        for row in self._database.execute("SELECT * FROM listed WHERE own_id = ? ORDER BY number", (own_id,)):
            if not self.used[row["number"]]:  # an id may stand several times, where a job keeps such
                self.used[row["number"]] = 1
                return from_row(row)
        return None

    def rest(self) -> Iterator[Entry]:
        """What was not taken, in the order of the listing."""
        for row in self._database.execute("SELECT * FROM listed ORDER BY number"):
            if not self.used[row["number"]]:
                yield from_row(row)

    def close(self) -> None:
        self._database.close()


@dataclass(frozen=True)
class _Comparison:
    """What stands beside what is listed."""

    store: StoreWriter
    found: _Listed
    retry: bool  # failures that may pass are done again
    content_hash: Callable[[Item], str | None] | None

    def shards(self, standing: Plan, shard_size: int) -> Iterator[Shard]:
        """The shards that stand as they have to be, then those of what is new."""
        for shard in standing:
            yield self._updated(shard)
        yield from in_shards(self.found.rest(), shard_size, standing.shards)

    def _updated(self, old: Shard) -> Shard:
        """A shard as it has to be, with what of it stands already."""
        done = self.store.fingerprint(old.index) == old.fingerprint
        rows, failed = _outcomes(self.store, old)
        if not self.retry:
            failed = dict.fromkeys(failed, False)
        touched = not done
        entries: list[Entry] = []
        kept: set[str] = set()
        for before in old.entries:
            now = self.found.take(before.id)
            if now is None:
                touched = True
                continue
            entries.append(now)
            if isinstance(before, ContainerPart):  # a shard of its own, so there is nothing to keep of it
                touched |= before != now or any(failed.values())
                continue
            stands = (done or before.id in old.kept) and not failed.get(before.id, before.id not in rows)
            if stands and self._unchanged(before, now, rows.get(before.id)):
                kept.add(now.id)
            else:
                touched = True
        if not touched:
            return Shard(old.index, entries, old.fingerprint)
        return Shard(old.index, entries, compute_fingerprint(entries, old.fingerprint), frozenset(kept))

    def _unchanged(self, before: Entry, now: Entry, sha256: str | None) -> bool:
        if not isinstance(before, Item) or not isinstance(now, Item):
            return False  # a folder that could not be listed: whatever is told of it now stands in the listing
        if before.values != now.values:
            return False
        if self.content_hash is not None and sha256 is not None:
            return before.size_bytes == now.size_bytes and self.content_hash(now) == sha256
        return (before.size_bytes, before.modified_ns) == (now.size_bytes, now.modified_ns)


def _outcomes(store: StoreWriter, shard: Shard) -> tuple[dict[str, str | None], dict[str, bool]]:
    """What stands of a shard, by the ids that were listed.

    Of rows the sha256 (None where no job asked for it), and which failures may pass.
    """
    listed = {entry.id for entry in shard.entries}
    rows: dict[str, str | None] = {}
    failed: dict[str, bool] = {}
    embeddings, failures = (store.path / folder / PART.format(shard.index) for folder in (EMBEDDINGS, FAILURES))
    columns = [name for name in ("id", "sha256") if name in store.schema.names]
    for row in read_standing(embeddings, store.schema, columns).to_pylist():
        rows[listed_id(row["id"], listed)] = row.get("sha256")
    for row in read_standing(failures, FAILURE_SCHEMA, ["id", "stage", "error"]).to_pylist():
        of_system = row["stage"] == "read" and _is_os_error(row["error"])
        own_id = listed_id(row["id"], listed)
        failed[own_id] = of_system or row["error"] in TRANSIENT_ERRORS or failed.get(own_id, False)
    return rows, failed


def _is_os_error(name: str) -> bool:
    found = getattr(builtins, name, None)
    return isinstance(found, type) and issubclass(found, OSError)
