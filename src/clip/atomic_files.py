"""Write files so that they are whole or absent: to a temporary name, synced, then renamed."""

from __future__ import annotations

import os
import secrets
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

from .errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

TEMPORARY = ".tmp"  # suffix of a file that is being written; its name begins with a dot


@contextmanager
def atomic_write(path: Path) -> Generator[BinaryIO]:
    """Open a file that replaces `path` once it is whole and on the disk. After an error nothing of it remains."""
    # The name is random: two threads, or containers that count processes from 1, may write the same file.
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
    """Flush a folder's list of names to the disk."""
    if os.name == "nt":
        return  # Windows gives no handle of a folder that could be synced
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_temporaries(folder: Path, name: str) -> None:
    """Remove the temporary files that killed processes left of files whose names begin with `name`."""
    for temporary in folder.glob(f".{name}*{TEMPORARY}"):
        temporary.unlink(missing_ok=True)


@contextmanager
def translate_os_errors(path: Path) -> Generator[None]:
    """Raise a StoreError that names the path for each OSError of the block."""
    try:
        yield
    except OSError as exc:
        found = f"cannot be written ({exc.strerror or exc})"
        remedy = "Make room, or choose another output."
        raise StoreError(path, found, "a folder with space and permission", remedy) from exc
