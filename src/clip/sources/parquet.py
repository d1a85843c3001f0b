"""Read Parquet files: their groups are row groups."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

import pyarrow.parquet as pq

from .tables import BYTES_AT_A_TIME, DAMAGE, ROWS_AT_A_TIME, GroupedTable

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    import pyarrow as pa

COLUMN_BUFFER_BYTES = 1_000_000  # read of a column at a time; without it the whole row group is in memory


class ParquetTable(GroupedTable):
    """A Parquet file."""

    endings: tuple[str, ...] = (".parquet", ".pq")

    @contextmanager
    def open(self, file: BinaryIO, path: str) -> Generator[_ParquetFile]:  # noqa: ARG002
        """Open a file. Raises: OSError, pyarrow.ArrowException."""
        with pq.ParquetFile(
            file, buffer_size=COLUMN_BUFFER_BYTES, pre_buffer=False, page_checksum_verification=True
        ) as table:
            yield _ParquetFile(table)


class _ParquetFile:
    """An open Parquet file."""

    def __init__(self, table: pq.ParquetFile) -> None:
        self._table = table
        self._groups = [table.metadata.row_group(index) for index in range(table.metadata.num_row_groups)]
        self.schema: pa.Schema = table.schema_arrow
        self.rows = tuple(group.num_rows for group in self._groups)
        if min(self.rows, default=0) < 0:
            raise OSError("its footer says that it has fewer rows than none")

    def count_images(self, column: str) -> tuple[int, ...]:
        """Return how many values a column of lists has in each group, by the footer; of a bad group its rows."""
        leaves = [self._table.schema.column(index).path for index in range(len(self._table.schema))]
        leaf = next(index for index, path in enumerate(leaves) if path.startswith(f"{column}."))
        return tuple(self._count_values(index, column, leaf) for index in range(len(self._groups)))

    def _count_values(self, group: int, column: str, leaf: int) -> int:
        try:
            # pyarrow ends the process where a footer lacks what it says of a column, unless reading finds that first.
            next(self._table.iter_batches(1, row_groups=[group], columns=[column]), None)
        except DAMAGE:
            return self.rows[group]
        return max(self.rows[group], self._groups[group].column(leaf).num_values)

    def read(self, group: int, columns: list[str], max_rows: int) -> Iterator[pa.RecordBatch]:
        """Read columns of a row group, in order.

        A page, which its writer makes as large as it likes, and a row are held as a whole, whatever their size.
        """
        return self._table.iter_batches(self._choose_rows(group, max_rows), row_groups=[group], columns=columns)

    def _choose_rows(self, group: int, max_rows: int) -> int:
        """Return how many rows to read together.

        The footer has the size of a group, not of its largest value: of images each is taken for as large as the group,
        as a dictionary may even repeat its largest value; of the many names each for one of their mean size. The sizes
        of columns are not asked for: pyarrow ends the process where a damaged footer lacks them.
        """
        size = max(1, self._groups[group].total_byte_size)
        largest = size if max_rows <= ROWS_AT_A_TIME else -(-size // max(1, self.rows[group]))
        return max(1, min(max_rows, BYTES_AT_A_TIME // largest))
