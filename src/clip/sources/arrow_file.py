"""Read Arrow files, in the format of streams or of files: their groups are record batches."""

from __future__ import annotations

from contextlib import contextmanager
from itertools import count, islice
from typing import TYPE_CHECKING, BinaryIO

import pyarrow as pa

from .arrow_types import count_images, keeps_plainly
from .files import stat_here
from .members import CHANGED
from .remote.client import is_remote
from .tables import BYTES_AT_A_TIME, GroupedTable

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

MAGIC = b"ARROW1"  # at the begin of the format of files


class ArrowTable(GroupedTable):
    """An Arrow file; datasets of Hugging Face are kept in such."""

    endings: tuple[str, ...] = (".arrow", ".feather")

    @contextmanager
    def open(self, file: BinaryIO, path: str) -> Generator[_ArrowFile]:
        """Open a file. Of one on this machine only what is needed is read. Raises: OSError, pyarrow.ArrowException."""
        if is_remote(path):
            with pa.PythonFile(file, "r") as source:
                yield _ArrowFile(source, lambda: None)
            return
        with pa.memory_map(path) as source:
            size = source.size()

            def check() -> None:
                if stat_here(path)[0] < size:  # reading a mapped file beyond its end would end the process
                    raise OSError(CHANGED)

            yield _ArrowFile(source, check)


class _ArrowFile:
    """An open Arrow file; `check` is called before each batch is read."""

    def __init__(self, source: pa.NativeFile, check: Callable[[], None]) -> None:
        self._source = source
        self._check = check
        self._next = 0  # the batch that a stream gives next
        self._reader = self._open()
        self.schema: pa.Schema = self._reader.schema
        self.rows = tuple(batch.num_rows for batch in self._read_all())

    def _open(self) -> pa.ipc.RecordBatchStreamReader | pa.ipc.RecordBatchFileReader:
        self._source.seek(0)
        is_file = self._source.read(len(MAGIC)) == MAGIC
        self._source.seek(0)
        self._next = 0
        return pa.ipc.open_file(self._source) if is_file else pa.ipc.open_stream(self._source)

    def _get(self, group: int) -> pa.RecordBatch | None:
        """Read a batch; None after the last one. A stream is read from front to back, if need be again."""
        self._check()
        if isinstance(self._reader, pa.ipc.RecordBatchFileReader):
            return self._reader.get_batch(group) if group < self._reader.num_record_batches else None
        if group < self._next:
            self._reader = self._open()
        skipped, self._next = group - self._next, group + 1
        return next(islice(self._reader, skipped, None), None)

    def _read_all(self) -> Iterator[pa.RecordBatch]:
        for group in count():
            if (batch := self._get(group)) is None:
                return
            yield batch

    def count_images(self, column: str) -> tuple[int, ...]:
        """Return how many values a column of lists has in each batch."""
        counts: list[int] = []
        for batch in self._read_all():
            batch.column(column).validate()  # or an offset that leads out of the file would end the process
            counts.append(count_images(batch.column(column)))
        return tuple(counts)

    def read(self, group: int, columns: list[str], max_rows: int) -> Iterator[pa.RecordBatch]:
        """Read columns of a batch, in order. A batch that is compressed is held as a whole."""
        batch = self._get(group)
        if batch is None:
            raise OSError(CHANGED)
        batch = batch.select(columns)
        batch.validate(full=True)  # as above
        slices = (batch.slice(start, max_rows) for start in range(0, batch.num_rows, max_rows))
        return (part for whole in slices for part in _cut(whole))


def _cut(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Yield a batch in pieces whose values take BYTES_AT_A_TIME at most, or of one row."""
    copies = 1 if all(map(keeps_plainly, batch.schema.types)) else batch.num_rows
    if batch.num_rows <= 1 or batch.nbytes * copies <= BYTES_AT_A_TIME:
        yield batch
        return
    half = batch.num_rows // 2
    yield from _cut(batch.slice(0, half))
    yield from _cut(batch.slice(half))
