"""The `where` of a search: a condition in SQL on the columns of a table -> the rows for which it is true.

DuckDB evaluates it, shut off: it reads no file, opens no connection, loads no extension and sees no Python variable.
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
MAX_MESSAGE = 200  # characters of DuckDB's message


def filter_rows(table: pa.Table, condition: str) -> np.ndarray:
    """Return the places of the rows for which a condition, as in SQL's WHERE, is true, in ascending order.

    Shapes:  N rows -> int64 (M,).
    Raises:  InputError for a condition that DuckDB does not understand, or that reads more than the columns;
             MissingExtraError where DuckDB is not installed.
    """
    try:
        import duckdb  # here, because it comes with the extra `search`
    except ImportError as exc:
        found = "needs duckdb, which is not installed"
        raise MissingExtraError("`where`", found, remedy="Run: pip install 'clip-turbo[search]'") from exc
    number = "_" * (1 + max(map(len, table.column_names)))  # a name that no column has
    numbered = table.append_column(number, [np.arange(table.num_rows)])
    with duckdb.connect(":memory:", config=SHUT_OFF) as database:
        try:
            rows = database.from_arrow(numbered).filter(condition).project(f'"{number}"').fetchnumpy()[number]
        except (duckdb.Error, UnicodeEncodeError) as exc:  # the latter for a lone surrogate
            message = str(exc).splitlines()[0][:MAX_MESSAGE].rstrip(".!")
            expected = f"a condition on the columns {', '.join(table.column_names)}"
            raise InputError("`where`", f"{condition!r} fails: {message}", expected, "Write it as in SQL.") from exc
    return np.sort(np.asarray(rows, np.int64))
