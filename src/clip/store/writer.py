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
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..atomic_files import atomic_write, remove_temporaries, translate_os_errors
from ..errors import StoreMismatchError
from .manifest import CALIBRATION, FINGERPRINT, INDEX, INPUT, MANIFEST, MAX_SHOWN, check_room, read_manifest
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


class StoreWriter:
    """Writes one run into a folder, or goes on with one that was interrupted there."""

    def __init__(self, path: Path, manifest: dict[str, Any], *, overwrite: bool = False) -> None:
        """Look at what stands in the folder; nothing is written before `begin`.

        The manifest must hold "dim" and "dtype". A run that stands there is gone on with if its manifest agrees in
        FINGERPRINT, unless `overwrite` removes it.

        Raises:  StoreMismatchError where the folder holds another run, or files of these names that no manifest
                 describes.
        """
        self.path = path
        self.manifest: dict[str, Any] = json.loads(json.dumps(manifest))  # as it will be read back: no tuples
        self.schema = embedding_schema(manifest)
        self._overwrite = overwrite
        check_room(path)
        self._standing: dict[str, Any] | None = None
        if (path / MANIFEST).exists() and not overwrite:
            self._standing = read_manifest(path / MANIFEST)
            by_name = () if manifest.get("weights_sha256") else ("weights_source",)
            for field in (*by_name, *FINGERPRINT):
                self._check_same(field)

    @property
    def is_new(self) -> bool:
        """Whether no run stands there, or none that is to stay."""
        return self._standing is None

    def is_of(self, input_fingerprint: str) -> bool:
        """Whether the run that stands there, if any does, is of this input."""
        return self._standing is None or self._standing.get(INPUT) == input_fingerprint

    def begin(self, input_fingerprint: str, *, update: bool = False) -> None:
        """Make the folder and write the manifest, or go on with the run that stands there.

        Raises:  StoreMismatchError where that run's input was another and is not to be updated; StoreError where it
                 cannot be written.
        """
        self.manifest = {**self.manifest, INPUT: input_fingerprint}
        if not self.is_of(input_fingerprint):
            if not update:
                self._check_same(INPUT)
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
                self._write_manifest()  # before the folders, which nobody would know for ours without it
            remove_temporaries(self.path, MANIFEST)
            for folder in (EMBEDDINGS, FAILURES):
                (self.path / folder).mkdir(exist_ok=True)
                remove_temporaries(self.path / folder, "part-")

    def _check_same(self, field: str) -> None:
        found, asked = ((manifest or {}).get(field) for manifest in (self._standing, self.manifest))
        if found != asked:
            shown = [json.dumps(value)[:MAX_SHOWN] for value in (found, asked)]
            cure = "Pass --update to bring it up to date," if field == INPUT else "Pass"
            raise StoreMismatchError(
                self.path,
                f"holds a run whose {field} is {shown[0]}",
                f"{shown[1]} to go on with it",
                f"{cure} `overwrite=True` to replace it, or choose another output.",
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
        if self.manifest.get("counts") is not None:
            self.finish({"counts": None})

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

    def finish(self, results: dict[str, Any]) -> None:
        """Add what only the end of a run can tell to the manifest."""
        self.manifest = {**self.manifest, **results}
        with translate_os_errors(self.path):
            self._write_manifest()

    def _write_manifest(self) -> None:
        with atomic_write(self.path / MANIFEST) as file:
            file.write(json.dumps(self.manifest, indent=2).encode() + b"\n")
