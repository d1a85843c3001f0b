"""Store: reads the output of a run, its rows, vectors and failures."""

from __future__ import annotations

import os
import shlex
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from ..errors import InputError, StoreError
from ..object_paths import open_place
from ..parallel import map_ahead
from ..records import as_utf8, join_root
from .manifest import MANIFEST, read_manifest
from .parts import EMBEDDINGS, FAILURE_SCHEMA, FAILURES, Parts, embedding_schema
from .rows_file import RowsFile, find_rows, locate_index_folder, make_index_folder, make_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


class Store:
    """The output of `clip embed`."""

    def __init__(self, path: str | Path, root: str | Path | None = None) -> None:
        """Open a folder and read its manifest. `root` is where the images are now, if they have moved since.

        Raises:  StoreError where it has none of ours, or a damaged one; InputError for a root that is no folder.
        """
        self.path = open_place(path)
        manifest = read_manifest(self.path / MANIFEST)
        if manifest is None:
            raise _make_missing_error(self.path)
        self.manifest = manifest
        self.dim = manifest.dim
        if root is not None and not Path(root).is_dir():
            raise InputError("`root`", f"{root} is no folder here", "the one with the images", "Check the path.")
        self.base = os.path.abspath(root) if root is not None else manifest.find_base(self.path)  # noqa: PTH100
        """Where the paths of rows start; empty in outputs of version 0.1.0, where they are as they were given."""
        self.schema = embedding_schema(manifest)
        self.files = Parts(self.path, self.schema, manifest.run)
        self.files.warn_of_copies()
        self._checked: object = None  # the file of rows whose vectors were compared

    @cached_property
    def index_folder(self) -> Path:
        """Where files are that are derived from the parts: in the output; of one on an object store in a cache here."""
        return locate_index_folder(self.path)

    def make_index_folder(self) -> Path:
        """Make the folder of derived files unless it is there. Raises: OSError, for a link too."""
        return make_index_folder(self.path)

    def locate(self, path: str) -> str:
        """Return where the path of a row leads."""
        return join_root(as_utf8(self.base), path)

    def locate_all(self, table: pa.Table) -> pa.Table:
        """Return a table whose paths are whole."""
        place = table.schema.get_field_index("path")
        if place < 0 or not self.base:
            return table
        paths = [self.locate(path) for path in table.column(place).to_pylist()]
        return table.set_column(place, table.schema.field(place), pa.array(paths, pa.string()))

    def parts(self, folder: str = EMBEDDINGS) -> list[Path]:
        """List the Parquet files of the embeddings, or of the failures, in the order of their shards."""
        return self.files.find(folder)

    def read_parts(self, columns: Sequence[str]) -> Iterator[tuple[Path, pa.Table]]:
        """Yield each part's path and these columns of it; a thread reads one part ahead. Raises: as `table`."""
        return map_ahead(lambda path: (path, self.files.read(path, columns)), self.parts(), workers=1, ahead=2)

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Read the rows in input order, with all columns or some of them; parts.py lists which there are.

        Paths are whole, not relative to `base` as in the parts.

        Raises:  StoreError for a part that is not as it was written, or is missing.
        """
        names = self.schema.names if columns is None else list(columns)
        schema = pa.schema([self.schema.field(name) for name in names])
        table = pa.concat_tables([schema.empty_table(), *(part for _, part in self.read_parts(names))])
        self.check_rows(table.num_rows)
        return self.locate_all(table)

    def failures(self) -> pa.Table:
        """Read the failures in input order: id, path, stage, error, message.

        Raises:  StoreError for a part that is not as it was written.
        """
        table = pa.concat_tables([FAILURE_SCHEMA.empty_table(), *self.read_failures()])
        self.check_rows(table.num_rows, FAILURES)
        return table

    def read_failures(self) -> Iterator[pa.Table]:
        """Yield the failures of each part, as `failures` has them. Raises: StoreError, as that."""
        return (self.locate_all(self.files.read(path)) for path in self.parts(FAILURES))

    def check_rows(self, rows: int, folder: str = EMBEDDINGS) -> None:
        """Raise StoreError where the run is over, and the parts have another number of rows than it counted."""
        counts = self.manifest.counts
        expected = counts and counts["written" if folder == EMBEDDINGS else "failed"]
        if counts is None or rows == expected or read_manifest(self.path / MANIFEST) != self.manifest:
            return  # also where a job began on the output since it was opened
        found = f"parts hold {rows:,} rows"
        remedy = f"Run clip verify {self.path} to find the damage."
        raise StoreError(self.path, found, f"{expected:,} as the manifest says", remedy)

    def check_complete(self) -> None:
        """Raise StoreError where the run is over, and parts lack rows or failures, by their footers."""
        for folder in (EMBEDDINGS, FAILURES):
            self.check_rows(sum(self.files.summarise(path).rows for path in self.parts(folder)), folder)

    def vectors(self) -> np.ndarray:
        """Return the vectors in the order of `table`, mapped from the file _index/rows.index.

        The first call writes that file, which search uses too, and so does a call after the parts have changed. Where
        it cannot be written, it is a temporary file. The first call of a Store compares all vectors with their
        checksums.

        Shapes:  float32 or float16 (N, D), read-only.
        Raises:  StoreError for a part, or a file of rows, that is not as it was written; StoreBusyError if a job keeps
                 changing the parts.
        """
        rows = self.find_rows()
        if rows is None:
            rows = self.make_rows()
        elif self._checked != rows.identity:
            rows.check_vectors()
        self._checked = rows.identity
        self.check_rows(len(rows))
        return rows.vectors

    def find_rows(self) -> RowsFile | None:
        """Return the file of rows; None where there is none of the present parts. Raises: StoreError if damaged."""
        return find_rows(self.files)

    def make_rows(self, progress: Callable[[int, int], None] = lambda _done, _total: None) -> RowsFile:
        """Return the file of rows of the parts as they are now; write it first where there is none.

        Raises:  as `vectors`.
        """
        return make_rows(self.files, progress)


def _make_missing_error(path: Path) -> StoreError:
    """Return the error for a path without vectors."""
    expected = "the output of clip embed"
    if not path.exists():
        return StoreError(path, "is not there", expected, "Check the path.")
    if not path.is_dir():
        return StoreError(path, "is a file", expected, "Check the path.")
    remedy = f"If it holds your images, run `clip embed {shlex.quote(str(path))} -o OUT` first, and pass OUT."
    return StoreError(path, "holds no vectors", expected, remedy)
