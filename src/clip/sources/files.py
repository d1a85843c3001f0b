"""Open, read or ask for the status of one file, here or on a server."""

from __future__ import annotations

import os
import stat
from typing import BinaryIO

from ..atomic_files import open_regular
from ..errors import InputError
from .remote import client
from .remote.client import is_remote, make_size_error
from .remote.protocol import MAX_TIME_NS

CHUNK_BYTES = 1_000_000


def stat_here(path: str) -> tuple[int, int]:
    """Return size and time of change [Unit: ns] of a file on this machine; zeros where there is none."""
    try:
        status = os.stat(path)  # noqa: PTH116
    except (OSError, ValueError):  # ValueError for a NUL, or for half of a surrogate pair
        return 0, 0  # a broken link, or a file removed since: reading it raises the error
    return status.st_size, max(-MAX_TIME_NS, min(status.st_mtime_ns, MAX_TIME_NS))


def stat_file(path: str) -> tuple[int, int]:
    """Return size and time of change of a file here or on a server. Raises: InputError where the server has none."""
    if not is_remote(path):
        return stat_here(path)
    status = client.get_status(path)
    return status.size_bytes or 0, status.modified_ns


def open_file(path: str, as_listed: tuple[int, int] | None = None) -> BinaryIO:
    """Open a file here or on a server; it can be read at any place. Raises: OSError.

    A file on a server must have the size and time of change `as_listed`, if they are given.
    """
    return client.open_(path, as_listed) if is_remote(path) else open_regular(path)


def read_file(path: str, max_bytes: int) -> bytes:
    """Return the bytes of an image's file. Raises: OSError, and InputError for a file of more than `max_bytes`."""
    if is_remote(path):
        return client.read(path, max_bytes)
    # O_NONBLOCK, so that nothing waits: a file may have become a pipe since it was listed.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with open(descriptor, "rb") as file:  # noqa: PTH123
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise InputError(path, "is no longer a regular file", remedy="Leave it out.")
        size_bytes = status.st_size
        data = file.read(size_bytes + 1) if size_bytes <= max_bytes else b""
        while len(data) > size_bytes and size_bytes <= max_bytes:  # it grows: read to its end, or to the limit
            size_bytes = len(data)
            data += file.read(CHUNK_BYTES)
    if size_bytes > max_bytes:
        raise make_size_error(path, f"{size_bytes:,}", max_bytes)
    return data
