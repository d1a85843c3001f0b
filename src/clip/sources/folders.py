"""The images below a folder, in order, in bounded memory. Knows nothing about decoding or models.

The rules of a folder, in the order they are tried:

1. Names that start with a dot are hidden: files and whole folders are ignored.
2. Links to folders are ignored, so that no loop can arise; links to files are read. The root itself may be a link.
3. What is neither a file nor a folder (a pipe, a socket, a device) is ignored: opening it could wait for ever.
4. With `globs`, files that match one of them are images, and no others. Without, files with the extension of a
   format Pillow decodes are, and files without extension whose first bytes are such a format's.

Whatever is an image by these rules becomes a row or a failure row; a folder that cannot be listed becomes a failure
row too, for nobody knows what was in it. Everything else is counted as ignored, by reason.
"""

from __future__ import annotations

import heapq
import os
import stat
import tempfile
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from ..atomic_files import translate_os_errors
from ..images.formats import decodable_extensions, looks_like_image
from ..records import Failure, Item, utf8_path
from .remote.client import listed
from .remote.protocol import MAX_TIME_NS

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterable, Iterator

SORTED_IN_MEMORY = 100_000  # names of a folder, 10 MB; more are sorted in files of so many
FILE, FOLDER, UNKNOWN = b"f", b"d", b"?"  # what a listing says of a name; a link is unknown


def walk(
    root: str,
    patterns: list[list[str]],
    ignored: Counter[str],
    known: Iterable[Item] = (),
    scratch: Path | None = None,
) -> Iterator[Item | Failure]:
    """Every image below a folder, in a stable order; a Failure for a folder that cannot be listed.

    `patterns` are globs name by name, as `split_glob` makes them. Counts what is left. Sizes and times of images that
    are `known`, in the order of an earlier walk, are taken from there. The names of a large folder are sorted in files
    in `scratch` that nobody else sees.
    """
    earlier = _Known(known)
    begun = [("", iter([_record(b"", FOLDER)]))]  # folders, the last one under way, and what is to come in each
    while begun:
        folder, records = begun[-1]
        record = next(records, None)
        if record is None:
            begun.pop()
            continue
        name, kind = record[1:-2], record[-1:]
        relative = folder + os.fsdecode(name) + ("/" if kind == FOLDER and name else "")
        path = os.path.join(root, relative)  # noqa: PTH118  strings: ten million paths
        if kind == FOLDER:
            try:
                begun.append((relative, _listing(path, ignored, scratch)))
            except OSError as exc:
                yield Failure(utf8_path(relative or "."), path, "read", *_reason(exc))
        elif reason := _why_ignored(relative, path, kind, patterns):
            ignored[reason] += 1
        else:
            own_id = utf8_path(relative)
            yield Item(own_id, path, *(earlier.status(own_id) or file_status(path)))


def walk_listed(prefix: str, patterns: list[list[str]], ignored: Counter[str]) -> Iterator[Item]:
    """Every image below a prefix on a server, in its order, by the rules of a folder.

    Names without an extension are passed over unless a pattern asks for them: a look at each is a request.

    Raises:  InputError where it cannot be listed to its end.
    """
    for path, status in listed(prefix):
        relative = path.removeprefix(prefix)
        names = relative.split("/")
        if not names[-1]:
            continue  # how a folder is marked
        if any(name.startswith(".") for name in names):
            ignored["hidden"] += 1
        elif not any(matches(names, glob) for glob in patterns) if patterns else not image_by_name(relative):
            bare = not patterns and image_by_name(relative) is None
            ignored["without an extension" if bare else "not an image"] += 1
        else:
            yield Item(utf8_path(relative), path, status.size_bytes or 0, status.modified_ns)


def split_glob(glob: str) -> list[str]:
    """A pattern name by name; one without a slash is a name's, wherever it stands."""
    return (glob if "/" in glob else f"**/{glob}").split("/")


class _Known:
    """The images of an earlier walk, gone through beside the one under way."""

    def __init__(self, items: Iterable[Item]) -> None:
        self._items = iter(items)
        self._next = next(self._items, None)

    def status(self, own_id: str) -> tuple[int, int] | None:
        """Size and time of change of the image of this id, if it is there; those before it are passed over."""
        if self._next is None:
            return None
        place = _place(own_id)
        while self._next is not None and _place(self._next.id) < place:
            self._next = next(self._items, None)
        if self._next is None or self._next.id != own_id:
            return None
        return self._next.size_bytes, self._next.modified_ns


