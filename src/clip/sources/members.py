"""Which members of a container are images, and under which ids. Knows nothing about models."""

from __future__ import annotations

import lzma
import struct
import tarfile
import zipfile
import zlib
from typing import TYPE_CHECKING

from ..images.formats import SNIFF_BYTES, begins_like_image
from ..records import Failure, Item, Member, id_hash, utf8_path
from .folders import image_by_name, matches

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable

    from ..records import ContainerPart

CHUNK_BYTES = 1_000_000
# What the libraries raise over damaged archives, and over those that use what they do not know.
DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    RuntimeError,
    struct.error,
    zlib.error,
    lzma.LZMAError,
    tarfile.TarError,
    zipfile.BadZipFile,
)


class Members:
    """Which members of a pack are images, under which ids; and how many are not."""

    def __init__(self, pack: ContainerPart, globs: list[list[str]], max_bytes: int, ignored: Counter[str]) -> None:
        self.max_bytes = max_bytes
        self.ignored = ignored
        self._pack = pack
        self._globs = globs
        self._seen: set[int] = set()

    def id_of(self, name: str) -> str | None:
        """The id of a file of this name; None, and counted, where it is hidden or no image by its name."""
        name = name.removeprefix("./")
        parts = name.split("/")
        if any(part.startswith(".") and part not in (".", "..") for part in parts):
            self.ignored["hidden"] += 1
        elif not any(matches(parts, glob) for glob in self._globs) if self._globs else image_by_name(name) is False:
            self.ignored["not an image"] += 1
        else:
            return self.unique(f"{self._pack.name}!{utf8_path(name)}")
        return None

    def unique(self, own_id: str) -> str:
        """An id, with ~2 behind it where it is the second of its name in the pack, and so on."""
        found, number = own_id, 1
        while id_hash(found) in self._seen:
            number += 1
            found = f"{own_id}~{number}"
        self._seen.add(id_hash(found))
        return found

    def read(self, own_id: str, name: str, size_bytes: int, read: Callable[[], bytes]) -> Member | Failure | None:
        """A member with its bytes; None, and counted, where it has no extension and no image's first bytes."""
        if size_bytes > self.max_bytes:
            return self.too_large(own_id, size_bytes)
        data = read()
        if not self._globs and image_by_name(name) is None and not begins_like_image(data[:SNIFF_BYTES]):
            self.ignored["not an image"] += 1
            return None
        return Member(Item(own_id, self._pack.path, len(data), self._pack.modified_ns), data)

    def too_large(self, own_id: str, size_bytes: int) -> Failure:
        """What a member beyond the cap becomes."""
        message = f"{size_bytes:,} bytes, expected at most {self.max_bytes:,}. Leave it out, or raise --max-bytes."
        return Failure(own_id, self._pack.path, "read", "InputError", message)

    def failure(self, own_id: str, exc: Exception) -> Failure:
        """What a member that cannot be read becomes."""
        message = f"cannot be read ({str(exc) or type(exc).__name__}), expected a whole archive. Restore it."
        return Failure(own_id, self._pack.path, "read", type(exc).__name__, message)

    def rest(self, exc: Exception) -> Failure:
        """What becomes of all behind a damage; its id is the pack's."""
        return self.failure(self._pack.id, exc)
