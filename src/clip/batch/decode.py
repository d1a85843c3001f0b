"""Turn entries of a source into pixels, in the calling thread. Needs no torch."""

from __future__ import annotations

import hashlib
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from ..images.decode import decode
from ..images.windows import Window, make_finished_window
from ..jobs.options import DecodeOptions, Limits
from ..network.records import PreprocessSettings
from ..records import Failure, Item, Member, Pixels, Row

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from ..budgets import Hold
    from ..sources.source import Source


NO_CROPS = np.empty((0, 0, 0, 3), np.uint8)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Entries that one worker takes together, and the crops that are theirs to write."""

    entries: list[Item | Member | Failure]
    crops: np.ndarray  # uint8 (N, R, R, 3), or (N, bytes) for windows; none for texts
    start: int = 0  # the first one's place in the ring
    holds: list[Hold] = field(default_factory=list["Hold"])  # of the entries' bytes, until they are decoded


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a chunk. The crops of the rows lie in the chunk's, in order; windows where the table says."""

    outcomes: list[Row | Failure]  # in the order of the entries
    counts: list[int]  # outcomes of each entry: one, or one for each frame
    overflow: np.ndarray | None = None  # uint8 (N, R, R, 3), those of all rows, where the chunk had too few
    tokens: np.ndarray | None = None  # int32 (N, L), those of the rows, where there are texts
    warned: int = 0  # rows with a warning
    stored_turned: int = 0  # rows of images that are stored turned, and were not turned
    windows: np.ndarray | None = None  # int64 (N, 13), the windows of the rows, counted from the chunk's first byte


@dataclass(frozen=True)
class Decoding:
    """Reads and decodes the entries of a job; holds what is the same for all of them."""

    source: Source
    settings: PreprocessSettings
    limits: Limits
    options: DecodeOptions
    hashes: bool = False  # also the sha256 of the encoded image

    def __call__(
        self,
        entry: Item | Member,
        reserve: Callable[[int], AbstractContextManager[None]] = nullcontext,
        room_bytes: int = 0,
    ) -> list[Pixels | Failure]:
        """Return the pixels of an entry, or the reason why there are none; of each frame where all are wanted.

        What takes no more than `room_bytes` is not resized, where the device of the model can do that.
        """
        item = entry.item if isinstance(entry, Member) else entry
        try:
            data = entry.data if isinstance(entry, Member) else self.source.read(item, self.limits.max_bytes)
        except Exception as exc:  # noqa: BLE001  no image ends a run, whatever it raises, MemoryError included
            return [Failure.of(item, "read", exc)]
        outcomes = decode(item, data, self.settings, reserve, self.limits, self.options, room_bytes)
        if not self.hashes:
            return outcomes
        sha256 = hashlib.sha256(data).hexdigest()
        return [
            replace(outcome, row=outcome.row._replace(sha256=sha256)) if isinstance(outcome, Pixels) else outcome
            for outcome in outcomes
        ]

    def decode_chunk(
        self, chunk: Chunk, reserve: Callable[[int], AbstractContextManager[None]] = nullcontext
    ) -> Answer:
        """Decode the entries of a chunk into its crops; failures among them stay what they are."""
        outcomes: list[Row | Failure] = []
        counts: list[int] = []
        warned = stored_turned = 0
        crop_bytes = self.settings.resolution_px**2 * 3
        memory = _PackedWindows(chunk.crops, crop_bytes) if chunk.crops.ndim == 2 else _Crops(chunk.crops)
        for left, entry in zip(range(len(chunk.entries) - 1, -1, -1), chunk.entries, strict=True):
            of_entry = [entry] if isinstance(entry, Failure) else self(entry, reserve, memory.find_room(left))
            counts.append(len(of_entry))
            for outcome in of_entry:
                if isinstance(outcome, Failure):
                    outcomes.append(outcome)
                    continue
                outcomes.append(outcome.row)
                warned += outcome.row.warning is not None
                stored_turned += outcome.stored_turned
                memory.add(outcome)
        return Answer(
            outcomes, counts, memory.overflow, warned=warned, stored_turned=stored_turned, windows=memory.windows
        )


class _Crops:
    """The crops of a chunk, one for each row; those of more frames than there are entries lie apart."""

    windows = None

    def __init__(self, crops: np.ndarray) -> None:
        self._crops = crops
        self._rows = 0
        self._more: list[np.ndarray] = []

    def find_room(self, left: int) -> int:  # noqa: ARG002
        """Return how many bytes the next image may take if it is not resized."""
        return 0

    def add(self, pixels: Pixels) -> None:
        if self._rows < len(self._crops):
            self._crops[self._rows] = pixels.array
        else:
            self._more.append(pixels.array)
        self._rows += 1

    @property
    def overflow(self) -> np.ndarray | None:
        """The crops of all rows, where the chunk had too few."""
        if not self._more:
            return None
        return np.concatenate([*([self._crops] if len(self._crops) else []), np.stack(self._more)])


class _PackedWindows:
    """Windows one behind the other in the memory of a chunk; the images that are left keep room for a crop each."""

    overflow = None  # each entry has one image at most

    def __init__(self, places: np.ndarray, crop_bytes: int) -> None:
        self._memory = places.reshape(-1)
        self._crop_bytes = crop_bytes
        self._used = 0
        self._windows: list[Window] = []

    def find_room(self, left: int) -> int:
        """Return how many bytes the next image may take if it is not resized, with so many entries after it."""
        return len(self._memory) - self._used - left * self._crop_bytes

    def add(self, pixels: Pixels) -> None:
        window = make_finished_window(pixels.array) if pixels.window is None else Window(*pixels.window)
        end = self._used + pixels.array.size
        self._memory[self._used : end].reshape(pixels.array.shape)[...] = pixels.array
        self._windows.append(window._replace(start=self._used))
        self._used = end

    @property
    def windows(self) -> np.ndarray:
        """The table of the rows. Shapes: int64 (N, 13)."""
        return np.array(self._windows, np.int64).reshape(-1, len(Window._fields))
