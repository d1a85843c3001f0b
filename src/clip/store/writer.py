"""The folder we write: Parquet parts, failures, manifest; each file whole or absent. Knows nothing about models.

    OUT/manifest.json                    what was run, on what, and how many rows came of it
    OUT/embeddings/, OUT/failures/       a part for each shard: parts.py

A file is written to a temporary name, synced, renamed, and its folder synced. Of a shard the failures go first and the
embeddings last: a shard is done when that part stands and carries the fingerprint of the shard's listing.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..atomic_files import remove_temporaries, translate_os_errors
from ..errors import StoreMismatchError
from .manifest import CALIBRATION, INDEX, MANIFEST, Manifest, read_manifest, write_manifest
from .parts import (
    EMBEDDING,
    EMBEDDINGS,
    FAILURES,
    IGNORED,
    PART,
    PartWriter,
    count_rows,
    embedding_schema,
    read_fingerprint,
    read_metadata,
    shard_number,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ..records import Failure, Row, Shard

MAX_SHOWN = 60  # characters of a value in an error


def check_room(path: Path) -> None:
    """Refuse a folder that holds what a run must not mix with, or must not remove.

    Raises:  StoreMismatchError; StoreError where it cannot be looked at.
    """
    with translate_os_errors(path):
        if path.exists() and not path.is_dir():
            raise StoreMismatchError(
                path,
                "is a file",
                "a folder or nothing",
                "Choose another output.",
            )
        standing = [name for name in (EMBEDDINGS, FAILURES, INDEX) if (path / name).exists()]
        described = (path / MANIFEST).exists()
    if described:
        if read_manifest(path / MANIFEST) is None:
            raise StoreMismatchError(
                path,
                f"holds a {MANIFEST} that is not ours",
                remedy="Choose another output, or move it.",
            )
    elif standing:
        raise StoreMismatchError(
            path,
            f"holds {standing[0]!r} and no {MANIFEST}",
            "an empty folder or one of ours",
            "Choose another output, or move it away.",
        )


class StoreWriter:
    """Writes one run into a folder, or goes on with one that was interrupted there."""

    def __init__(self, path: Path, manifest: Manifest, *, overwrite: bool = False) -> None:
        """Look at what the folder holds; nothing is written before `begin`.

        A run in it is resumed if its manifest agrees in FINGERPRINT, unless `overwrite` removes it.

        Raises:  StoreMismatchError where the folder holds another run, or files of these names that no manifest
                 describes.
        """
        self.path = path
        self.manifest = manifest
        self.schema = embedding_schema(manifest)
        self._overwrite = overwrite
        check_room(path)
        self._standing: Manifest | None = None
        if (path / MANIFEST).exists() and not overwrite:
            self._standing = read_manifest(path / MANIFEST)
            if self._standing and (difference := self._standing.first_difference(manifest)):
                raise self._mismatch(*difference)

    @property
    def is_new(self) -> bool:
        """Whether there is no earlier run that stays."""
        return self._standing is None

    def is_of(self, input_fingerprint: str) -> bool:
        """Return whether the earlier run, if there is one, has this input."""
        return self._standing is None or self._standing.input_fingerprint == input_fingerprint

    def begin(self, input_fingerprint: str, *, update: bool = False) -> None:
        """Make the folder and write the manifest, or resume the run that is there.

        Raises:  StoreMismatchError where that run has another input and is not to be updated; StoreError where it
                 cannot be written.
        """
        self.manifest = replace(self.manifest, input_fingerprint=input_fingerprint)
        if self._standing is not None and not self.is_of(input_fingerprint):
            if not update:
                key = "input_fingerprint"
                raise self._mismatch(key, self._standing.input_fingerprint, input_fingerprint)
            self._standing = None  # the manifest is written anew, the parts stay
        if self._standing is not None:
            self.manifest = self._standing
        with translate_os_errors(self.path):
            if self._overwrite:
                for folder in (EMBEDDINGS, FAILURES, INDEX):
                    if (self.path / folder).exists():
                        shutil.rmtree(self.path / folder)
                (self.path / CALIBRATION).unlink(missing_ok=True)
            self.path.mkdir(parents=True, exist_ok=True)
            if self._standing is None:
                write_manifest(self.path, self.manifest)  # before the folders: without it nobody knows them for ours
            remove_temporaries(self.path, MANIFEST)
            for folder in (EMBEDDINGS, FAILURES):
                (self.path / folder).mkdir(exist_ok=True)
                remove_temporaries(self.path / folder, "part-")

    def _mismatch(self, key: str, *values: Any) -> StoreMismatchError:
        there, wanted = (json.dumps(value)[:MAX_SHOWN] for value in values)
        of_input = key == "input_fingerprint"
        remedy = "Pass `update=True` to bring it up to date," if of_input else "Pass"
        return StoreMismatchError(
            self.path,
            f"holds a run whose {key} is {there}",
            f"{wanted} to resume it",
            f"{remedy} `overwrite=True` to replace it, or choose another output.",
        )

    def fingerprint(self, index: int) -> str | None:
        """The fingerprint of a shard's two parts; None where they do not both stand and agree.

        Raises:  StoreError for a part that cannot be read.
        """
        paths = [self.path / folder / PART.format(index) for folder in (EMBEDDINGS, FAILURES)]
        if not all(path.exists() for path in paths):
            return None
        fingerprints = set(map(read_fingerprint, paths))
        return fingerprints.pop() if len(fingerprints) == 1 else None

    def remove_beyond(self, shards: int) -> None:
        """Remove parts of shards that no plan has any more."""
        for folder in (EMBEDDINGS, FAILURES):
            with translate_os_errors(self.path / folder):
                for path in (self.path / folder).glob("part-*.parquet"):
                    if shard_number(path) >= shards:
                        path.unlink()

    def reopen(self) -> None:
        """Note that the run is not over."""
        if self.manifest.counts is not None:
            self.finish(None)

    def ignored(self, shards: Iterable[int]) -> Counter[str]:
        """What was passed over while these shards were read, by reason. Raises: StoreError as `counts`."""
        found: Counter[str] = Counter()
        for index in shards:
            found.update(json.loads(read_metadata(self.path / EMBEDDINGS / PART.format(index)).get(IGNORED, b"{}")))
        return found

    def counts(self, shards: Iterable[int]) -> tuple[int, int]:
        """How many rows and failures the parts of these shards hold.

        Raises:  StoreError for a part that cannot be read.
        """
        written_rows = failed = 0
        for index in shards:
            written_rows += count_rows(self.path / EMBEDDINGS / PART.format(index))
            failed += count_rows(self.path / FAILURES / PART.format(index))
        return written_rows, failed

    def commit(self, shard: Shard, rows: Sequence[Row], vectors: np.ndarray, failures: Sequence[Failure]) -> None:
        """Write a shard at once; see `part`."""
        with self.part(shard) as part:
            part.add(rows, {EMBEDDING: vectors}, failures)

    def part(self, shard: Shard) -> PartWriter:
        """Write a shard piece by piece, in a `with` block: its failures stand first at the end, then its embeddings.

        Raises:  StoreError where it cannot be written; then neither file stands half.
        """
        return PartWriter(self.path, self.schema, shard)

    def finish(self, counts: dict[str, Any] | None) -> None:
        """Write into the manifest what the run counted; None for a run that is not over."""
        self.manifest = replace(self.manifest, counts=counts)
        with translate_os_errors(self.path):
            write_manifest(self.path, self.manifest)
