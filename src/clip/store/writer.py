"""StoreWriter: writes the output of a run, each file complete or absent.

    OUT/manifest.json                    what was run, on which input, and how many rows it gave
    OUT/embeddings/, OUT/failures/       a file per shard in each: parts.py

A file is written under a temporary name, synced, renamed, and its folder synced. The failures of a shard are written
first, its embeddings last: a shard is done when both files are there and carry the fingerprint of its listing.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..atomic_files import TEMPORARY, make_folder, remove_folder, remove_temporaries, translate_os_errors
from ..errors import StoreMismatchError
from ..object_paths import ObjectPath, map_objects
from .journal import JOURNAL, Journal
from .manifest import CALIBRATION, INDEX, MANIFEST, READING_KEYS, Manifest, read_manifest, write_manifest
from .part_writer import PartWriter
from .parts import EMBEDDING, EMBEDDINGS, FAILURES, Parts, embedding_schema, shard_number
from .plan import PLAN_FOLDERS

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Sequence

    from ..records import Failure, Row, Shard

TEMPORARY_NAME = re.compile(r"\.part-(\d{5,9})\.parquet\.")
MAX_SHOWN = 60  # characters of a value in an error


def check_room(path: Path) -> None:
    """Refuse a folder with files that a run must not add to or remove.

    Raises:  StoreMismatchError; StoreError where the folder cannot be read.
    """
    with translate_os_errors(path):
        if path.exists() and not path.is_dir():
            raise StoreMismatchError(path, "is a file", "a folder or nothing", "Choose another output.")
        for name in (EMBEDDINGS, FAILURES, INDEX, JOURNAL, *PLAN_FOLDERS):
            folder = path / name
            if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
                found = "is a link" if folder.is_symlink() else "is no folder"
                remedy = "Move it away, or choose another output."
                raise StoreMismatchError(folder, found, "a folder, as nothing is written through a link", remedy)
        existing = [name for name in (EMBEDDINGS, FAILURES, INDEX) if (path / name).exists()]
        has_manifest = (path / MANIFEST).exists()
    if has_manifest and read_manifest(path / MANIFEST) is None:
        found = f"holds a {MANIFEST} that is not ours"
        raise StoreMismatchError(path, found, remedy="Choose another output, or move it.")
    if existing and not has_manifest:
        found = f"holds {existing[0]!r} and no {MANIFEST}"
        remedy = "Choose another output, or move it away."
        raise StoreMismatchError(path, found, "an empty folder or one of ours", remedy)


def _show(value: object) -> str:
    return json.dumps(value)[:MAX_SHOWN]


class StoreWriter:
    """Writes a run into a folder, or resumes the one that was interrupted there."""

    def __init__(self, path: Path, manifest: Manifest, *, overwrite: bool = False) -> None:
        """Look at what the folder holds; nothing is written before `begin`.

        A run in it is resumed if its manifest agrees in COMPARED_KEYS; `overwrite` removes it instead.

        Raises:  StoreMismatchError where the folder holds another run, or files of these names without a manifest.
        """
        self.path = path
        self._overwrite = overwrite
        check_room(path)
        self._earlier: Manifest | None = None
        if (path / MANIFEST).exists() and not overwrite:
            self._earlier = read_manifest(path / MANIFEST)
            if self._earlier and (difference := self._earlier.first_difference(manifest)):
                raise self._mismatch(*difference)
        if self._earlier:  # whose parts carry its name, and have its columns
            earlier = self._earlier
            names = ("run", "warnings", "text_warnings")
            self.manifest = replace(manifest, **{name: getattr(earlier, name) for name in names})
        else:
            self.manifest = replace(manifest, run=manifest.identify())
        self.schema = embedding_schema(self.manifest)
        self.parts = Parts(path, self.schema, self.manifest.run)

    @property
    def is_new(self) -> bool:
        """Whether there is no earlier run to resume."""
        return self._earlier is None

    def has_input(self, input_fingerprint: str) -> bool:
        """Return whether the earlier run, if there is one, has this input."""
        return self._earlier is None or self._earlier.input_fingerprint == input_fingerprint

    def begin(self, input_fingerprint: str, *, update: bool = False) -> None:
        """Make the folder and write the manifest, or resume the earlier run, or update it.

        Raises:  StoreMismatchError where that run has another input and is not to be updated; StoreError where the
                 folder cannot be written.
        """
        self.manifest = replace(self.manifest, input_fingerprint=input_fingerprint)
        has_moved = False
        if self._earlier is not None and not self.has_input(input_fingerprint):
            if not update:
                raise self.make_input_error()
            self._earlier = None  # the manifest is written anew, the parts stay
        if self._earlier is not None:
            # The same images may be elsewhere by now.
            names = ("source", "root", "base", "base_from_output", "parts")
            places = {name: getattr(self.manifest, name) for name in names}
            self.manifest = replace(self._earlier, **places)
            has_moved = self.manifest != self._earlier
        with translate_os_errors(self.path):
            if self._overwrite:
                for folder in (EMBEDDINGS, FAILURES):
                    for path in self.parts.find(folder):
                        path.unlink()
                for folder in (INDEX, JOURNAL):
                    if (self.path / folder).exists():
                        remove_folder(self.path / folder)
                (self.path / CALIBRATION).unlink(missing_ok=True)
            self.path.mkdir(parents=True, exist_ok=True)
            if self._earlier is None or has_moved:
                write_manifest(self.path, self.manifest)  # first: with no manifest the folders would not be ours
            remove_temporaries(self.path, MANIFEST)
            for folder in (EMBEDDINGS, FAILURES):
                make_folder(self.path / folder)
                remove_temporaries(self.path / folder, "part-")

    def join(self) -> None:
        """Take part in the run that another process has begun.

        Raises:  StoreMismatchError for one of other inputs, as it is not listed again.
        """
        earlier = self._earlier
        if earlier is None:
            raise AssertionError("there is no run to take part in")
        keys = (*READING_KEYS, "source", "root", "duplicate_ids")
        if difference := earlier.first_difference(self.manifest, keys):
            raise self._mismatch(*difference)
        self.manifest = replace(earlier, parts=self.manifest.parts)
        if self.manifest != earlier:
            with translate_os_errors(self.path):
                write_manifest(self.path, self.manifest)

    def remove_temporaries(self, indices: Container[int]) -> None:
        """Remove what killed processes left of these shards; others are being written meanwhile."""
        for folder in (EMBEDDINGS, FAILURES):
            with translate_os_errors(self.path / folder):
                for path in (self.path / folder).glob(f".part-*{TEMPORARY}"):
                    number = TEMPORARY_NAME.match(path.name)
                    if number is not None and int(number[1]) in indices:
                        path.unlink(missing_ok=True)

    def _mismatch(self, key: str, *values: Any) -> StoreMismatchError:
        earlier, wanted = map(_show, values)
        found = f"holds a run whose {key} is {earlier}"
        expected = f"{wanted} to resume it"
        remedy = "Pass `overwrite=True` to replace it, or choose another output."
        return StoreMismatchError(self.path, found, expected, remedy)

    def make_input_error(self, changes: str = "") -> StoreMismatchError:
        """Return the error for an input that is another one than that of the run, with the changes in words."""
        found = changes or "its input changed since"
        if self._earlier and (difference := self._earlier.first_difference(self.manifest, READING_KEYS)):
            key, *values = difference
            earlier, wanted = map(_show, values)
            found += f", as its {key} was {earlier} and is {wanted}"
        remedy = "Add `update=True` to bring it up to date, or choose another output."
        return StoreMismatchError(self.path, found, remedy=remedy)

    def fingerprint(self, index: int) -> str | None:
        """Return the fingerprint of a shard's two files; None where one is missing or they disagree.

        Raises:  StoreError for a file that cannot be read.
        """
        if not self.parts.has(index):
            return None
        fingerprints = {self.parts.summarise(path).fingerprint for path in self._paths(index)}
        return fingerprints.pop() if len(fingerprints) == 1 else None

    def is_done(self, index: int, fingerprint: str) -> bool:
        """Return whether a shard's two files are there and of this fingerprint, and compare all of their bytes.

        That takes 7 ms for 10,000 vectors of 512 (LOG.md), less than listing their images again. On an object store
        their footers alone are compared: the rest would have to be sent here, and `verify` does that.

        Raises:  StoreError for a file that is not as it was written.
        """
        if self.fingerprint(index) != fingerprint:
            return False
        if isinstance(self.path, ObjectPath):
            return True
        for path in self._paths(index):
            self.parts.check(path)
        return True

    def _paths(self, index: int) -> list[Path]:
        return [self.parts.path(folder, index) for folder in (EMBEDDINGS, FAILURES)]

    def remove_beyond(self, shards: int) -> None:
        """Remove the parts of shards that the plan no longer has."""
        for folder in (EMBEDDINGS, FAILURES):
            with translate_os_errors(self.path / folder):
                for path in self.parts.find(folder):
                    if shard_number(path) >= shards:
                        path.unlink()

    def reopen(self) -> None:
        """Record that the run is not over. Raises: StoreError."""
        if self._read_again().counts is not None:
            self.finish(None)

    def _read_again(self) -> Manifest:
        """Return the manifest as it is now, which others that share the run may have written."""
        return (read_manifest(self.path / MANIFEST) if self.manifest.parts else None) or self.manifest

    def counts(self, shards: Iterable[int]) -> tuple[int, int]:
        """Count the rows and the failures in the parts of these shards.

        Raises:  StoreError for a part that cannot be read.
        """
        paths = (path for index in shards for path in self._paths(index))
        counts = [summary.rows for summary in map_objects(self.parts.summarise, paths, self.path)]
        return sum(counts[::2]), sum(counts[1::2])

    def commit(self, shard: Shard, rows: Sequence[Row], vectors: np.ndarray, failures: Sequence[Failure]) -> None:
        """Write a shard with one call; see `part`."""
        with self.part(shard) as part:
            part.add(rows, {EMBEDDING: vectors}, failures)

    def part(self, shard: Shard) -> PartWriter:
        """Return the writer of a shard, for a `with` block at whose end the failures appear, then the embeddings.

        Raises:  StoreError where it cannot be written; then neither file is left incomplete.
        """
        return PartWriter(self.parts, shard)

    def journal(self, shard: Shard) -> Journal:
        """Return the journal of a shard, as far as it can be used. Raises: StoreError."""
        journal = Journal(self.parts, shard)
        journal.recover()
        return journal

    def finish(self, counts: dict[str, Any] | None) -> None:
        """Write the counts of the run into the manifest; None for a run that is not over."""
        self.manifest = replace(self._read_again(), counts=counts)
        with translate_os_errors(self.path):
            write_manifest(self.path, self.manifest)
