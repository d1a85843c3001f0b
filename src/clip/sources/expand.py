"""Write out the braces of input names, and split patterns from the folders they start in."""

from __future__ import annotations

import re

from ..errors import InputError

MAGIC = re.compile(r"[*?\[]")
BRACES = re.compile(r"\{([^{}]*)\}")
NUMBERS = re.compile(r"(\d+)\.\.(\d+)")
MAX_EXPANDED = 1_000_000  # names that one range may mean


def expand_braces(name: str) -> list[str]:
    """Return the names that {000..127} and {a,b} mean, in the order in which shells write them out.

    Raises:  InputError for a range of more than a million names.
    """
    braces = BRACES.search(name)
    if braces is None:
        return [name]
    inner = braces.group(1)
    if numbers := NUMBERS.fullmatch(inner):
        first, last = numbers.groups()
        if abs(int(last) - int(first)) >= MAX_EXPANDED:
            raise InputError(name, f"means more than {MAX_EXPANDED:,} names", "fewer", "Shorten the range.")
        step = 1 if int(first) <= int(last) else -1
        width = len(first) if first.startswith("0") or last.startswith("0") else 0
        choices = [f"{number:0{width}}" for number in range(int(first), int(last) + step, step)]
    elif "," in inner:
        choices = inner.split(",")
    else:
        return [name]  # {x} is a name
    expanded = [name[: braces.start()] + choice + name[braces.end() :] for choice in choices]
    return [name for part in expanded for name in expand_braces(part)]


def split_pattern(name: str) -> tuple[str, str]:
    """Return the folders before the first wildcard of a pattern, and the rest."""
    parts = name.split("/")
    fixed = next(index for index, part in enumerate(parts) if MAGIC.search(part))
    return "/".join(parts[:fixed]) or ("/" if name.startswith("/") else "."), "/".join(parts[fixed:])
