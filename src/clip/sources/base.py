"""Find the base of some inputs: the folder to which ids and paths are relative, so that both survive a move.

    one folder, or a pattern                the folder; the one before the first wildcard
    images, archives, tables of images      the folder that they are in
    lists, tables that name images          the folder at which relative paths start: `root`, or the current folder
    several of these                        the deepest folder that holds all of theirs

So a path has one id, however the inputs are named, and two folders of equal names inside cannot clash. What is not on
this machine has no part in it: ids and paths there are as they were.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def resolve(path: str) -> str:
    """Return the absolute path of a folder. Links stay, unless `..` follows: what is above a link is elsewhere."""
    return os.path.realpath(path) if ".." in Path(path).parts else os.path.abspath(path)  # noqa: PTH100


def resolve_file(path: str) -> str:
    """Return the absolute path of a file, which may be a link itself."""
    folder, name = os.path.split(path)
    return os.path.join(resolve(folder), name)  # noqa: PTH118


def find_common(folders: Iterable[str]) -> str:
    """Return the deepest folder that holds all of these, absolute ones; an empty text where there is none."""
    try:
        return os.path.commonpath(list(folders))
    except ValueError:  # there are none, or they are on several drives
        return ""


def make_relative(path: str, base: str) -> str:
    """Return an absolute path as it follows its base, with forward slashes; whole where it is not below it."""
    if not base or path == base:
        return "" if base else path
    start = base if base.endswith(os.sep) else base + os.sep
    return path.removeprefix(start).replace(os.sep, "/") if path.startswith(start) else path
