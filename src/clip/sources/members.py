"""The rules for members that all kinds of containers share: which are images, their ids, their limits, failures."""

from __future__ import annotations

import io
import lzma
import struct
import sys
import tarfile
import zipfile
import zlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..budgets import ByteBudget, Hold
from ..errors import ClipError, InputError
from ..images.formats import SNIFF_BYTES, begins_like_image
from ..records import ContainerPart, Failure, Item, Member, count_values, id_hash, utf8_path
from .files import CHUNK_BYTES
from .folders import explain_name, has_image_name, matches, split_glob
from .remote.client import make_size_error
from .sidecars import Beside, is_sidecar, read_beside

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable
    from typing import BinaryIO

    from ..jobs.options import Columns

# What the libraries raise over damaged archives, and over features they lack.
DAMAGE = (
    *(OSError, EOFError, ValueError, RuntimeError, struct.error),
    *(zlib.error, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile),
)
CHANGED = "it changed since it was listed"
NO_IDS = "Leave `columns.id` out, or name another column."


@dataclass(frozen=True)
class Selection:
    """What is taken of the files of an input."""

    globs: tuple[str, ...]
    columns: Columns
    root: str  # where relative paths of lists start, itself relative to `base`; the current folder if both are empty
    base: str = ""  # where the paths of entries start, as of `Source`
    raw_previews: bool = False


def is_hidden(name: str) -> bool:
    """Whether a member, or a folder that it is in, has a name that begins with a dot."""
    return any(part.startswith(".") and part not in (".", "..") for part in name.split("/"))


def read_whole(file: BinaryIO, size_bytes: int) -> bytes:
    """Return what a file has up to a size, held once: `read` of tarfile and zipfile holds it two or three times."""
    whole = io.BytesIO()
    while (left := size_bytes - whole.tell()) > 0 and (piece := file.read(min(left, CHUNK_BYTES))):
        whole.write(piece)
    return whole.getvalue()  # the same memory


class PartReader:
    """Choose the images of a container's part, name them, and read them within a limit; count the others.

    The bytes of an image have to be granted by `budget` before they are read, and are held until whoever takes the
    member releases them.
    """

    def __init__(
        self,
        part: ContainerPart,
        selection: Selection,
        max_bytes: int,
        ignored: Counter[str],
        budget: ByteBudget | None = None,
    ) -> None:
        self.budget = budget or ByteBudget(sys.maxsize)
        self.selection = selection
        self.ignored = ignored
        self._part = part
        self.max_bytes = max_bytes
        self._globs = [split_glob(glob) for glob in selection.globs]
        self._seen: set[int] = set()
        self._given: set[int] = set()  # hashes of the ids that a column gave

    @property
    def takes_sidecars(self) -> bool:
        """Whether the files beside an image are asked for, or its key."""
        return bool(self.selection.columns.beside)

    def choose(self, name: str) -> str | None:
        """Return the id for a member of this name; None, and count it, if it is hidden or no image by its name."""
        name = name.removeprefix("./")
        parts = name.split("/")
        if is_hidden(name):
            self.ignored["hidden"] += 1
        elif self.takes_sidecars and is_sidecar(name):
            self.ignored["caption or metadata"] += 1
        elif self._globs and not any(matches(parts, glob) for glob in self._globs):
            self.ignored["not an image"] += 1
        elif not self._globs and has_image_name(name, raw_previews=self.selection.raw_previews) is False:
            self.ignored[explain_name(name)] += 1
        else:
            return self.make_unique(self.make_id(name))
        return None

    def make_id(self, name: str) -> str:
        """Return the id of a member of this name."""
        return f"{self._part.name}!{utf8_path(name)}"

    def make_unique(self, own_id: str) -> str:
        """Return an id, with ~2 after it if it is the second of its name in the part, and so on."""
        unique, number = own_id, 1
        while id_hash(unique) in self._seen:
            number += 1
            unique = f"{own_id}~{number}"
        self._seen.add(id_hash(unique))
        return unique

    def read(
        self,
        own_id: str,
        name: str,
        size_bytes: int,
        read: Callable[[], bytes],
        find: Callable[[str], bytes | None] | None = None,
        held: Hold | None = None,
    ) -> Member | Failure | None:
        """Read a member; return None, and count it, if it has no extension and does not begin like an image.

        `find` returns the bytes of another member, which may be beside it, or None where there is none. `held` has
        those that `read` returns where they have been read already.
        """
        outcome = self.take(own_id, size_bytes, read, held=held)
        if isinstance(outcome, Failure):
            return outcome
        if not self._globs and has_image_name(name) is None and not begins_like_image(outcome.data[:SNIFF_BYTES]):
            outcome.release()
            self.ignored["not an image"] += 1
            return None
        if find is None or not self.takes_sidecars:
            return outcome
        try:
            completed = self.complete(outcome, read_beside(name, find, self.selection.columns))
        except BaseException:
            outcome.release()
            raise
        if isinstance(completed, Failure):
            outcome.release()
        return completed

    def complete(self, member: Member, beside: Beside) -> Member | Failure:
        """Return a member with what is beside it; a failure where another one of the part has its id."""
        own_id = member.id if beside.id is None else utf8_path(beside.id)
        if beside.id is not None:
            if id_hash(own_id) in self._given:
                found = f"has {beside.id!r} as its {self.selection.columns.id!r}, as another image of the archive has"
                return self.fail(member.id, InputError(member.id, found, "one image for each id", NO_IDS))
            self._given.add(id_hash(own_id))
        if member.held is not None:
            member.held.charge(count_values(beside.values))
        return replace(member, item=member.item._replace(id=own_id, values=beside.values))

    def take(
        self,
        own_id: str,
        size_bytes: int,
        read: Callable[[], bytes],
        values: tuple[str | None, ...] = (),
        held: Hold | None = None,
    ) -> Member | Failure:
        """Read an image of a known size, when its bytes may be held; a Failure if they are more than allowed."""
        fits = size_bytes <= self.max_bytes
        held = held or self.budget.hold(size_bytes if fits else 0)
        try:
            if fits:
                data = read()
                held.charge(count_values(values))
                return Member(Item(own_id, self._part.path, len(data), self._part.modified_ns, values), data, held)
        except BaseException:
            held.release()
            raise
        held.release()
        return self.fail_size(own_id, size_bytes)

    def fail_size(self, own_id: str, size_bytes: int) -> Failure:
        """Return the failure of a member that is too large."""
        return self.fail(own_id, make_size_error(own_id, f"{size_bytes:,}", self.max_bytes))

    def fail(self, own_id: str, exc: Exception) -> Failure:
        """Return the failure of a member that cannot be read."""
        failure = Failure.of(Item(own_id, self._part.path, 0), "read", exc)
        if isinstance(exc, ClipError):
            return failure
        reason = f"cannot be read ({failure.message or failure.error})"
        return replace(failure, message=InputError(own_id, reason, "a whole archive", "Restore it.").reason)

    def fail_rest(self, exc: Exception) -> Failure:
        """Return the failure that stands for all members from a damage to the part's end; its id is the part's."""
        return self.fail(self._part.id, exc)
