"""The entries of a new listing, searchable by id, and by what tells that an image is the same under another id.

SQLite sorts and joins them on the disk, and comes with Python: memory holds two bytes for each listed entry.
"""

from __future__ import annotations

import json
import os
import sqlite3
from itertools import chain
from typing import TYPE_CHECKING

from ..object_paths import ObjectPath
from ..records import ContainerPart, Entry, Failure, Item
from .plan import SCHEMA, Plan, make_row, parse_row

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

SCRATCH = "compared.sqlite"
CACHE_KB = 32_000  # that SQLite may hold in memory
COLUMNS = [name for name in SCHEMA.names if name not in ("kept", "was")]
# By which an image under another id is known, besides size and time of change; the first that is met by one image
# before and by one now. Without either a file that was replaced by one of the same size and time would pass for it.
SIGNS = ("path", "name", None)


class Listed:
    """The entries of a plan, of which those of an earlier one are taken."""

    def __init__(self, plan: Plan) -> None:
        self.taken = bytearray(plan.entries)  # 1 for each entry that belongs to an earlier one
        self._same = bytearray(plan.entries)  # 1 for each entry that is as it was, under its id
        self.renamed = 0
        # Of a plan on an object store in a file without a name here, as SQLite makes for "".
        name = "" if isinstance(plan.folder, ObjectPath) else plan.folder / SCRATCH
        self._database = sqlite3.connect(name, isolation_level=None)
        self._database.create_function("is_same", 1, lambda number: self._same[number])
        # Nothing in it outlives the job, so nothing is synced. It is in the output, where there is room.
        self._database.executescript(
            f"PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -{CACHE_KB};"
            "CREATE TABLE lost"
            " (own_id TEXT, path, name, part, size_bytes, modified_ns, 'values', sha256, settled, number);"
            "CREATE TABLE listed (number INTEGER PRIMARY KEY, own_id TEXT, name, part,"
            f" {', '.join(map(json.dumps, COLUMNS))})"
        )
        self._database.row_factory = sqlite3.Row
        number = 0
        for shard in plan:
            rows = [
                (number + place, entry.id, _get_name(entry), _get_part(entry), *map(make_row(entry).get, COLUMNS))
                for place, entry in enumerate(shard.entries)
            ]
            self._insert("listed", rows)
            number += len(rows)
        self._database.execute("CREATE INDEX by_id ON listed (own_id)")

    def _insert(self, table: str, rows: Sequence[tuple[object, ...]]) -> None:
        if rows:
            self._database.execute("BEGIN")
            self._database.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * len(rows[0]))})", rows)
            self._database.execute("COMMIT")

    def find(self, own_id: str) -> tuple[int, Entry] | None:
        """Return the first entry with this id that was not taken, and its number; None where there is none."""
        for row in self._database.execute("SELECT * FROM listed WHERE own_id = ? ORDER BY number", (own_id,)):
            if not self.taken[row["number"]]:  # an id occurs several times where a job keeps repeated ids
                return row["number"], parse_row(row)
        return None

    def take(self, own_id: str) -> tuple[int, Entry] | None:
        """Return what `find` does, and take it."""
        found = self.find(own_id)
        if found is not None:
            self.taken[found[0]] = 1
        return found

    def note_same(self, number: int) -> None:
        """Note that an entry is as it was."""
        self._same[number] = 1

    def is_same(self, number: int) -> bool:
        """Whether `note_same` was called with this number."""
        return self._same[number] == 1

    def lose(self, items: list[tuple[Item | ContainerPart, str | None, bool]]) -> None:
        """Note what is not as it was under its id, its sha256, and whether its outcome is settled."""
        rows: list[tuple[object, ...]] = []
        for item, sha256, settled in items:
            row = make_row(item)
            status = (row["size_bytes"], row["modified_ns"], row.get("values"))
            rows.append((item.id, row["path"], _get_name(item), _get_part(item), *status, sha256, settled, None))
        self._insert("lost", rows)

    def find_renamed(self, content_hash: Callable[[Item], str | None] | None = None) -> None:
        """Find the lost images whose outcome is settled among the entries that are new, and take those.

        An image is known by its size and time of change, and its path, its name, or nothing else, where exactly one
        image had these and one has them now; by its content with `content_hash`. Copied columns, and of texts the text,
        have to be the same. A container is always known by its size and time of change.
        """
        self._database.execute("CREATE INDEX by_lost_id ON lost (own_id)")
        if not self._database.execute("SELECT count(*) FROM lost WHERE settled").fetchone()[0]:
            return
        self._database.execute("CREATE INDEX by_size ON listed (size_bytes)")
        self._database.execute("CREATE INDEX by_lost_size ON lost (size_bytes)")
        pairs = (pair for sign in SIGNS for pair in self._match(sign, containers_only=content_hash is not None))
        by_content = self._match_content(content_hash) if content_hash else ()
        for lost, number in chain(by_content, pairs):
            claim = "UPDATE lost SET number = ? WHERE rowid = ? AND number IS NULL"
            if not self.taken[number] and self._database.execute(claim, (number, lost)).rowcount:
                self.taken[number] = 1
                self.renamed += 1

    def _match(self, sign: str | None, *, containers_only: bool) -> list[tuple[int, int]]:
        keys = ", ".join(("size_bytes", "modified_ns", '"values"', "part", *([sign] if sign else ())))
        kind = "AND part IS NOT NULL" if containers_only else ""
        known = "" if sign == "path" else "AND modified_ns != 0"  # of an image on a server it is often unknown
        query = f"""
            WITH now AS (
                SELECT {keys}, min(number) AS number, count(*) AS several FROM listed
                WHERE size_bytes IN (SELECT size_bytes FROM lost) {kind} {known} GROUP BY {keys}
            ), before AS (
                SELECT {keys}, min(rowid) AS lost, min(settled) AS settled, count(*) AS several
                FROM lost GROUP BY {keys}
            )
            SELECT lost, number FROM before JOIN now
            ON {" AND ".join(f"before.{key} IS now.{key}" for key in keys.split(", "))}
            WHERE before.several = 1 AND now.several = 1 AND settled AND NOT is_same(number)
        """
        return [(row["lost"], row["number"]) for row in self._database.execute(query)]

    def _match_content(self, content_hash: Callable[[Item], str | None]) -> Iterator[tuple[int, int]]:
        new = "SELECT * FROM listed WHERE size_bytes IN (SELECT size_bytes FROM lost WHERE settled) AND start IS NULL"
        same = (
            'SELECT rowid FROM lost WHERE size_bytes = ? AND sha256 = ? AND "values" IS ? AND settled'
            " AND number IS NULL ORDER BY name = ? DESC, rowid LIMIT 1"
        )
        for row in self._database.execute(f"{new} AND NOT is_same(number) ORDER BY number").fetchall():
            entry = parse_row(row)
            sha256 = content_hash(entry) if isinstance(entry, Item) else None
            keys = (row["size_bytes"], sha256, row["values"], row["name"])
            for lost in self._database.execute(same, keys).fetchall():
                yield lost[0], row["number"]

    def get_renamed(self, own_id: str) -> Entry | None:
        """Return the entry that an earlier one has become under another id; None where there is none."""
        if not self.renamed:
            return None
        query = "SELECT listed.* FROM lost JOIN listed USING (number) WHERE lost.own_id = ?"
        row = self._database.execute(query, (own_id,)).fetchone()
        return None if row is None else parse_row(row)

    def rest(self) -> Iterator[Entry]:
        """Yield the entries that were not taken, in the order of the listing."""
        for row in self._database.execute("SELECT * FROM listed ORDER BY number"):
            if not self.taken[row["number"]]:
                yield parse_row(row)

    def close(self) -> None:
        """Close the database."""
        self._database.close()


def _get_part(entry: Entry) -> str | None:
    """Return what is taken of a container, besides its size and its time; None for an image."""
    if not isinstance(entry, ContainerPart):
        return None
    return json.dumps([entry.start, entry.stop, entry.members, entry.limit, entry.columns])


def _get_name(entry: Item | Failure | ContainerPart) -> bytes:
    return os.fsencode(entry.path).rpartition(b"/")[2]
