"""Show the docstrings of a record's fields in `help()`, and build nested records from flat options."""

from __future__ import annotations

import ast
import inspect
import textwrap
from functools import cache
from typing import Any, TypeVar, get_type_hints

Record = TypeVar("Record", bound=type)


def documented(record: Record) -> Record:
    """Have `help(record)` show the docstring of each field after the record's own.

    The source is read when the text is first asked for: an import costs nothing.
    """
    own = record.__doc__ or ""

    class Doc:
        def __get__(self, _instance: object, _owner: type) -> str:
            lines = [textwrap.indent(f"{name}\n    {doc}", "    ") for name, doc in field_docs(record).items()]
            return "\n".join([own, "", "Fields:", *lines]) if lines else own

    record.__doc__ = Doc()  # type: ignore[assignment]  # a class hands its __doc__ out through __get__
    return record


def field_docs(record: type) -> dict[str, str]:
    """Return the docstring of each field of a record, by its name; nothing where there is no source."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(record)))
    except (OSError, TypeError):
        return {}
    (definition,) = (node for node in tree.body if isinstance(node, ast.ClassDef))
    docs: dict[str, str] = {}
    for field, text in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            docs[ast.unparse(field.target)] = inspect.cleandoc(str(text.value.value))
    return docs


@cache
def field_types(record: type) -> dict[str, Any]:
    """Return the type of each field of a record, by its name; a path counts as a text."""
    return get_type_hints(record, localns={"Path": str, "Sequence": tuple})


def nest(job: type, options: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a job from flat ones: `limits__max_bytes` becomes `max_bytes` of its `limits`."""
    nested: dict[str, dict[str, Any]] = {}
    flat: dict[str, Any] = {}
    for name, value in options.items():
        record, _, leaf = name.partition("__")
        if leaf:
            nested.setdefault(record, {})[leaf] = value
        else:
            flat[name] = value
    return flat | {record: type(getattr(job, record))(**values) for record, values in nested.items()}
