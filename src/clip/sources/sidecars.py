"""Captions and metadata beside images: the files of an image's name with another ending.

    a/0001.jpg     an image
    a/0001.txt     its text, the column `txt`
    a/0001.json    an object, whose fields are columns; the column `json` is all of it
    0001           its key, the column `key`

The name beside an image is its own up to its last dot or, as in WebDataset, up to the first. A file that is missing
leaves its columns without values; one that cannot be read, or that is no JSON object, makes the image a failure. So
does a column of ids without a value.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import InputError
from .columns import is_id, to_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..jobs.options import Columns

TEXT, METADATA, KEY = "txt", "json", "key"
ENDINGS = (f".{TEXT}", f".{METADATA}")
MAX_BYTES = 10_000_000  # of one file; captions have a hundred


class Beside(NamedTuple):
    """What is beside an image."""

    id: str | None  # None where no column of ids is asked for
    values: tuple[str | None, ...]  # of `Columns.taken`
    endings: set[str]  # which of `list_endings` are there


def is_sidecar(name: str) -> bool:
    """Whether a file holds the text or the metadata of an image of its name."""
    return name.lower().endswith(ENDINGS)


def get_key(name: str) -> str:
    """Return what the names of the files of one WebDataset sample have in common."""
    folder, slash, own = name.rpartition("/")
    return folder + slash + own.partition(".")[0]


def identify(columns: Columns) -> str:
    """Return what a container part's listing says of its columns; other ones would make other rows."""
    named = [[columns.id], columns.taken] if columns.id else columns.taken
    return json.dumps(named) if named else ""


def list_endings(columns: Columns) -> list[str]:
    """Return which of the files beside an image the columns are in."""
    names = [name for name in columns.beside if name != KEY]
    return [TEXT] * (TEXT in names) + [METADATA] * any(name != TEXT for name in names)


def read_beside(name: str, read: Callable[[str], bytes | None], columns: Columns) -> Beside:
    """Return the id and the values of an image's columns, and which of `list_endings` are beside it.

    `read` returns the bytes of a file, or None where there is none.

    Raises:  InputError for a file that is not what its name says, and for an image without an id; what `read` raises.
    """
    stem, key = name.rpartition(".")[0] if "." in name.rpartition("/")[2] else name, get_key(name)
    files: dict[str, bytes] = {}
    for ending in list_endings(columns):
        found = read(f"{stem}.{ending}")
        found = read(f"{key}.{ending}") if found is None and key != stem else found
        files |= {} if found is None else {ending: found}
    fields = (_parse(name, files[METADATA]) if METADATA in files else {}) | {KEY: key.rpartition("/")[2]}

    def get(column: str) -> Any:
        if column in (TEXT, METADATA):
            data = files.get(column)
            return None if data is None else data.decode("utf-8-sig", "surrogateescape").rstrip("\r\n")
        return fields.get(column)

    own_id = get(columns.id) if columns.id else None
    if columns.id and not is_id(own_id):
        found = f"has {json.dumps(own_id)} as its {columns.id!r}"
        raise InputError(name, found, "an id, a text or a whole number", "Leave it out, or name another column.")
    values = tuple(to_text(get(column), is_text=column == columns.text) for column, _ in columns.taken)
    return Beside(None if own_id is None else str(own_id), values, set(files))


def _parse(name: str, content: bytes) -> dict[str, Any]:
    item, remedy = f"{name}'s {METADATA}", "Repair it, or leave out the columns that are in it."
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError) as exc:
        found = f"the .{METADATA} beside it is not JSON ({exc})"
        raise InputError(item, found, "an object", remedy) from exc
    if not isinstance(fields, dict):
        raise InputError(item, f"the .{METADATA} beside it is {type(fields).__name__}", "an object", remedy)
    return fields
