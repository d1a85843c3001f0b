"""OUT/_index/rows.index: the rows of an output as they were at one moment, mapped; the indexes are made of it.

One checksummed file, derived from the parts and deletable, with the sections

    vectors   the vectors as they are stored (N, D)
    rows      the other columns, an Arrow stream

Its header has a kind ("rows"), a version, rows, dim and dtype; the stamp of the parts; the parts; and where in the
stream the rows of each begin, so that some rows are read without the others. The indexes beside it hold what they scan
and the same stamp, and take vectors, ids and columns from here. A process that has it open keeps what it opened,
whatever a job does to the parts.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from functools import cached_property, lru_cache
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import pyarrow as pa
from filelock import FileLock

from ..atomic_files import atomic_write, make_folder, open_regular, remove_temporaries, translate_os_errors
from ..errors import StoreBusyError, StoreError
from ..object_paths import ObjectPath
from ..parallel import map_ahead
from ..vectors import usable_norms
from .checksummed_file import ChecksummedFile, SectionWriter
from .lock import check_guard
from .manifest import INDEX
from .parts import EMBEDDING, EMBEDDINGS, Parts, hash_files, make_stamp, stack_vectors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Version = tuple[str, int, int, int]  # of a part: its name, size, time of change [Unit: ns] and rows

ROWS_FILE, LOCK = "rows.index", ".rows.guard"
KIND, VERSION = "rows", 1
ROWS_BLOCK = 2**20  # of the columns [Unit: byte]
VECTOR_BLOCK_ROWS = 64  # checked when they are used: one block per candidate, at most
CHECKED_ROWS = 8_192  # vectors whose norms are computed at once, in float64
HASH_DIGITS = 16  # of an address
TRIES = 3  # to read parts that a job changes meanwhile
OF_BEFORE = ("vectors.npy", "vectors.json")  # which held a copy of the vectors until rows.index did
END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"  # of Arrow's format
KEPT_PARTS = 16  # whose columns stay in memory

_log = logging.getLogger("clip")


class RowsFile:
    """The rows of an output, mapped. It may be used from several threads."""

    def __init__(self, file: ChecksummedFile, schema: pa.Schema) -> None:
        """Read the header; `schema` is that of the output. Raises: StoreError if it does not fit the sections."""
        self._file = file
        self.dim, self.dtype = _read_type(schema)
        self.identity = file.identity
        try:
            self.stamp: dict[str, Any] = file.header["stamp"]
            self.parts: list[Version] = [(n, size, at, rows) for n, size, at, rows in file.header["parts"]]
            self._extents = [(int(start), int(stop)) for start, stop in file.header["extents"]]
            counts = [rows for *_, rows in self.parts]
            if not all(type(number) is int and number >= 0 for number in counts):
                raise ValueError(f"it counts {counts}")
            self._starts = np.cumsum([0, *counts])
            fits = make_stamp(self.parts) == self.stamp and len(self._extents) == len(self.parts)
        except (KeyError, TypeError, ValueError) as exc:
            raise file.report_damage(f"its header is of another kind ({exc!r})") from exc
        self._row_bytes = self.dim * self.dtype.itemsize
        block = file.block_bytes("vectors") if fits else 0
        if block != VECTOR_BLOCK_ROWS * self._row_bytes or len(file.view("vectors")) != len(self) * self._row_bytes:
            raise file.report_damage("its sections do not fit each other")
        self._read_part = lru_cache(KEPT_PARTS)(self._parse_part)

    def __len__(self) -> int:
        """Return the number of rows."""
        return int(self._starts[-1])

    @property
    def vectors(self) -> np.ndarray:
        """All vectors as they are stored, mapped and not checked. Shapes: (N, D)."""
        return np.frombuffer(self._file.view("vectors"), self.dtype).reshape(-1, self.dim)

    def read_vectors(self, places: np.ndarray) -> np.ndarray:
        """Return vectors as they are stored; a block of them is checked when it is first used.

        Shapes:  int64 (M,) -> (M, D).
        Raises:  StoreError if they are damaged.
        """
        self._file.check_blocks("vectors", places // VECTOR_BLOCK_ROWS)
        return self.vectors[places]

    def read_block(self, block: int) -> np.ndarray:
        """Return a block of VECTOR_BLOCK_ROWS vectors, checked each time. Raises: StoreError if it is damaged."""
        return np.frombuffer(self._file.read_block("vectors", block), self.dtype).reshape(-1, self.dim)

    def read_span(self, start: int, stop: int) -> np.ndarray:
        """Return a copy of successive vectors, checked, and let the system take their memory. Raises: as `read_block`.

        Shapes:  -> (stop - start, D).
        """
        blocks = range(start // VECTOR_BLOCK_ROWS, -(-stop // VECTOR_BLOCK_ROWS))
        for block in blocks:
            self._file.read_block("vectors", block)
        span = self.vectors[start:stop].copy()
        self._file.release("vectors", blocks)
        return span

    def release(self, places: np.ndarray) -> None:
        """Let the system take the memory of these vectors. Shapes: int64 (M,)."""
        self._file.release("vectors", np.unique(places // VECTOR_BLOCK_ROWS).tolist())

    def check_vectors(self) -> None:
        """Check all vectors, in threads. Raises: StoreError if they are damaged."""
        self._file.check("vectors")

    @cached_property
    def table(self) -> pa.Table:
        """All columns but the vectors, mapped, in the order of the parts. Raises: StoreError if they are damaged."""
        self._file.check("rows")
        return self._parse(self._file.view("rows"), len(self))

    def take(self, places: list[int], columns: list[str]) -> pa.Table:
        """Return some columns of some rows, in their order, without reading the others. Raises: as `table`."""
        if "table" in self.__dict__:
            return self.table.select(columns).take(pa.array(places, pa.int64()))
        found = np.searchsorted(self._starts, places, side="right") - 1
        pieces = [
            self._read_part(part).select(columns).slice(place - int(self._starts[part]), 1)
            for part, place in zip(found.tolist(), places, strict=True)
        ]
        return pa.concat_tables(pieces) if pieces else self.table.select(columns).slice(0, 0)

    def check(self) -> None:
        """Check all of the file. Raises: StoreError if it is damaged."""
        self._file.check_all()
        _ = self.table

    def _parse_part(self, part: int) -> pa.Table:
        """Return the columns of a part, checked, in memory."""
        start, stop = self._extents[part]
        head = self._file.read("rows", 0, self._extents[0][0])  # the schema
        return self._parse(memoryview(bytes(head) + bytes(self._file.read("rows", start, stop))), self.parts[part][3])

    def _parse(self, data: memoryview, rows: int) -> pa.Table:
        try:
            table = pa.ipc.open_stream(pa.py_buffer(data)).read_all()
            table.validate(full=True)
            texts = [table.schema.field(name).type for name in ("id", "path")]
        except (ValueError, LookupError, pa.ArrowException, OSError, MemoryError) as exc:
            raise self._file.report_damage(f"it holds no rows ({exc})") from exc
        nulls = sum(table.column(name).null_count for name in ("id", "path"))
        if texts != [pa.string()] * 2 or nulls or rows != table.num_rows:
            raise self._file.report_damage("its sections do not fit each other")
        return table


def locate_index_folder(output: Path) -> Path:
    """Return the folder of derived files: in the output; of one on an object store in a cache on this machine."""
    if not isinstance(output, ObjectPath):
        return output / INDEX
    home = os.environ.get("XDG_CACHE_HOME", "")
    home = home if os.path.isabs(home) else os.path.join("~", ".cache")  # noqa: PTH117, PTH118
    name = hashlib.sha256(str(output).encode()).hexdigest()[:HASH_DIGITS]
    return Path(home).expanduser() / "clip-turbo" / "outputs" / f"{output.name}-{name}"


def make_index_folder(output: Path) -> Path:
    """Make the folder of derived files unless it is there. Raises: OSError, for a link too."""
    folder = locate_index_folder(output)
    if isinstance(output, ObjectPath):
        folder.parent.mkdir(parents=True, exist_ok=True)
    make_folder(folder)
    return folder


def find_rows(files: Parts) -> RowsFile | None:
    """Return the rows file of an output; None where there is none, or one of other parts.

    Raises:  StoreError if it is damaged.
    """
    file = open_derived(locate_index_folder(files.output) / ROWS_FILE)
    if file is None or (file.header.get("kind"), file.header.get("version")) != (KIND, VERSION):
        return None
    return RowsFile(file, files.schema) if _is_current(file.header.get("stamp"), files) else None


def make_rows(files: Parts, progress: Callable[[int, int], None] = lambda _done, _total: None) -> RowsFile:
    """Return the rows file of the parts as they are now; write it first where there is none.

    `progress` is called with how many rows are written, and of how many. Where OUT cannot be written, a temporary file
    is made.

    Raises:  StoreError if it, or a part, is damaged; StoreBusyError if a job keeps changing the parts.
    """
    folder = locate_index_folder(files.output)
    try:
        make_index_folder(files.output)
        with FileLock(check_guard(folder / LOCK)):
            rows = find_rows(files)  # another process may have made it while this one waited
            if rows is not None:
                return rows
            for name in OF_BEFORE:
                (folder / name).unlink(missing_ok=True)
            remove_temporaries(folder, ROWS_FILE)
            with atomic_write(folder / ROWS_FILE) as file:
                _write(file, files, progress)
        with open_regular(folder / ROWS_FILE) as file:
            return RowsFile(ChecksummedFile(file, str(folder / ROWS_FILE)), files.schema)
    except OSError as exc:
        _log.warning("%s: cannot be written (%s); the rows are copied to a temporary file", folder, exc)
    with open_temporary() as file:
        _write(file, files, progress)
        file.flush()
        return RowsFile(ChecksummedFile(file, str(folder / ROWS_FILE)), files.schema)


def open_temporary() -> Any:
    """Return a temporary file without a name. Raises: StoreError where there is no room for one."""
    with translate_os_errors(Path(tempfile.gettempdir())):
        return tempfile.TemporaryFile()


def open_derived(path: Path) -> ChecksummedFile | None:
    """Open a file in _index; return None where there is none. Raises: StoreError if it is damaged."""
    try:
        with open_regular(path) as opened:
            return ChecksummedFile(opened, str(path))
    except FileNotFoundError:
        if path.is_symlink():
            raise StoreError(path, "is a broken link", "it as it was written", "Remove it.") from None
        return None
    except OSError as exc:
        raise StoreError(path, f"cannot be read ({exc})", remedy="Check it, or run clip index to remake it.") from exc


def _read_type(schema: pa.Schema) -> tuple[int, np.dtype[Any]]:
    vector = schema.field(EMBEDDING).type
    return vector.list_size, np.dtype(vector.value_type.to_pandas_dtype())


def _is_current(stamp: Any, files: Parts) -> bool:
    """Whether a stamp is that of the parts as they are now."""
    try:
        if isinstance(files.output, ObjectPath):  # where each footer is a request
            return isinstance(stamp, dict) and stamp.get("parts") == hash_files(files.list_files())
        return stamp == make_stamp(files.list_versions())
    except FileNotFoundError:
        return False  # one is removed meanwhile


def _write(file: BinaryIO, files: Parts, progress: Callable[[int, int], None]) -> None:
    """Write all sections, from parts that did not change meanwhile."""
    for _ in range(TRIES):
        file.seek(0)
        file.truncate()
        before = _list_files(files)
        try:
            written = before is not None and _write_sections(file, files, files.list_versions(), progress)
            if written and _list_files(files) == before:
                return
        except StoreError:
            if _list_files(files) == before:
                raise  # else it is about a part that is gone
        except FileNotFoundError:
            continue  # a part was removed while they were listed
    found = "its parts change while they are read"
    raise StoreBusyError(files.output, found, remedy="Wait for the job that writes there, and try again.")


def _list_files(files: Parts) -> list[tuple[str, int, int]] | None:
    """Return the parts as they are now; None if one is removed meanwhile."""
    try:
        return files.list_files()
    except FileNotFoundError:
        return None


def _write_sections(
    file: BinaryIO, files: Parts, versions: list[Version], progress: Callable[[int, int], None]
) -> bool:
    """Write the sections and the header; return False if a part has another number of rows meanwhile."""
    stamp = make_stamp(versions)
    total = stamp["rows"]
    dim, dtype = _read_type(files.schema)
    writer = SectionWriter(file)
    vectors = writer.add_section("vectors", VECTOR_BLOCK_ROWS * dim * dtype.itemsize, total * dim * dtype.itemsize)
    rows = writer.add_section("rows", ROWS_BLOCK)
    paths = [files.output / EMBEDDINGS / name for name, *_ in versions]
    columns = files.read_schema(paths[0]) if paths else files.schema
    schema = pa.schema([field for field in columns if not pa.types.is_fixed_size_list(field.type)])  # no vectors
    rows.write(schema.serialize())
    extents: list[tuple[int, int]] = []
    done = accumulate(count for *_, count in versions)
    for (_, _, _, count), table in zip(versions, _read_tables(files, paths, schema), strict=True):
        if table.num_rows != count:
            return False
        if count:
            vectors.write(np.ascontiguousarray(stack_vectors(table, files.schema)))
        start = rows.size_bytes
        for batch in table.select(schema.names).to_batches():
            rows.write(batch.serialize())
        extents.append((start, rows.size_bytes))
        progress(next(done), total)
    rows.write(END_OF_STREAM)
    header = {"kind": KIND, "version": VERSION, "rows": total, "dim": dim, "dtype": dtype.name}
    writer.finish({**header, "stamp": stamp, "parts": versions, "extents": extents})
    return True


def _read_tables(files: Parts, paths: list[Path], schema: pa.Schema) -> Iterator[pa.Table]:
    """Yield the rows of each part, whose columns and vectors are checked; a thread reads one part ahead."""

    def read(path: Path) -> pa.Table:
        found = files.read_schema(path)
        found = pa.schema([field for field in found if not pa.types.is_fixed_size_list(field.type)])
        if not found.equals(schema):
            remedy = "Run the job again with `overwrite=True`."
            raise StoreError(
                path, f"has the columns {found.names}", f"{schema.names}, of the same types in all parts", remedy
            )
        table = files.read(path, [*schema.names, EMBEDDING])
        _check_norms(path, table, stack_vectors(table, files.schema))
        return table

    return map_ahead(read, paths, workers=1, ahead=2)


def _check_norms(path: Path, table: pa.Table, vectors: np.ndarray) -> None:
    for start in range(0, len(vectors), CHECKED_ROWS):
        norms = np.linalg.norm(vectors[start : start + CHECKED_ROWS].astype(np.float64), axis=1)
        for place in np.flatnonzero(~usable_norms(norms))[:1]:
            found = f"{table.column('id')[start + int(place)].as_py()!r} has a vector of norm {norms[place]}"
            raise StoreError(path, found, "one above 0", "Remove the part, and run the job again.")
