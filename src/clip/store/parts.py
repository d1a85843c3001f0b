"""The two Parquet files of a shard, which together are its part: their columns, and `Parts`, which reads them.

embeddings/part-00000.parquet    images: id, path, embedding, width, height, format, size_bytes, sha256 if the job wants
                                 it, and warning; texts: id, path, embedding, text, and warning if texts may be cut;
                                 pairs: all of these and text_embedding; then the columns that the job copies from its
                                 input
failures/part-00000.parquet      id, path, stage, error, message

An output is shared, copied, and rewritten by other programs, so nothing of a part is believed: its checksums, the types
of its columns, its numbers of rows, and that no id and no vector is null, are checked whenever it is read. No decision
is made by the statistics in a footer.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..atomic_files import open_regular
from ..errors import ClipError, StoreError, quote
from .checksums import check_footer, check_whole

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Sequence
    from pathlib import Path

    from .manifest import Manifest

EMBEDDINGS, FAILURES = "embeddings", "failures"
PART = "part-{:05d}.parquet"
PART_NAME = re.compile(r"part-([0-9]{5}|[1-9][0-9]{5,8})\.parquet")
# Keys in the metadata of an embeddings part: the fingerprint of the shard's listing; files ignored, by reason; images
# read, where each frame counts; and those of them that are second or later frames of a file, where there are any.
FINGERPRINT_KEY, IGNORED, READ, FRAMES = b"clip.mark", b"clip.ignored", b"clip.read", b"clip.frames"
EMBEDDING, TEXT_EMBEDDING = "embedding", "text_embedding"  # columns of vectors
WARNING = "warning"  # what was wrong with a row's image beside its pixels, or its text; null in nearly all rows
FAILURE_SCHEMA = pa.schema([(name, pa.string()) for name in ("id", "path", "stage", "error", "message")])
NEVER_NULL = {"id", "path", EMBEDDING, TEXT_EMBEDDING, "stage", "error", "message"}
IN_MEMORY_BYTES = 2**26  # of a file that is read at once: 6 % faster than by column
# Of rows to the bytes of their file, and of vectors to their size in it: equal ones may be written once.
MAX_RATIO = 1000
# What pyarrow, and the parsing of a file's content, raise where it is not as it was written.
DAMAGE = (
    *(OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, MemoryError, RecursionError),
    pa.ArrowException,
)
REMEDY = "Remove it, and run the job again."

_log = logging.getLogger("clip")


def embedding_schema(manifest: Manifest) -> pa.Schema:
    """Return the columns of an embeddings file, as the manifest describes its vectors and input."""
    vector = pa.list_({"float32": pa.float32(), "float16": pa.float16()}[manifest.dtype], manifest.dim)
    fields = [("id", pa.string()), ("path", pa.string()), (EMBEDDING, vector)]
    if manifest.kind == "pairs":
        fields += [(TEXT_EMBEDDING, vector)]
    if manifest.kind != "texts":
        fields += [("width", pa.int32()), ("height", pa.int32()), ("format", pa.string()), ("size_bytes", pa.int64())]
    if manifest.hashes:
        fields += [("sha256", pa.string())]
    if manifest.text_warnings if manifest.kind == "texts" else manifest.warnings:
        fields += [(WARNING, pa.string())]
    if manifest.kind != "images":
        fields += [("text", pa.string())]
    keep = manifest.columns.keep
    kept = [(name, pa.type_for_alias(kind)) for name, kind in manifest.columns.written]
    if not manifest.warnings:  # then a copied column may have that name
        names = [name if name.lower() == WARNING else written for name, (written, _) in zip(keep, kept, strict=True)]
        kept = [(name, kind) for name, (_, kind) in zip(names, kept, strict=True)]
    return pa.schema(fields + kept)


def vector_columns(schema: pa.Schema) -> list[str]:
    """Return the names of the columns that hold vectors."""
    return [name for name in (EMBEDDING, TEXT_EMBEDDING) if name in schema.names]


def shard_number(path: Path) -> int:
    """Return the number in a part's name."""
    return int(path.stem.rpartition("-")[2])


@dataclass(frozen=True)
class PartSummary:
    """What the footer of a part's file says."""

    rows: int
    fingerprint: str  # empty where it has none
    read: int | None  # images; None in parts of version 0.1.0, and in failures
    frames: int
    ignored: dict[str, int]


