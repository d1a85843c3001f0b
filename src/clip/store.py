"""The folder we write: Parquet parts, failures, manifest; each file whole or absent. Knows nothing about models.

    OUT/manifest.json                    what was run, on what, and how many rows came of it
    OUT/embeddings/part-00000.parquet    id, path, embedding, width, height, format, size_bytes; sha256 where asked for
    OUT/failures/part-00000.parquet      id, path, stage, error, message

A file is written to a temporary name, synced, renamed, and its folder synced. Of a shard the failures go first and the
embeddings last: a shard is done when that part stands and carries the mark of the shard's listing.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clip.errors import StoreError, StoreMismatchError
from clip.items import utf8_path
from clip.whole_files import remove_temporaries, replacing, written

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from clip.items import Failure, Row, Shard

MANIFEST = "manifest.json"
EMBEDDINGS, FAILURES, INDEX = "embeddings", "failures", "_index"
# What vectors, ids and the borders of shards depend on: a run goes on only where all of these are the same.
FINGERPRINT = (
    "weights_sha256",
    "architecture",
    "preprocess",
    "preprocess_settings",
    "precision",
    "computed_in",
    "decode",
    "orientation",
    "guards",
    "normalised",
    "dtype",
    "dim",
    "hashes",
    "shard_size",
)
INPUT = "input_fingerprint"  # likewise, and known only when all is listed
MAX_SHOWN = 60  # characters of a value in an error
PART = "part-{:05d}.parquet"
MARK = b"clip.mark"  # in a part's own metadata
FAILURE_SCHEMA = pa.schema([(name, pa.string()) for name in ("id", "path", "stage", "error", "message")])


def embedding_schema(manifest: Mapping[str, Any]) -> pa.Schema:
    """Columns of an embeddings part, by the manifest's dim, dtype ("float32" or "float16") and hashes."""
    element = {"float32": pa.float32(), "float16": pa.float16()}[manifest["dtype"]]
    fields = [
        ("id", pa.string()),
        ("path", pa.string()),
        ("embedding", pa.list_(element, manifest["dim"])),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("format", pa.string()),
        ("size_bytes", pa.int64()),
    ]
    return pa.schema([*fields, ("sha256", pa.string())] if manifest.get("hashes") else fields)


def check_room(path: Path) -> None:
    """Refuse a folder that holds what a run must not mix with, or must not remove.

    Raises:  StoreMismatchError.
    """
    if path.exists() and not path.is_dir():
        raise StoreMismatchError(f"{path}: is a file, expected a folder or nothing. Choose another output.")
    standing = [name for name in (EMBEDDINGS, FAILURES, INDEX) if (path / name).exists()]
    if (path / MANIFEST).exists():
        if read_manifest(path / MANIFEST) is None:
            raise StoreMismatchError(f"{path}: holds a {MANIFEST} that is not ours. Choose another output, or move it.")
    elif standing:
        raise StoreMismatchError(
            f"{path}: holds {standing[0]!r} and no {MANIFEST}, expected an empty folder or one of ours. "
            "Choose another output, or move it away."
        )