def _place(own_id: str) -> list[tuple[int, str]]:
    """Where an id stands in a walk: a folder's files come before its folders."""
    *folders, last = own_id.split("/")
    return [*((1, folder) for folder in folders), (0, last)]


def _record(name: bytes, kind: bytes) -> bytes:
    """A name that sorts behind those of files if it is a folder's, and byte by byte otherwise."""
    return (b"1" if kind == FOLDER else b"0") + name + b"\0" + kind


def _listing(path: str, ignored: Counter[str], scratch: Path | None) -> Iterator[bytes]:
    """The records of what is in a folder, sorted. Raises OSError where it cannot be listed."""
    records: list[bytes] = []
    runs: list[BinaryIO] = []
    with os.scandir(path) as listing:
        for entry in listing:
            if entry.name.startswith("."):
                ignored["hidden"] += 1
                continue
            known_file = entry.is_file(follow_symlinks=False)  # as the listing says: no system call
            kind = FILE if known_file else FOLDER if entry.is_dir(follow_symlinks=False) else UNKNOWN
            records.append(_record(os.fsencode(entry.name), kind))
            if len(records) == SORTED_IN_MEMORY:
                runs.append(_spilled(records, scratch))
                records.clear()
    records.sort()
    return heapq.merge(*map(_unspilled, runs), records) if runs else iter(records)


def _spilled(records: list[bytes], scratch: Path | None) -> BinaryIO:
    """Records, sorted, in a file without a name. No name of a file has a slash, so that stands for the line's end."""
    with translate_os_errors(scratch or Path(tempfile.gettempdir())):
        file = cast("BinaryIO", tempfile.TemporaryFile(dir=scratch))  # noqa: SIM115  closed when it is read
        file.writelines(record.replace(b"\n", b"/") + b"\n" for record in sorted(records))
        file.seek(0)
    return file


def _unspilled(file: BinaryIO) -> Iterator[bytes]:
    with file:
        for line in file:
            yield line[:-1].replace(b"/", b"\n")


def _why_ignored(relative: str, path: str, kind: bytes, globs: list[list[str]]) -> str | None:
    """The reason for which what is no folder is passed over; None for an image."""
    if kind == UNKNOWN and (reason := _why_special(path)):
        return reason
    if globs:
        return None if any(matches(relative.split("/"), glob) for glob in globs) else "not an image"
    return None if is_image(path) else "not an image"


def is_image(path: str) -> bool:
    """By its extension, or without one by its first bytes."""
    if (by_name := image_by_name(path)) is not None:
        return by_name
    try:
        return looks_like_image(path)
    except OSError:
        return True  # not readable, so perhaps an image: reading it will fail and leave a failure row


def image_by_name(name: str) -> bool | None:
    """Whether a name has the extension of a format that Pillow decodes; None where it has no extension."""
    extension = Path(name).suffix.lower()
    return extension in decodable_extensions() if extension else None


def _why_special(path: str) -> str | None:
    """Why a link or a special file is no image; None for a link to a file, to nothing or in a circle."""
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116
    except OSError:
        return None  # perhaps an image: reading it will fail and leave a failure row
    return "link to a folder" if stat.S_ISDIR(mode) else None if stat.S_ISREG(mode) else "not a file"


def file_status(path: str) -> tuple[int, int]:
    """Size and time of change [Unit: ns] of a file."""
    try:
        status = os.stat(path)  # noqa: PTH116
    except (OSError, ValueError):  # ValueError for a NUL, or for half of a surrogate pair
        return 0, 0  # a link to nothing, or a file gone since; reading it will say so
    return status.st_size, max(-MAX_TIME_NS, min(status.st_mtime_ns, MAX_TIME_NS))


def _reason(exc: OSError) -> tuple[str, str]:
    return type(exc).__name__, f"cannot be listed ({exc.strerror}), expected a readable folder. Check its permissions."


def matches(names: list[str], globs: list[str]) -> bool:
    """Whether a path, name by name, is one that a glob means: *, ? and [] stay inside a name, ** crosses folders."""
    if not globs:
        return not names
    if globs[0] == "**":
        return any(matches(names[skipped:], globs[1:]) for skipped in range(len(names) + 1))
    return bool(names) and fnmatchcase(names[0], globs[0]) and matches(names[1:], globs[1:])