@dataclass(frozen=True)
class Parts:
    """The parts of an output."""

    output: Path
    schema: pa.Schema  # of the embeddings
    run: str | None  # whose parts they are; empty where they need no checksum; None where none is compared

    def path(self, folder: str, index: int) -> Path:
        """Return the path of one of a shard's files."""
        return self.output / folder / PART.format(index)

    def seed(self, path: Path) -> str:
        """Return what goes into the checksums of a file."""
        return f"{self.run}/{path.parent.name}/{path.name}"

    def has(self, index: int) -> bool:
        """Whether both files of a shard are there."""
        return not self.find_missing(index)

    def find_missing(self, index: int) -> list[Path]:
        """Return the files of a shard that are not there. One of 0 bytes, as a power cut may leave, is not."""
        paths = [self.path(folder, index) for folder in (EMBEDDINGS, FAILURES)]
        return [path for path in paths if not (path.exists() and path.stat().st_size)]

    def find(self, folder: str = EMBEDDINGS) -> list[Path]:
        """List the files in the order of their shards."""
        return sorted((path for path in self._list(folder) if PART_NAME.fullmatch(path.name)), key=shard_number)

    def warn_of_copies(self) -> None:
        """Name the tables beside the parts whose names are none of ours, as those of copies; they are not read."""
        for folder in (EMBEDDINGS, FAILURES):
            names = [path.name for path in self._list(folder) if path.suffix == ".parquet"]
            others = sorted(name for name in names if not (PART_NAME.fullmatch(name) or name.startswith(".")))
            if others:
                more = f" and {len(others) - 1:,} more" if others[1:] else ""
                _log.warning("%s: %s%s: passed over, as none of ours", self.output / folder, quote(others[0]), more)

    def _list(self, folder: str) -> list[Path]:
        try:
            return list((self.output / folder).iterdir())
        except FileNotFoundError:
            return []
        except OSError as exc:
            raise StoreError(self.output / folder, f"cannot be listed ({exc.strerror})", "a folder", REMEDY) from exc

    def list_files(self) -> list[tuple[str, int, int]]:
        """Return the name, size and time of change [Unit: ns] of each embeddings file.

        Raises:  StoreError for a broken link; OSError for a file that is removed meanwhile.
        """
        files: list[tuple[str, int, int]] = []
        for path in self.find():
            if path.is_symlink() and not path.exists():
                raise StoreError(path, "is a broken link", "a part as clip embed wrote it", "Remove it.")
            status = path.stat()
            files.append((path.name, status.st_size, status.st_mtime_ns))
        return files

    def list_versions(self) -> list[tuple[str, int, int, int]]:
        """Return what `list_files` does, and the rows of each file.

        Raises:  as `list_files`; StoreError for a file that cannot be read.
        """
        return [(*file, self.summarise(self.output / EMBEDDINGS / file[0]).rows) for file in self.list_files()]

    def read(self, path: Path, columns: Sequence[str] | None = None) -> pa.Table:
        """Read all rows of a file, or some of its columns. Raises: StoreError where it is not as it was written."""
        names = columns if path.parent.name == EMBEDDINGS or columns else FAILURE_SCHEMA.names
        with self._open(path, wide=names is None or EMBEDDING in names) as file:
            self._check_columns(path, file, names)
            table = file.read(columns=None if names is None else list(names))
            self._check_values(path, table, file.metadata.num_rows)
        return table.replace_schema_metadata() if names is None else table.select(list(names)).replace_schema_metadata()

    def read_groups(self, path: Path) -> Iterator[pa.Table]:
        """Read the columns of the run, a group of rows at a time. Raises: as `read`."""
        names = self._expected(path).names
        with self._open(path) as file:
            self._check_columns(path, file, names)
            for number in range(file.num_row_groups):
                table = file.read_row_group(number, columns=names)
                self._check_values(path, table, file.metadata.row_group(number).num_rows)
                yield table.select(names).replace_schema_metadata()

    def read_or_empty(self, path: Path, columns: Sequence[str] | None = None) -> pa.Table:
        """Read a file as `read` does; where there is none, return an empty table with these columns."""
        if path.exists() or path.is_symlink():
            return self.read(path, columns)
        schema = self._expected(path)
        return schema.empty_table().select(list(schema.names if columns is None else columns))

    def read_schema(self, path: Path) -> pa.Schema:
        """Read the columns of a file, which may be more than those of the run. Raises: as `read`."""
        with self._open(path) as file:
            self._check_columns(path, file, None)
            return file.schema_arrow.remove_metadata()

    def summarise(self, path: Path) -> PartSummary:
        """Read what a file's footer says. Raises: as `read`."""
        with self._open(path) as file:
            self._check_columns(path, file, None)
            notes = file.metadata.metadata or {}
            ignored = json.loads(notes.get(IGNORED, b"{}"))
            read, frames = (int(notes[key]) if key in notes else None for key in (READ, FRAMES))
            counts = [*ignored.values(), read or 0, frames or 0]
            if not all(type(count) is int and count >= 0 for count in counts):
                raise ValueError(f"it counts {counts}")
            fingerprint = notes.get(FINGERPRINT_KEY, b"").decode()
            return PartSummary(file.metadata.num_rows, fingerprint, read, frames or 0, ignored)

    def check(self, path: Path) -> bool:
        """Compare all of a file with its checksum; where it carries none, decode it all, and return False.

        Raises:  as `read`.
        """
        with translate_damage(path), open_regular(path) as file:
            if check_whole(file, self.seed(path)):
                return True
        self.read(path)
        return False

    @contextmanager
    def _open(self, path: Path, *, wide: bool = False) -> Generator[pq.ParquetFile]:
        seed = None if self.run is None else self.seed(path)
        with open_parquet(path, seed, must_carry=bool(self.run), wide=wide) as file:
            yield file

    def _expected(self, path: Path) -> pa.Schema:
        return self.schema if path.parent.name == EMBEDDINGS else FAILURE_SCHEMA

    def _check_columns(self, path: Path, file: pq.ParquetFile, names: Sequence[str] | None) -> None:
        """Compare the columns with those of the run, and the number of rows with the size of the vectors."""
        expected, schema = self._expected(path), file.schema_arrow
        for name in expected.names if names is None else names:
            there = schema.field(name).type if schema.names.count(name) == 1 else None
            if there is None or (name in expected.names and there != expected.field(name).type):
                wanted = f"{name} as {expected.field(name).type}" if name in expected.names else name
                found = f"has other columns than the manifest says ({name} is {there or 'not one of them'})"
                raise StoreError(path, found, wanted, REMEDY)
        vector = self.schema.field(EMBEDDING).type
        if path.parent.name == EMBEDDINGS:
            metadata = file.metadata
            leaves = [metadata.schema.column(place).path for place in range(metadata.num_columns)]
            place = [leaf.partition(".")[0] for leaf in leaves].index(EMBEDDING)
            groups = (metadata.row_group(number).column(place) for number in range(metadata.num_row_groups))
            held = sum(group.total_uncompressed_size for group in groups)
            row_bytes = vector.list_size * vector.value_type.bit_width // 8
            if not 0 <= metadata.num_rows * row_bytes <= MAX_RATIO * held:
                raise ValueError(f"it counts {metadata.num_rows:,} rows, and holds {held:,} bytes of vectors")

    def _check_values(self, path: Path, table: pa.Table, rows: int) -> None:
        if table.num_rows != rows:
            raise ValueError(f"it counts {rows:,} rows, and holds {table.num_rows:,}")
        table.validate(full=True)  # texts are UTF-8
        for name in NEVER_NULL.intersection(table.column_names):
            column = table.column(name)
            inner = [chunk.flatten() for chunk in column.chunks] if pa.types.is_fixed_size_list(column.type) else []
            nulls = column.null_count + sum(chunk.null_count for chunk in inner)
            if nulls:
                raise StoreError(path, f"has {nulls:,} nulls as its {name}", "none", REMEDY)


