"""Which columns of a table hold images, name them or are texts, and the values of each type in their usual text form.

A type means what its values are, however Arrow keeps them: large and view types, dictionaries and runs are as their
values; of extension types UUIDs, JSON and booleans are known. Bytes are never taken for text.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import InputError
from ..records import TEXT

IMAGE_TYPES = "bytes, texts, a struct of bytes and path, or lists of these"
UUID, JSON, BOOLEAN = "arrow.uuid", "arrow.json", "arrow.bool8"
EXTENSION_KEY = b"ARROW:extension:name"  # of a field whose extension type is not loaded
LISTS = (
    *(pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list),
    *(pa.types.is_list_view, pa.types.is_large_list_view),
)
BYTES = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
TEXTS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
NUMBERS = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
WITH_TEXT_FORM = (*TEXTS, *NUMBERS, pa.types.is_decimal, pa.types.is_null, pa.types.is_date, pa.types.is_time)


def get_value_type(kind: pa.DataType) -> pa.DataType:
    """Return the type of the values of a column, however they are kept; an unknown extension type as it is."""
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return get_value_type(kind.value_type)
    if isinstance(kind, pa.BaseExtensionType):
        known = {UUID: pa.string(), JSON: pa.string(), BOOLEAN: pa.bool_()}
        return known.get(kind.extension_name, kind)
    return kind


def is_text(kind: pa.DataType) -> bool:
    """Whether values of a type are texts."""
    return any(test(get_value_type(kind)) for test in TEXTS)


def is_list_of_images(kind: pa.DataType) -> bool:
    """Whether each value of a type is a list that may hold or name images."""
    return any(test(kind) for test in LISTS) and (holds_images(kind) or is_text(kind.value_type))


def holds_images(kind: pa.DataType) -> bool:
    """Whether values of a type hold images: bytes, structs of bytes and a path, lists of these."""
    kind = get_value_type(kind)
    if any(test(kind) for test in LISTS):
        return not any(test(kind.value_type) for test in LISTS) and holds_images(kind.value_type)
    if pa.types.is_struct(kind):
        kinds = {field.name: get_value_type(field.type) for field in kind.fields}
        data, name = kinds.get("bytes"), kinds.get("path", pa.null())
        named = pa.types.is_null(name) or is_text(name)
        return data is not None and named and (pa.types.is_null(data) or any(test(data) for test in BYTES))
    return any(test(kind) for test in BYTES)


def check_text_form(path: str, field: pa.Field, expected: str, remedy: str) -> None:
    """Raise InputError for a column whose values have no usual text form."""
    kind = get_value_type(field.type)
    fits = any(test(kind) for test in WITH_TEXT_FORM) or pa.types.is_timestamp(kind)
    if not fits or (is_foreign(field) and not is_text(kind)):
        raise InputError(path, f"column {field.name!r} is of {describe(field)}", expected, remedy)


def is_foreign(field: pa.Field) -> bool:
    """Whether a column is of an extension type that only another library knows: its numbers mean something else."""
    kind = field.type
    if isinstance(kind, pa.BaseExtensionType):
        return get_value_type(kind) is kind
    return EXTENSION_KEY in (field.metadata or {})


def describe(field: pa.Field) -> str:
    """Return the name of a column's type."""
    name = (field.metadata or {}).get(EXTENSION_KEY)
    return str(field.type) if name is None else f"extension type {name.decode(errors='backslashreplace')}"


def get_output_type(path: str, field: pa.Field) -> str:
    """Return the type of a copied column: its own for numbers and booleans, else text.

    Raises:  InputError for a type that cannot be written as text.
    """
    check_text_form(path, field, "texts, numbers or times to keep", "Leave it out.")
    kind = get_value_type(field.type)
    return str(kind) if any(test(kind) for test in NUMBERS) else TEXT


