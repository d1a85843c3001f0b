"""Give memory back to the system: what was freed, and what was read of a mapped file; and spare what is in use.

The first two are about memory that nobody needs any more, but that counts as this process's until the system is told.
It is told on Linux; elsewhere these functions do nothing. Knows nothing about weights.
"""

from __future__ import annotations

import ctypes
import gc
import mmap
import sys
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Sequence

_MAPS = Path("/proc/self/maps")  # one line a mapping: addresses, rights, offset, device, inode, path


@cache
def _libc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def return_freed_memory() -> None:
    """Return to the system what was freed: glibc keeps it, 190 MB after ViT-B/32's image tower was folded."""
    libc = _libc()
    if libc is not None and hasattr(libc, "malloc_trim"):  # musl has none
        libc.malloc_trim(0)


@contextmanager
def set_aside_objects() -> Generator[None]:
    """Keep the collector of garbage from the objects of now: millions of records that are made wake it often.

    Going through those of torch takes a quarter of the time that the thread of a run needs (LOG.md).
    """
    if gc.get_freeze_count():  # the caller did that
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class FilePages:
    """The parts of this process's memory that are views of certain files.

    Pages that were read stay in memory as long as the view does. Once released they are read again from the file, when
    they are needed, so releasing them changes no value. Other views of the same files are left alone: somebody may have
    written to them.
    """

    def __init__(self, views: Iterable[tuple[int, int]], files: Sequence[Path]) -> None:
        """Find the pages of views, given by address and size in bytes; those that are of none of the files are not."""
        self._spans: list[tuple[int, int]] = []
        mappings = list(_list_mappings(files)) if files and _libc() is not None else []
        page = mmap.PAGESIZE
        for address, size in sorted(views):
            start, end = address // page * page, -(-(address + size) // page) * page
            if not size or not any(first <= start and end <= last for first, last in mappings):
                continue
            if self._spans and start <= self._spans[-1][1]:
                start, end = self._spans[-1][0], max(end, self._spans.pop()[1])
            self._spans.append((start, end))

    def release(self) -> None:
        """Take the pages out of memory."""
        libc = _libc()
        if libc is not None:
            for start, end in self._spans:
                libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)


def _list_mappings(files: Sequence[Path]) -> Iterable[tuple[int, int]]:
    """Yield the address ranges of this process that are mapped from the files."""
    inodes = {str(file.stat().st_ino) for file in files}
    names = {str(file.resolve()) for file in files}
    for line in _MAPS.read_text().splitlines():
        addresses, _, _, _, inode, *path = line.split(maxsplit=5)
        if inode in inodes and path and path[0] in names:
            first, last = addresses.split("-")
            yield int(first, 16), int(last, 16)
