"""Files that are whole or absent: written to a temporary name, synced, renamed. Knows nothing about what is in them."""

from __future__ import annotations

import os
import secrets
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

from .errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

TEMPORARY = ".tmp"  # how names of files in work end; they begin with a dot


@contextmanager
def atomic_write(path: Path) -> Generator[BinaryIO]:
    """A file that takes `path`'s place once it is whole and on the disk; after an error nothing is left of it."""
    # A name of its own for each: two threads, or containers that count processes from 1, may write the same file.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}{TEMPORARY}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Have a folder's names on the disk."""
    if os.name == "nt":
        return  # Windows has no handle of a folder that could be synced
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_temporaries(folder: Path, name: str) -> None:
    """Remove what processes that were killed left of files in work whose names begin so."""
    for left in folder.glob(f".{name}*{TEMPORARY}"):
        left.unlink(missing_ok=True)


@contextmanager
def translate_os_errors(path: Path) -> Generator[None]:
    """The border where the disk's errors become ours.

    Raises:  StoreError naming the path.
    """
    try:
        yield
    except OSError as exc:
        raise StoreError(
            path,
            f"cannot be written ({exc.strerror or exc})",
            "a folder with space and permission",
            "Make room, or choose another output.",
        ) from exc