def hash_files(files: Iterable[tuple[Any, ...]]) -> str:
    """Return a hash of the names, sizes and times of files, as `list_files` and `list_versions` return them."""
    identities = "".join(f"{name} {size} {modified_ns}\n" for name, size, modified_ns, *_ in files)
    return hashlib.sha256(identities.encode()).hexdigest()


def make_stamp(versions: Sequence[tuple[str, int, int, int]]) -> dict[str, Any]:
    """Return what says of which parts a derived file was made: a hash of their names, sizes and times, and the rows."""
    return {"parts": hash_files(versions), "rows": sum(rows for *_, rows in versions)}


@contextmanager
def open_parquet(
    path: Path,
    seed: str | None,
    *,
    must_carry: bool = False,
    wide: bool = False,
    expected: str = "a part as clip embed wrote it",
    remedy: str = REMEDY,
) -> Generator[pq.ParquetFile]:
    """Open a Parquet file of an output, its footer compared with its checksum; `wide` is for most of its bytes.

    Pages are compared when they are read. Without a seed only they are.

    Raises:  StoreError where it is not as it was written; where it carries no checksum, and must.
    """
    with translate_damage(path, expected, remedy), open_regular(path) as file:
        if seed is not None and check_footer(file, seed) is None and must_carry:
            raise ValueError("it carries no checksum, so another program wrote it")
        # pyarrow itself takes no path that is not UTF-8.
        size_bytes = file.seek(0, 2)
        file.seek(0)
        source = pa.BufferReader(file.read()) if wide and size_bytes <= IN_MEMORY_BYTES else file
        table = pq.ParquetFile(source, page_checksum_verification=True)
        rows = table.metadata.num_rows
        if not 0 <= rows <= MAX_RATIO * size_bytes:  # pyarrow makes room for as many as the footer says
            raise ValueError(f"it counts {rows:,} rows in {size_bytes:,} bytes")
        yield table


@contextmanager
def translate_damage(
    path: Path, expected: str = "a part as clip embed wrote it", remedy: str = REMEDY
) -> Generator[None]:
    """Raise a StoreError about a file of an output for whatever pyarrow and the parsing of its content raise."""
    try:
        yield
    except ClipError:
        raise
    except DAMAGE as exc:
        found = f"cannot be read ({next(iter(str(exc).splitlines()), type(exc).__name__)})"
        raise StoreError(path, found, expected, remedy) from exc


def stack_vectors(rows: pa.Table, schema: pa.Schema, column: str = EMBEDDING) -> np.ndarray:
    """Return the vectors in a column as one array; `Parts.read` has checked that none is null.

    Shapes:  float32 or float16 (N, D).
    """
    kind = schema.field(column).type
    chunks = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in rows.column(column).chunks]
    flat = np.concatenate([np.empty(0, kind.value_type.to_pandas_dtype()), *chunks])
    return flat.reshape(rows.num_rows, kind.list_size)
