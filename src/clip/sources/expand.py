"""Braces and patterns of input names. Knows nothing about files."""

from __future__ import annotations

import re

from ..errors import InputError

MAGIC = re.compile(r"[*?\[]")
BRACES = re.compile(r"\{([^{}]*)\}")
NUMBERS = re.compile(r"(\d+)\.\.(\d+)")
MAX_EXPANDED = 1_000_000  # inputs that braces may stand for


def expand_braces(name: str) -> list[str]:
    """The names that {000..127} and {a,b} stand for, as shells write them out.

    Raises:  InputError for more than a million.
    """
    found = BRACES.search(name)
    if found is None:
        return [name]
    inner = found.group(1)
    if numbers := NUMBERS.fullmatch(inner):
        first, last = numbers.groups()
        if abs(int(last) - int(first)) >= MAX_EXPANDED:
            raise InputError(
                name,
                f"stands for more than {MAX_EXPANDED:,} names",
                "fewer",
                "Shorten the range.",
            )
        step = 1 if int(first) <= int(last) else -1
        width = len(first) if first.startswith("0") or last.startswith("0") else 0
        choices = [f"{number:0{width}}" for number in range(int(first), int(last) + step, step)]
    elif "," in inner:
        choices = inner.split(",")
    else:
        return [name]  # {x} is a name
    expanded = [name[: found.start()] + choice + name[found.end() :] for choice in choices]
    return [one for part in expanded for one in expand_braces(part)]


def split_pattern(name: str) -> tuple[str, str]:
    """The folders of a pattern that are fixed, and the rest."""
    parts = name.split("/")
    fixed = next(index for index, part in enumerate(parts) if MAGIC.search(part))
    return "/".join(parts[:fixed]) or ("/" if name.startswith("/") else "."), "/".join(parts[fixed:])
