"""Check what the columns that a user named gave over a whole run: ids that occur once, copied columns with values.

A listing shows the ids of lists and folders, and the columns of tables. What archives and tables hold, and how the
files beside images are filled, shows only when all is read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..errors import StoreError
from ..records import id_hash
from ..store.parts import EMBEDDINGS, Parts
from ..store.plan import find_repeated_hashes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ..jobs.options import Columns


def check_ids(parts: Parts, count: int) -> None:
    """Compare the ids of all rows; memory holds eight bytes for each.

    Raises:  StoreError for an id that occurs twice.
    """
    hashes = [np.array([id_hash(own_id) for own_id in ids], np.uint64) for _, ids in _read_ids(parts, count)]
    suspicious = find_repeated_hashes(hashes)
    seen: dict[str, Path] = {}
    for path, ids in _read_ids(parts, count) if suspicious else ():
        for own_id in ids:
            if id_hash(own_id) in suspicious and own_id in seen:
                found = f"two images have the id {own_id!r}, in {seen[own_id].name} and {path.name}"
                remedy = (
                    'Pass `duplicate_ids="keep"`, for which nothing is embedded again; or run it anew with another '
                    "column as `columns.id`."
                )
                raise StoreError(parts.output, found, "one image for each id", remedy)
            seen |= {own_id: path} if id_hash(own_id) in suspicious else {}


def _read_ids(parts: Parts, count: int) -> Iterator[tuple[Path, list[str]]]:
    for index in range(count):
        path = parts.path(EMBEDDINGS, index)
        yield path, parts.read(path, ["id"])["id"].to_pylist()


def find_empty(parts: Parts, count: int, columns: Columns) -> list[str]:
    """Return the copied columns without a value in any row; none where there are no rows.

    Raises:  StoreError for a part that cannot be read.
    """
    names = parts.schema.names[len(parts.schema) - len(columns.keep) :]  # as the output names them
    empty, rows = dict(zip(names, columns.keep, strict=True)), 0
    for index in range(count):
        if not empty:  # as soon as each has a value, mostly in the first part
            break
        table = parts.read(parts.path(EMBEDDINGS, index), list(empty))
        rows += table.num_rows
        empty = {written: name for written, name in empty.items() if table[written].null_count == table.num_rows}
    return list(empty.values()) if rows else []