def read_manifest(path: Path) -> dict[str, Any] | None:
    """A manifest of ours; None for anything else, as web applications have files of this name too."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and {"dim", "dtype"} <= content.keys() else None


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
        with written(self.path):
            if self._overwrite:
                for folder in (EMBEDDINGS, FAILURES, INDEX):
                    if (self.path / folder).exists():
                        shutil.rmtree(self.path / folder)
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
                f"{self.path}: holds a run whose {field} is {shown[0]}, expected {shown[1]} to go on with it. "
                f"{cure} --overwrite to replace it, or choose another output."
            )

    def mark(self, index: int) -> str | None:
        """The mark of a shard's embeddings part, which is written last; None where none stands.

        Raises:  StoreError for a part that cannot be read.
        """
        path = self.path / EMBEDDINGS / PART.format(index)
        return read_mark(path) if path.exists() else None

    def standing(self, index: int) -> tuple[pa.Table, pa.Table]:
        """The rows and the failures that a shard's parts hold; none where there are none.

        Raises:  StoreError for a part that cannot be read.
        """
        found: list[pa.Table] = []
        for folder, schema in ((EMBEDDINGS, self.schema), (FAILURES, FAILURE_SCHEMA)):
            path = self.path / folder / PART.format(index)
            found.append(read_part(path) if path.exists() else schema.empty_table())
        return found[0], found[1]

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
        """Write a shard: its failures, then its embeddings, row by row the `vectors`, float (N, D).

        What the shard keeps comes from the parts that stand; all is put into the order of the shard's entries.

        Raises:  StoreError where it cannot be written; then neither file stands half.
        """
        failed = [(f.id, utf8_path(f.path), f.stage, f.error, f.message) for f in failures]
        columns: list[Any] = [
            [row.id for row in rows],
            [utf8_path(row.path) for row in rows],
            _fixed_size_lists(vectors, self.schema.field("embedding").type),
            [row.width for row in rows],
            [row.height for row in rows],
            [row.format for row in rows],
            [row.size_bytes for row in rows],
        ]
        if "sha256" in self.schema.names:
            columns.append([row.sha256 for row in rows])
        made = (pa.table(columns, schema=self.schema), _table(failed, FAILURE_SCHEMA))
        if shard.kept:
            made = self._with_kept(shard, made)
        self._write_part(FAILURES, shard.index, made[1], shard.mark)
        self._write_part(EMBEDDINGS, shard.index, made[0], shard.mark)

    def _with_kept(self, shard: Shard, made: tuple[pa.Table, pa.Table]) -> tuple[pa.Table, pa.Table]:
        places = {entry.id: place for place, entry in enumerate(shard.entries)}
        merged: list[pa.Table] = []
        for old, new in zip(self.standing(shard.index), made, strict=True):
            kept = [name in shard.kept for name in old.column("id").to_pylist()]
            both = pa.concat_tables([old.filter(pa.array(kept, pa.bool_())), new])
            order = np.argsort([places[name] for name in both.column("id").to_pylist()], kind="stable")
            merged.append(both.take(order))
        found = sum(table.num_rows for table in merged)
        if found != len(shard.entries):
            raise StoreError(
                f"{self.path}: shard {shard.index} holds {found} of the {len(shard.entries)} entries it should, "
                "because a part changed under the job. Run it again."
            )
        return merged[0], merged[1]

    def finish(self, results: dict[str, Any]) -> None:
        """Add what only the end of a run can tell to the manifest."""
        self.manifest = {**self.manifest, **results}
        with written(self.path):
            self._write_manifest()

    def _write_manifest(self) -> None:
        with replacing(self.path / MANIFEST) as file:
            file.write(json.dumps(self.manifest, indent=2).encode() + b"\n")

    def _write_part(self, folder: str, index: int, table: pa.Table, mark: str) -> None:
        path = self.path / folder / PART.format(index)
        table = table.replace_schema_metadata({MARK: mark})
        with written(path), replacing(path) as file:
            strings: Any = [name for name in table.column_names if table.schema.field(name).type == pa.string()]
            # On 100,000 vectors of 512 float32 the file is 16 % smaller and read 2.5x faster than with the defaults.
            encoding = {"embedding.list.element": "BYTE_STREAM_SPLIT"} if folder == EMBEDDINGS else None
            pq.write_table(table, file, compression="zstd", use_dictionary=strings, column_encoding=encoding)


def _table(rows: list[tuple[str, ...]], schema: pa.Schema) -> pa.Table:
    columns = list(zip(*rows, strict=True)) or [()] * len(schema)
    return pa.table([list(column) for column in columns], schema=schema)


def _fixed_size_lists(vectors: np.ndarray, kind: pa.FixedSizeListType) -> pa.Array:
    flat = vectors.astype(kind.value_type.to_pandas_dtype(), copy=False).reshape(-1)  # (N, D) -> (N * D,)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat, kind.value_type), kind.list_size)


def shard_number(path: Path) -> int:
    """The number in a part's name."""
    return int(path.stem.rpartition("-")[2])


def read_part(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """A part's rows. Raises: StoreError where it is damaged."""
    try:
        return pq.read_table(path, columns=None if columns is None else list(columns))
    except (OSError, pa.ArrowException) as exc:
        raise _damaged(path, exc) from exc


def read_schema(path: Path) -> pa.Schema:
    """A part's columns, without its own metadata. Raises: StoreError where it is damaged."""
    try:
        return pq.read_schema(path).remove_metadata()
    except (OSError, pa.ArrowException) as exc:
        raise _damaged(path, exc) from exc


def read_mark(path: Path) -> str | None:
    """What tells which entries a part is of. Raises: StoreError where it is damaged."""
    try:
        return (pq.read_metadata(path).metadata or {}).get(MARK, b"").decode()
    except (OSError, pa.ArrowException) as exc:
        raise _damaged(path, exc) from exc


def count_rows(path: Path) -> int:
    """How many rows a part has, by its footer. Raises: StoreError where it is damaged."""
    try:
        return pq.read_metadata(path).num_rows
    except (OSError, pa.ArrowException) as exc:
        raise _damaged(path, exc) from exc


def _damaged(path: Path, exc: Exception) -> StoreError:
    return StoreError(
        f"{path}: cannot be read ({next(iter(str(exc).splitlines()), type(exc).__name__)}), expected a part as clip "
        f"embed wrote it. Remove {EMBEDDINGS}/{path.name}, and run the job again."
    )
