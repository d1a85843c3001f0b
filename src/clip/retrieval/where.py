"""A condition in SQL on the columns of a table -> the rows that fulfil it. Knows nothing about vectors.

DuckDB computes it, shut off: it reads no file, opens no connection, loads no extension and sees no variable of Python.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..errors import InputError, MissingExtraError

if TYPE_CHECKING:
    import pyarrow as pa

SHUT_OFF: dict[str, str | bool | int | float | list[str]] = {
    "enable_external_access": "false",
    "autoload_known_extensions": "false",
    "autoinstall_known_extensions": "false",
    "python_enable_replacements": "false",
    "lock_configuration": "true",
}
MAX_MESSAGE = 200  # characters of what DuckDB says


def matching(table: pa.Table, condition: str) -> np.ndarray:
    """The places of the rows for which a condition, as in SQL's WHERE, is true, in ascending order.

    Shapes:  N rows -> int64 (M,).
    Raises:  InputError for a condition that DuckDB does not understand, or that reads more than the columns;
             MissingExtraError without DuckDB.
    """
    try:
        import duckdb  # here, because it comes with the extra `search`
    except ImportError as exc:
        raise MissingExtraError(
            "`where`",
            "found no duckdb",
            "it to filter by columns",
            "Run: pip install 'clip-turbo[search]'",
        ) from exc
    place = "_" * (1 + max(map(len, table.column_names)))  # a name that no column has
    numbered = table.append_column(place, [np.arange(table.num_rows)])
    with duckdb.connect(":memory:", config=SHUT_OFF) as database:
        try:
            found = database.from_arrow(numbered).filter(condition).project(f'"{place}"').fetchnumpy()[place]
        except (duckdb.Error, UnicodeEncodeError) as exc:  # the latter for what is no text
            said = str(exc).splitlines()[0][:MAX_MESSAGE].rstrip(".!")
            raise InputError(
                f"where {condition!r}: found {said}, expected a condition on the columns "
                f"{', '.join(table.column_names)}. Write it as in SQL."
            ) from exc
    return np.sort(np.asarray(found, np.int64))
