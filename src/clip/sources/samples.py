"""Read a tar sample by sample, as WebDataset writes it: the files of one key stand together.

An image waits for what stands beside it until the next key begins. Where the files of a key stand apart, the row of an
image would lack what comes elsewhere: the image, or the file that comes too late, is a failure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import InputError
from ..records import Failure, Member, id_hash
from .remote.client import make_size_error
from .sidecars import MAX_BYTES, get_key, list_endings, read_beside

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .members import PartReader

HELD_BYTES = 256_000_000  # of one sample


class Samples:
    """The members of a tar, sample by sample."""

    def __init__(self, reader: PartReader) -> None:
        self._reader = reader
        self._columns = reader.selection.columns
        self._incomplete: set[int] = set()  # hashes of keys whose images lacked a file
        self._without_image: set[int] = set()  # of keys whose files had no image
        self._clear("")

    def _clear(self, key: str) -> None:
        self._key = key
        self._images: list[tuple[str, Member | Failure]] = []  # with their names
        self._beside: dict[str, bytes | None] = {}  # by name; None for a file that is too large
        self._held_bytes = 0

    def begin(self, name: str) -> Iterator[Member | Failure]:
        """Say which member comes next; yield the images of the sample that ends before it."""
        key = get_key(name.removeprefix("./"))
        if key != self._key:
            yield from self.end()
            self._clear(key)

    def add_beside(self, name: str, size_bytes: int, read: Callable[[], bytes]) -> None:
        """Add a file that may be beside an image; one that is too large is not read."""
        fits = size_bytes <= min(MAX_BYTES, HELD_BYTES - self._held_bytes)
        self._held_bytes += size_bytes if fits else 0
        self._beside[name.removeprefix("./")] = read() if fits else None

    def add_image(self, name: str, outcome: Member | Failure) -> None:
        """Add an image, or its failure."""
        if isinstance(outcome, Member):
            self._held_bytes += len(outcome.data)
            if self._held_bytes > HELD_BYTES:
                outcome.release()
                self._held_bytes -= len(outcome.data)
                found = f"its sample holds more than {HELD_BYTES:,} bytes"
                outcome = self._reader.fail(outcome.id, InputError(outcome.id, found, "less", "Write smaller samples."))
        self._images.append((name.removeprefix("./"), outcome))

    def end(self, *, is_cut: bool = False) -> Iterator[Member | Failure]:
        """Yield the images of the current sample, with what is beside them; the archive may be cut in it."""
        key = id_hash(self._key)
        for name, outcome in self._images:
            completed = outcome if isinstance(outcome, Failure) else self._complete(name, outcome, key, is_cut=is_cut)
            if isinstance(outcome, Member) and not isinstance(completed, Member):
                outcome.release()
            yield completed
        if self._beside and not self._images:
            self._without_image.add(key)
            if key in self._incomplete:
                own_id = self._reader.make_unique(self._reader.make_id(next(iter(self._beside))))
                yield self._reader.fail(own_id, _make_apart_error(own_id))
        self._clear("")

    def _complete(self, name: str, member: Member, key: int, *, is_cut: bool) -> Member | Failure:
        try:
            beside = read_beside(name, self._find, self._columns)
        except InputError as exc:
            return self._reader.fail(member.id, exc)
        if beside.endings < set(list_endings(self._columns)):
            self._incomplete.add(key)
            if is_cut:
                return self._reader.fail(member.id, EOFError("it is cut before what stands beside the image"))
            if key in self._without_image:
                return self._reader.fail(member.id, _make_apart_error(member.id))
        return self._reader.complete(member, beside)

    def _find(self, name: str) -> bytes | None:
        if name in self._beside and self._beside[name] is None:
            raise make_size_error(name, f"more than {MAX_BYTES:,}", MAX_BYTES)
        return self._beside.get(name)


def _make_apart_error(own_id: str) -> InputError:
    found = "stands apart from the other files of its key"
    return InputError(own_id, found, "all of a key together, as in WebDataset", "Write the archive sorted by name.")
