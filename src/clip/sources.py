"""A folder of pictures -> shards of Items, and an Item -> its bytes. Knows nothing about decoding or models.

The rules of a folder, in the order they are tried:

1. Names that start with a dot are hidden: files and whole folders are ignored.
2. Links to folders are ignored, so that no loop can arise; links to files are read. The root itself may be a link.
3. What is neither a file nor a folder (a pipe, a socket, a device) is ignored: opening it could wait for ever.
4. With `globs`, files that match one of them are pictures, and no others. Without, files with the extension of a
   format Pillow decodes are, and files without extension whose first bytes are such a format's.

Whatever is a picture by these rules becomes a row or a failure row; a folder that cannot be listed becomes a failure
row too, for nobody knows what was in it. Everything else is counted as ignored, by reason.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from clip.errors import InputError
from clip.items import Failure, Guards, Item, Shard, utf8_path
from clip.pixels import decodable_extensions, looks_like_picture

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterator


@dataclass(frozen=True)
class FolderSource:
    """All pictures below a folder, in the order of their names."""

    root: str
    globs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.root or not Path(self.root).is_dir():
            raise InputError(f"{self.root or '(empty)'}: not a folder, expected one with pictures. Check the path.")

    def walk(self, ignored: Counter[str]) -> Iterator[Item | Failure]:
        """Every picture, in a stable order; a Failure for a folder that cannot be listed. Counts what is left."""
        extensions = decodable_extensions()
        globs = [(glob if "/" in glob else f"**/{glob}").split("/") for glob in self.globs]  # no slash: a name's
        pending = [""]  # folders still to list, the next one last
        while pending:
            folder = pending.pop()
            try:
                with os.scandir(os.path.join(self.root, folder)) as listing:  # noqa: PTH118  strings: ten million paths
                    entries = sorted(listing, key=lambda entry: os.fsencode(entry.name))
            except OSError as exc:
                yield Failure(utf8_path(folder or "."), os.path.join(self.root, folder), "read", *_reason(exc))  # noqa: PTH118
                continue
            folders: list[str] = []
            for entry in entries:
                relative = f"{folder}{entry.name}"
                if entry.name.startswith("."):
                    ignored["hidden"] += 1
                elif entry.is_dir(follow_symlinks=False):
                    folders.append(f"{relative}/")
                elif (kind := _kind(entry)) == stat.S_IFDIR:
                    ignored["link to a folder"] += 1
                elif kind not in (stat.S_IFREG, None):
                    ignored["not a file"] += 1
                elif _is_picture(entry, relative, globs, extensions):
                    yield Item(utf8_path(relative), entry.path, _size(entry))
                else:
                    ignored["not a picture"] += 1
            pending.extend(reversed(folders))

    def shards(self, size: int, ignored: Counter[str], limit: int | None = None) -> Iterator[Shard]:
        """The first `limit` entries of the walk (all without one), in shards of `size`."""
        entries = islice(self.walk(ignored), limit)
        index = 0
        while shard := list(islice(entries, size)):
            yield Shard(index, shard)
            index += 1

    def read(self, item: Item, max_bytes: int = Guards.max_bytes) -> bytes:
        """The bytes of a picture. Raises OSError, and InputError for a file of more than `max_bytes`."""
        path = Path(item.path)
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise InputError("became something else than a file since it was listed. Leave it out.")
        size_bytes = status.st_size
        if size_bytes > max_bytes:
            raise InputError(
                f"{size_bytes:,} bytes, expected at most {max_bytes:,}. Leave it out, or raise --max-bytes."
            )
        return path.read_bytes()


def _is_picture(entry: os.DirEntry[str], relative: str, globs: list[list[str]], extensions: frozenset[str]) -> bool:
    if globs:
        return any(_matches(relative.split("/"), glob) for glob in globs)
    extension = Path(entry.name).suffix.lower()
    if extension:
        return extension in extensions
    try:
        return looks_like_picture(entry.path)
    except OSError:
        return True  # not readable, so perhaps a picture: reading it will fail and leave a failure row


def _kind(entry: os.DirEntry[str]) -> int | None:
    """The file type of an entry, of what it leads to if it is a link; None where it leads to nothing or in a circle."""
    if entry.is_file(follow_symlinks=False):
        return stat.S_IFREG  # as the listing says: no system call
    try:
        return stat.S_IFMT(entry.stat().st_mode)
    except OSError:
        return None  # perhaps a picture: reading it will fail and leave a failure row


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except OSError:
        return 0  # a link to nothing, or a file gone since; reading it will say so


def _reason(exc: OSError) -> tuple[str, str]:
    return type(exc).__name__, f"cannot be listed ({exc.strerror}), expected a readable folder. Check its permissions."


def _matches(names: list[str], globs: list[str]) -> bool:
    """Whether a path, name by name, is one that a glob means: *, ? and [] stay inside a name, ** crosses folders."""
    if not globs:
        return not names
    if globs[0] == "**":
        return any(_matches(names[skipped:], globs[1:]) for skipped in range(len(names) + 1))
    return bool(names) and fnmatchcase(names[0], globs[0]) and _matches(names[1:], globs[1:])
