"""The journal of a part that is being written: its rows so far, saved by the minute, so that a kill loses no more.

    OUT/_journal/part-00017/embeddings/part-00000.parquet    rows of the first piece; 00001, 00002, ... follow
    OUT/_journal/part-00017/failures/part-00000.parquet      its failures

A piece is written as a part is: whole or absent, with checksums and the fingerprint of its shard. It counts together
with all pieces before it; any other is removed, and its rows are made again. When the part is there, its journal goes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..atomic_files import make_folder, remove_folder, remove_temporaries, translate_os_errors
from ..errors import StoreError, StoreUnreachableError
from ..records import Shard
from .part_writer import PartWriter
from .parts import EMBEDDINGS, FAILURES, Parts, shard_number

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator, Mapping
    from pathlib import Path

    import pyarrow as pa

JOURNAL = "_journal"
PART_FOLDER = "part-{:05d}"
FOLDER_NAME = re.compile(r"part-([0-9]{5}|[1-9][0-9]{5,8})")


@dataclass(frozen=True)
class Saved:
    """How far a journal goes."""

    outcomes: int = 0  # rows and failures
    failed: int = 0  # of these
    entries: int = 0  # that need not be read again
    frames: int = 0  # outcomes of these beyond one for each

    @property
    def repeated(self) -> int:
        """Outcomes at the begin of what is read again, which are frames of the next entry."""
        return self.outcomes - self.entries - self.frames


class Journal:
    """The journal of one shard."""

    def __init__(self, parts: Parts, shard: Shard) -> None:
        """Look at nothing yet; `recover` does."""
        self.saved = Saved()
        self._pieces = 0
        self._shard = shard
        self._folder = parts.output / JOURNAL / PART_FOLDER.format(shard.index)
        self._parts = replace(parts, output=self._folder)

    def recover(self) -> None:
        """Find how far an earlier run came, and remove what cannot be used. Raises: StoreError."""
        while (saved := self._check(self._pieces)) is not None:
            self.saved, self._pieces = saved, self._pieces + 1
        self._remove_from(self._pieces)

    def _check(self, number: int) -> Saved | None:
        """Return how far the journal goes with a piece; None where that is missing, damaged, or of other entries."""
        paths = [self._parts.path(folder, number) for folder in (EMBEDDINGS, FAILURES)]
        try:
            if not all(path.is_file() for path in paths):
                return None
            rows, failures = (self._parts.summarise(path) for path in paths)
            are_whole = all([self._parts.check(path) for path in paths])
        except StoreUnreachableError:
            raise  # nothing is known of the piece, so it is not removed
        except (StoreError, OSError):
            return None
        if not are_whole or {rows.fingerprint, failures.fingerprint} != {self._shard.fingerprint}:
            return None
        before, until = self.saved, rows.read or 0
        outcomes = before.outcomes + rows.rows + failures.rows
        saved = Saved(outcomes, before.failed + failures.rows, until - rows.frames, rows.frames)
        return saved if before.entries <= saved.entries and saved.repeated >= 0 else None

    def read(self) -> Iterator[dict[str, pa.Table]]:
        """Yield the rows and the failures of each piece. Raises: StoreError where one has changed since `recover`."""
        for number in range(self._pieces):
            yield {
                folder: self._parts.read(self._parts.path(folder, number), names)
                for folder, names in ((EMBEDDINGS, self._parts.schema.names), (FAILURES, None))
            }

    def write(self, tables: Mapping[str, pa.Table], entries: int, frames: int) -> None:
        """Add a piece; `entries` need not be read again, and they have become so many `frames` beyond one for each.

        Raises:  StoreError where it cannot be written.
        """
        with translate_os_errors(self._folder):
            for folder in (self._folder.parent, self._folder, self._folder / EMBEDDINGS, self._folder / FAILURES):
                make_folder(folder)
        with PartWriter(self._parts, Shard(self._pieces, [], self._shard.fingerprint)) as writer:
            writer.add_tables(tables)
            writer.note(entries, {}, frames)
        rows, failures = (tables[folder].num_rows for folder in (EMBEDDINGS, FAILURES))
        # One assignment, as Ctrl-C may come at any line; a piece that is not counted is written again.
        self.saved, self._pieces = (
            Saved(self.saved.outcomes + rows + failures, self.saved.failed + failures, entries, frames),
            self._pieces + 1,
        )

    def remove_failures(self, which: Callable[[dict[str, str]], bool] = lambda _: True) -> None:
        """Remove the pieces from the first with such a failure on, so that these entries are tried again."""
        self.saved, pieces, self._pieces = Saved(), self._pieces, 0
        while self._pieces < pieces and (saved := self._check(self._pieces)) is not None:
            path = self._parts.path(FAILURES, self._pieces)
            if saved.failed > self.saved.failed and any(map(which, self._parts.read(path).to_pylist())):
                break
            self.saved, self._pieces = saved, self._pieces + 1
        self._remove_from(self._pieces)

    def remove(self) -> None:
        """Remove the journal: the part is there."""
        _remove(self._folder)

    def _remove_from(self, number: int) -> None:
        if not self._folder.is_dir() or self._folder.is_symlink():
            return
        if not number:
            self.remove()
            return
        for folder in (EMBEDDINGS, FAILURES):
            with translate_os_errors(self._folder / folder):
                remove_temporaries(self._folder / folder, "part-")
                for path in self._parts.find(folder):
                    if shard_number(path) >= number:
                        path.unlink()


def find_journals(output: Path) -> set[int]:
    """Return the shards that have a journal."""
    folder = output / JOURNAL
    with translate_os_errors(folder):
        names = [path.name for path in folder.iterdir()] if folder.is_dir() and not folder.is_symlink() else []
    return {int(name.removeprefix("part-")) for name in names if FOLDER_NAME.fullmatch(name)}


def remove_journals(output: Path, shards: Container[int]) -> None:
    """Remove the journals of some shards."""
    for index in find_journals(output):
        if index in shards:
            _remove(output / JOURNAL / PART_FOLDER.format(index))


def _remove(folder: Path) -> None:
    with translate_os_errors(folder):
        if folder.is_dir():
            remove_folder(folder)
        if folder.parent.is_dir() and not any(folder.parent.iterdir()):
            try:
                folder.parent.rmdir()
            except OSError:  # another part of the run has put its journal there meanwhile
                return
