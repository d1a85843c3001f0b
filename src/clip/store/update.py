"""Update a plan: compare an output's earlier plan with what is listed now.

A shard in which nothing happened keeps its fingerprint, and so its part. In any other shard removed entries are left
out, changed ones are done again in their places, and the rest is carried over; new entries follow in new shards. The
comparison (listed.py) is on the disk: memory holds one shard, and two bytes per listed entry.

An image under another id, as when its folder was renamed, is known by its size and its time of change. Its entry takes
the place of the earlier one, whose row is carried over under the new id. So is an archive or a table: all rows of its
part get new ids (renamed_containers.py).
"""

from __future__ import annotations

import builtins
import sqlite3
from collections import Counter
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import InputError, StoreError
from ..records import ContainerPart, Entry, Failure, Item, Shard, in_shards, listed_id
from .listed import SCRATCH, Listed
from .parts import EMBEDDINGS, FAILURES
from .plan import MERGED, Plan, compute_fingerprint, identify, write_plan
from .renamed_containers import are_at_its_path

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from .writer import StoreWriter

# Failures that another try may avoid, besides those of the system; all others follow from the image's bytes.
TRANSIENT_ERRORS = frozenset({"TimeoutError", "ChildProcessError", "MemoryError"})


@dataclass(frozen=True)
class Changes:
    """How a listing differs from an earlier one, in entries."""

    new: int
    gone: int
    changed: int  # of another size, time of change, or of other copied columns
    moved: int  # of another path
    renamed: int = 0  # of the new ones, as many of the gone ones by size and time of change

    def __str__(self) -> str:
        """Return the counts in words, with "since"; empty where there is nothing to count."""
        counts = {"new": self.new, "gone": self.gone, "changed": self.changed, "moved": self.moved}
        words = ", ".join(f"{count:,} {word}" for word, count in counts.items() if count)
        return f"{words} since{f' ({self.renamed:,} renamed)' if self.renamed else ''}" if words else ""


def count_changes(earlier: Plan, listed: Plan, *, has_base: bool) -> Changes:
    """Compare a listing with an earlier one. Raises: StoreError where that cannot be done on the disk."""
    gone = changed = moved = 0
    with _translate_sqlite_errors(listed), closing(Listed(listed)) as now:
        for shard in earlier:
            lost: list[Item | ContainerPart] = []
            for before in shard.entries:
                found = now.take(before.id)
                if found is None:
                    gone += 1
                    lost += [before] if not isinstance(before, Failure) else []
                elif identify(before, has_base=False) != identify(found[1], has_base=False):
                    changed += 1
                elif has_base and before.path != found[1].path:
                    moved += 1
            now.lose([(item, None, True) for item in lost])
        new = listed.entries - sum(now.taken)
        now.find_renamed()
    return Changes(new, gone, changed, moved, now.renamed)


@contextmanager
def _translate_sqlite_errors(listed: Plan) -> Generator[None]:
    try:
        yield
    except sqlite3.Error as exc:
        item = listed.folder / SCRATCH
        raise StoreError(item, f"cannot be written ({exc})", "a disk with space", "Make room, and run again.") from exc


def update_plan(
    store: StoreWriter,
    earlier: Plan,
    listed: Plan,
    shard_size: int,
    *,
    retry: bool = False,
    content_hash: Callable[[Item], str | None] | None = None,
) -> tuple[Plan, int, int]:
    """Return a plan of the listed entries that keeps the earlier shards where it can; and how many are gone, renamed.

    `listed` is removed. With `retry`, failures that another try may avoid are tried again, and images are found under
    other ids. An entry is unchanged if its size and modification time are, or with `content_hash` if its content is.

    Raises:  InputError where none of the earlier entries is listed any more; StoreError for a part that cannot be read.
    """
    with _translate_sqlite_errors(listed), closing(Listed(listed)) as now:
        shards = _Comparison(store, now, retry, content_hash).shards(earlier, shard_size)
        has_base = store.manifest.base is not None
        plan = write_plan(store.path, shards, Counter(listed.ignored), MERGED, has_base=has_base)
        gone = earlier.entries - sum(now.taken)
    listed.discard()
    if earlier.entries and gone == earlier.entries:
        plan.discard()
        found = f"none of its {earlier.entries:,} {store.manifest.kind} is listed any more"
        remedy = "Check that the source is there, or pass `overwrite=True`."
        raise InputError(store.path, found, "some to bring it up to date", remedy)
    return plan, gone, now.renamed


