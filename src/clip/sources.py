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
import re
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from clip.errors import InputError
from clip.items import Failure, Item, Shard, utf8_path
from clip.preprocess import decodable_extensions, looks_like_picture

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterator

MAX_FILE_BYTES = 2**31 - 1  # the largest file read at once; no format we decode gains from more


@dataclass(frozen=True)
class FolderSource:
    """All pictures below a folder, in the order of their names."""

    root: str
    globs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not Path(self.root).is_dir():
            raise InputError(f"{self.root}: not a folder, expected one with pictures. Check the path.")

    def walk(self, ignored: Counter[str]) -> Iterator[Item | Failure]:
        """Every picture, in a stable order; a Failure for a folder that cannot be listed. Counts what is left."""
        extensions = decodable_extensions()
        patterns = [_compile_glob(glob) for glob in self.globs]
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
                elif entry.is_dir():
                    ignored["link to a folder"] += 1
                elif not entry.is_file() and not entry.is_symlink():
                    ignored["not a file"] += 1
                elif _is_picture(entry, relative, patterns, extensions):
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

    def read(self, item: Item) -> bytes:
        """The bytes of a picture. Raises OSError, and InputError for a file of over 2 GiB."""
        path = Path(item.path)
        size_bytes = path.stat().st_size
        if size_bytes > MAX_FILE_BYTES:
            raise InputError(f"{size_bytes:,} bytes, expected at most {MAX_FILE_BYTES:,}. Leave it out.")
        return path.read_bytes()


def _is_picture(
    entry: os.DirEntry[str], relative: str, patterns: list[re.Pattern[str]], extensions: frozenset[str]
) -> bool:
    if patterns:
        return any(pattern.fullmatch(relative) for pattern in patterns)
    extension = Path(entry.name).suffix.lower()
    if extension:
        return extension in extensions
    try:
        return looks_like_picture(entry.path)
    except OSError:
        return True  # not readable, so perhaps a picture: reading it will fail and leave a failure row


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except OSError:
        return 0  # a link to nothing, or a file gone since; reading it will say so


def _reason(exc: OSError) -> tuple[str, str]:
    return type(exc).__name__, f"cannot be listed ({exc.strerror}), expected a readable folder. Check its permissions."


def _compile_glob(glob: str) -> re.Pattern[str]:
    """A pattern of relative paths: * and ? stay inside a name, ** crosses folders; without a slash it is a name's."""
    pieces = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])", glob if "/" in glob else f"**/{glob}")
    meaning = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile(
        "".join(
            meaning.get(piece)
            or (piece.replace("[!", "[^") if piece.startswith("[") and len(piece) > 2 else re.escape(piece))
            for piece in pieces
        ),
        re.DOTALL,
    )
