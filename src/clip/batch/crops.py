"""Memory for decoded images, which decoding processes write and the model reads where they lie.

A place of it holds a crop, or bytes of windows (images/windows.py), which are packed over the places of a chunk.
"""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from collections import deque

import numpy as np

from ..errors import ResourceError


class CropRing:
    """A ring of crops: ranges are taken at its head, and given back at its tail in the same order.

    Shared memory is a file without a name, so that processes have it by its descriptor and nothing of it is left
    behind, however they end.
    """

    def __init__(self, crops: int, resolution_px: int, *, shared: bool = True, window_bytes: int | None = None) -> None:
        """Make room for `crops` of (R, R, 3) bytes, or for as many of `window_bytes`.

        The system gives the memory when it is first written.

        Raises:  ResourceError where the system gives no shared memory of that size.
        """
        # The shape of a place; of one that holds windows it has one axis.
        self.place = (resolution_px, resolution_px, 3) if window_bytes is None else (window_bytes,)
        self.descriptor = _open_shared(crops * math.prod(self.place)) if shared else None  # to hand on to a process
        self.crops = (  # uint8 (crops, R, R, 3) or (crops, bytes)
            np.empty((crops, *self.place), np.uint8)
            if self.descriptor is None
            else map_crops(self.descriptor, self.place)
        )
        self._head = 0
        self._skipped = 0  # crops before the head that the next range is to give back too
        self._taken: deque[tuple[int, int]] = deque()  # crops of each range, and those skipped before it
        self._idle = 0  # crops that were skipped, and not given back
        self._free = crops

    @property
    def holds_windows(self) -> bool:
        """Whether images lie in it that are not resized yet."""
        return len(self.place) == 1

    def close(self) -> None:
        """Close the file, if there is one. The crops can be read on, until nobody refers to them."""
        if self.descriptor is not None:
            os.close(self.descriptor)

    def align(self, size: int, spare: int) -> None:
        """Go on at a multiple of `size`, which divides the ring: so many crops from there on are in one piece.

        Where more than `spare` crops would be idle at once, nothing is skipped.
        """
        skipped = -self._head % size
        if self._idle + skipped <= spare:
            self._skip(skipped)

    def take(self, count: int) -> int:
        """Take the next `count` crops in a row; return the first.

        Raises:  BufferError where they are not free: the ring is too small for what its user holds.
        """
        if self._head + count > len(self.crops):
            self._skip(len(self.crops) - self._head)
            self._head = 0
        if self._skipped + count > self._free:
            raise BufferError(f"{count} crops, found {self._free} free of {len(self.crops)}, expected enough")
        start = self._head
        self._head += count
        self._free -= self._skipped + count
        self._taken.append((count, self._skipped))
        self._skipped = 0
        return start

    def give_back(self) -> None:
        """Give back the oldest range that was taken."""
        count, skipped = self._taken.popleft()
        self._free += count + skipped
        self._idle -= skipped

    def _skip(self, count: int) -> None:
        self._head += count
        self._skipped += count
        self._idle += count


def map_crops(descriptor: int, place: tuple[int, ...]) -> np.ndarray:
    """Return the memory of a ring by its descriptor. Shapes: uint8 (crops, *place)."""
    size_bytes = os.fstat(descriptor).st_size
    memory = np.frombuffer(mmap.mmap(descriptor, size_bytes), np.uint8)
    place_bytes = math.prod(place)
    return memory[: size_bytes // place_bytes * place_bytes].reshape(-1, *place)


def _open_shared(size_bytes: int) -> int:
    descriptor = _open_unnamed_file()
    try:
        os.truncate(descriptor, max(1, size_bytes))
    except OSError as exc:  # as where the size of files is limited
        os.close(descriptor)
        remedy = 'Raise the limit on the size of files (ulimit -f), or pass `decoders="threads"`, without `isolate`.'
        raise ResourceError("memory that processes share", f"cannot be made ({exc})", remedy=remedy) from exc
    return descriptor


def _open_unnamed_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("clip-crops", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:  # macOS has no file in memory; this one is unlinked at once
        return os.dup(file.fileno())