def fits_type(own: str, wanted: str) -> bool:
    """Whether each value of one type is also a value of the other."""
    if own == wanted or wanted == TEXT:
        return True
    numbers = [pa.type_for_alias(word).to_pandas_dtype() for word in (own, wanted) if word != TEXT]
    return len(numbers) == 2 and np.can_cast(*numbers)


def _to_plain(column: pa.Array) -> pa.Array:
    """Return a column with its values kept plainly."""
    if isinstance(column, pa.DictionaryArray):
        return _to_plain(column.dictionary_decode())
    if pa.types.is_run_end_encoded(column.type):
        return _to_plain(pc.call_function("run_end_decode", [column]))
    if not isinstance(column, pa.ExtensionArray):
        return column
    if column.type.extension_name == UUID:
        return pa.array([None if value is None else str(value) for value in column.to_pylist()], pa.string())
    return column.storage.cast(pa.bool_()) if column.type.extension_name == BOOLEAN else column.storage


def to_texts(column: pa.Array, kind: str = TEXT) -> list[str | None]:
    """Return the values as texts, of a number as its `kind` is written; bytes that are not UTF-8 become surrogates."""
    plain = _to_plain(column)
    if not is_text(plain.type):
        # Unchecked for overflow: the layout compared the types; only integers beyond 2 ** 53 as floats are rounded.
        typed = plain if kind == TEXT else plain.cast(pa.type_for_alias(kind), safe=False)
        return typed.cast(pa.string()).to_pylist()
    encoded: list[bytes | None] = plain.cast(pa.binary()).to_pylist()
    return [None if value is None else value.decode("utf-8", "surrogateescape") for value in encoded]


Image = tuple[pa.Buffer | None, str | None]  # the bytes of an image where the table has them, or its path or URL


def to_images(column: pa.Array) -> list[list[Image] | None]:
    """Return the images of each row, one unless it holds a list; None for a row without a list."""
    column = _to_plain(column)
    if not any(test(column.type) for test in LISTS):
        return [[image] for image in _read_images(column)]
    lengths = _measure_lists(column)
    images = iter(_read_images(pc.call_function("list_flatten", [column])))
    return [None if length is None else [next(images) for _ in range(length)] for length in lengths]


def _read_images(column: pa.Array) -> list[Image]:
    column = _to_plain(column)
    if pa.types.is_struct(column.type):
        parts = dict(zip((field.name for field in column.type.fields), column.flatten(), strict=True))
        nothing = pa.nulls(len(column))
        names = to_texts(parts.get("path", nothing))
        return list(zip(_find_bytes(_to_plain(parts.get("bytes", nothing))), names, strict=True))
    if is_text(column.type):
        return [(None, name) for name in to_texts(column)]
    return [(data, None) for data in _find_bytes(column)]


def _find_bytes(column: pa.Array) -> list[pa.Buffer | None]:
    """Return where the values are, without a copy: each is copied at its turn, within a budget."""
    return [scalar.as_buffer() if scalar.is_valid else None for scalar in column]


def keeps_plainly(kind: pa.DataType) -> bool:
    """Whether a column of a type takes about as much memory as its values; dictionaries, runs and views take less."""
    if isinstance(kind, pa.BaseExtensionType):
        return keeps_plainly(kind.storage_type)
    shared = (pa.types.is_dictionary, pa.types.is_run_end_encoded, pa.types.is_binary_view, pa.types.is_string_view)
    if any(test(kind) for test in (*shared, pa.types.is_list_view, pa.types.is_large_list_view)):
        return False
    return all(keeps_plainly(kind.field(index).type) for index in range(kind.num_fields))


def count_images(column: pa.Array) -> int:
    """Return how many images a column names or holds: an empty list counts as one that is missing."""
    if not any(test(column.type) for test in LISTS):
        return len(column)
    return sum(max(1, length or 0) for length in _measure_lists(column))


def _measure_lists(column: pa.Array) -> list[int | None]:
    return pc.call_function("list_value_length", [column]).to_pylist()
