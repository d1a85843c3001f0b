"""Find the columns of a list or a table that name its images, or are its texts."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ..errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..jobs.options import Columns

USUAL_COLUMNS = ("path", "image_path", "file_path", "filepath", "file", "filename", "file_name", "image", "url", "uri")
USUAL_TEXTS = ("text", "caption", "txt", "sentence", "prompt", "title", "description")


def check_names(path: str, names: list[str], columns: Columns) -> None:
    """Raise InputError for a column that the user named and that is not there exactly once."""
    for name in columns.named:
        if names.count(name) != 1:
            count = f"{names.count(name)} columns" if name in names else "no column"
            found = f"has {count} {name!r} among {', '.join(names)}"
            raise InputError(path, found, "one", "Name another column, or rename it.")


def list_usual_columns(names: Iterable[object], columns: Columns) -> list[str]:
    """Return those names that a column of images, or of texts, usually has."""
    usual = USUAL_TEXTS if columns.kind == "texts" else USUAL_COLUMNS
    return [name for name in names if isinstance(name, str) and name.lower() in usual]


def find_entry_column(path: str, names: list[str], columns: Columns) -> str:
    """Return the column that the user named, or the one with a usual name.

    Raises:  InputError where there is none, or several.
    """
    if columns.entry:
        return columns.entry
    candidates = list_usual_columns(names, columns)
    if len(candidates) != 1:
        wanted = "be the texts" if columns.kind == "texts" else "name images"
        count = f"{len(candidates)} columns that may {wanted}" if candidates else f"no column that seems to {wanted}"
        found = f"has {count} among {', '.join(map(str, names))}"
        raise InputError(path, found, "one", "Name it with `columns.entry`.")
    return candidates[0]


def is_id(value: Any) -> bool:
    """Whether a value of JSON can be an id: a text, or a whole number."""
    return isinstance(value, (str, int)) and not isinstance(value, bool) and value != ""


def to_text(value: Any, *, is_text: bool) -> str | None:
    """Return a value of JSON to copy: a text as it is, others as JSON; a caption that is no text is missing."""
    return value if value is None or isinstance(value, str) else None if is_text else json.dumps(value)
