"""Write files whole or not at all: to a temporary name, synced, then renamed; open them without waiting.

On an object store (object_paths.py) a file is written to a temporary file here, and appears there by one request.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from .errors import StoreError
from .object_paths import ObjectPath

if TYPE_CHECKING:
    from collections.abc import Generator

TEMPORARY = ".tmp"  # suffix of a file that is being written; its name begins with a dot


@contextmanager
def atomic_write(path: Path) -> Generator[BinaryIO]:
    """Open a file that replaces `path` once it is whole and on the disk. After an error nothing of it remains."""
    if isinstance(path, ObjectPath):
        with path.write_whole() as file:
            yield file
        return
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


def open_regular(path: Path | str) -> BinaryIO:
    """Open a file to read it. A pipe or a device is not even opened, as that may wait for ever. Raises: OSError."""
    if isinstance(path, ObjectPath):
        return path.open_object()
    _refuse_special(path, os.stat(path))  # noqa: PTH116  a str has no method
    # O_NONBLOCK, as it may have become a pipe since.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    file = open(descriptor, "rb")  # noqa: PTH123, SIM115  the caller's
    try:
        _refuse_special(path, os.fstat(descriptor))
    except OSError:
        file.close()
        raise
    return file


def _refuse_special(path: Path | str, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))


def read_regular(path: Path, max_bytes: int) -> bytes:
    """Read a whole file, as `open_regular` opens it. Raises: OSError, for a larger file too."""
    if isinstance(path, ObjectPath):
        return path.read_object(max_bytes)[0]
    with open_regular(path) as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise OSError(errno.EFBIG, f"more than {max_bytes:,} bytes", str(path))
    return data


def make_folder(path: Path) -> None:
    """Make a folder unless it is there. Raises: OSError, for a link too, as nothing is written through one."""
    path.mkdir(exist_ok=True)
    if path.is_symlink():
        raise NotADirectoryError(errno.ENOTDIR, "a link, through which nothing is written", str(path))


def remove_folder(path: Path, *, ignore_errors: bool = False) -> None:
    """Remove a folder and all that is in it. Raises: OSError, unless errors are ignored."""
    if isinstance(path, ObjectPath):
        path.remove_tree()
    else:
        shutil.rmtree(path, ignore_errors=ignore_errors)


def move_folder(path: Path, target: Path, seal: str) -> None:
    """Give a folder another name, on the disk. One that is cut short, on an object store, lacks the file `seal`."""
    if isinstance(path, ObjectPath) and isinstance(target, ObjectPath):
        path.move(target, seal)
    else:
        path.rename(target)
        sync_folder(target.parent)


def sync_folder(path: Path) -> None:
    """Flush a folder's list of names to the disk."""
    if os.name == "nt" or isinstance(path, ObjectPath):
        return  # Windows gives no handle of a folder that could be synced
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_temporaries(folder: Path, name: str) -> None:
    """Remove the temporary files that killed processes left of files whose names begin with `name`."""
    for temporary in () if isinstance(folder, ObjectPath) else folder.glob(f".{name}*{TEMPORARY}"):
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