@dataclass(frozen=True)
class _Comparison:
    """Compares an output with what is listed now."""

    store: StoreWriter
    now: Listed
    retry: bool  # an update: do failures again that may not occur again, and look for images under other ids
    content_hash: Callable[[Item], str | None] | None

    @property
    def _has_base(self) -> bool:
        return self.store.manifest.base is not None

    def shards(self, earlier: Plan, shard_size: int) -> Iterator[Shard]:
        """Yield the earlier shards as they have to be now, then shards of what is new."""
        if self.retry:
            for shard in earlier:
                self._find_lost(shard)
            self.now.find_renamed(self.content_hash)
        for shard in earlier:
            yield self._compare(shard)
        yield from in_shards(self.now.rest(), shard_size, earlier.shards)

    def _find_lost(self, old: Shard) -> None:
        """Note which images of a shard are the same under their ids, and which are not."""
        lost: list[Item | ContainerPart] = []
        outcomes = _read_outcomes(self.store, old, retry=self.retry) if self.content_hash else None
        for before in old.entries:
            found = self.now.find(before.id)
            sha256 = outcomes.rows.get(before.id) if outcomes else None
            if found is not None and self._is_unchanged(before, found[1], sha256):
                self.now.note_same(found[0])
            elif not isinstance(before, Failure):
                lost.append(before)
        if lost:
            outcomes = outcomes or _read_outcomes(self.store, old, retry=self.retry)
            of_lost = [(one, outcomes.rows.get(one.id), self._is_settled(old, one, outcomes)) for one in lost]
            self.now.lose(of_lost)

    def _is_settled(self, old: Shard, before: Item | ContainerPart, outcomes: _Outcomes) -> bool:
        """Whether what the part of a shard has for an entry can be kept under another id."""
        if isinstance(before, Item):
            return outcomes.has_outcome(before.id)
        is_whole = outcomes.done and not any(outcomes.failed.values())
        return is_whole and are_at_its_path(self.store.parts, old.index, before)

    def _compare(self, old: Shard) -> Shard:
        """Return a shard as it has to be now, and which of its entries are carried over."""
        outcomes = _read_outcomes(self.store, old, retry=self.retry)
        touched = not outcomes.done
        entries: list[Entry] = []
        carried_over: set[str] = set()
        renamed: dict[str, str] = {}
        for before in old.entries:
            own_id = before.id if outcomes.done else old.renamed.get(before.id, before.id)
            now = self.now.get_renamed(before.id)
            found = None if now is not None else self.now.take(before.id)
            if now is None and found is None:
                touched = True
                continue
            entry = now or (found or (0, before))[1]
            entries.append(entry)
            if isinstance(before, ContainerPart) and now is not None:
                carried_over.add(entry.id)
                renamed[entry.id] = before.id
                touched = True
                continue
            if isinstance(before, ContainerPart):  # a shard by itself, so nothing of it can be carried over
                changed = identify(before, has_base=self._has_base) != identify(entry, has_base=self._has_base)
                touched |= changed or any(outcomes.failed.values())
                continue
            if now is not None or (found and outcomes.has_outcome(before.id) and self._is_same(before, *found)):
                carried_over.add(entry.id)
                if own_id != entry.id:
                    renamed[entry.id] = own_id
                touched |= now is not None or (self._has_base and before.path != entry.path)
            else:
                touched = True
        if not touched:
            return Shard(old.index, entries, old.fingerprint)
        if not outcomes.done and (entries, carried_over, renamed) == (old.entries, old.carried_over, old.renamed):
            return old  # its part was never written; its journal may be there
        fingerprint = compute_fingerprint(entries, old.fingerprint, has_base=self._has_base)
        return Shard(old.index, entries, fingerprint, frozenset(carried_over), renamed)

    def _is_same(self, before: Entry, number: int, now: Entry) -> bool:
        return self.now.is_same(number) if self.retry else self._is_unchanged(before, now, None)

    def _is_unchanged(self, before: Entry, now: Entry, sha256: str | None) -> bool:
        if isinstance(before, ContainerPart):
            return identify(before, has_base=self._has_base) == identify(now, has_base=self._has_base)
        if not isinstance(before, Item) or not isinstance(now, Item):
            return False  # a folder that could not be listed: the listing says what it is now
        if before.values != now.values:
            return False
        if self.content_hash is not None and sha256 is not None:
            return before.size_bytes == now.size_bytes and self.content_hash(now) == sha256
        return (before.size_bytes, before.modified_ns) == (now.size_bytes, now.modified_ns)


@dataclass(frozen=True)
class _Outcomes:
    """What the part of a shard holds for its entries, by their ids."""

    done: bool  # whether the part is of this listing; else it has the rows that are to be carried over, and others
    rows: dict[str, str | None]  # the sha256 of each, None where the job stores none
    failed: dict[str, bool]  # whether each failure may not occur again, and should be tried

    def has_outcome(self, own_id: str) -> bool:
        """Whether an entry has a row or a failure that need not be tried again."""
        return not self.failed.get(own_id, own_id not in self.rows)


def _read_outcomes(store: StoreWriter, shard: Shard, *, retry: bool) -> _Outcomes:
    """Read what the part of a shard holds; with `retry` some failures should be tried again."""
    done = store.fingerprint(shard.index) == shard.fingerprint
    own_ids = [entry.id for entry in shard.entries] if done else shard.carried_over
    listed = {own_id if done else shard.renamed.get(own_id, own_id): own_id for own_id in own_ids}
    outcomes = _Outcomes(done, {}, {})
    embeddings, failures = (store.parts.path(folder, shard.index) for folder in (EMBEDDINGS, FAILURES))
    columns = [name for name in ("id", "sha256") if name in store.schema.names]
    for row in store.parts.read_or_empty(embeddings, columns).to_pylist():
        if (own_id := listed.get(listed_id(row["id"], listed))) is not None:
            outcomes.rows[own_id] = row.get("sha256")
    for row in store.parts.read_or_empty(failures, ["id", "stage", "error"]).to_pylist():
        file = listed_id(row["id"], listed)
        own_id = listed.get(file, file if done else None)  # of a member of an archive the own one
        if own_id is not None:
            again = retry and may_pass(row)
            outcomes.failed[own_id] = again or outcomes.failed.get(own_id, False)
    return outcomes


def has_passing_failure(store: StoreWriter, index: int) -> bool:
    """Whether a shard has a failure that an update would try again. Raises: StoreError for a part that is damaged."""
    failures = store.parts.read_or_empty(store.parts.path(FAILURES, index), ["stage", "error"])
    return any(map(may_pass, failures.to_pylist()))


def may_pass(failure: dict[str, str]) -> bool:
    """Whether a failure may not occur again."""
    of_system = failure["stage"] == "read" and _is_os_error(failure["error"])
    return of_system or failure["error"] in TRANSIENT_ERRORS


def _is_os_error(name: str) -> bool:
    error = getattr(builtins, name, None)
    return isinstance(error, type) and issubclass(error, OSError)
