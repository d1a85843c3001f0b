"""List the images below a folder, in order and in bounded memory.

The rules of a folder, in the order in which they apply:

1. Names that start with a dot are hidden: files and whole folders are ignored.
2. Links to folders are ignored, so that no loop can arise; links to files are read. The root itself may be a link.
3. Whatever is neither a file nor a folder (a pipe, a socket, a device) is ignored: opening it could wait for ever.
4. Outputs of `clip embed` and contact sheets of `clip search` are ignored: they are of images, and no images.
5. With `globs`, files that match one of them are images, and no others. Without `globs`, files with the extension of a
   format that Pillow decodes are images, and files without an extension whose first bytes are of one.
6. With `raw_previews` RAW photos are images too. Without, they are ignored and counted by their kind; so are videos,
   and HEIC files where their decoder is not installed.

An image by these rules becomes a row or a failure row. A folder that cannot be listed becomes a failure row too, as
nobody knows what was in it. Everything else is counted as ignored, by reason.
"""

from __future__ import annotations

import heapq
import os
import stat
import tempfile
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from ..atomic_files import translate_os_errors
from ..errors import InputError
from ..images.formats import decodable_extensions, looks_like_image
from ..images.kinds import get_unread_kind, is_raw_name
from ..own_files import OUTPUT_NAMES, is_contact_sheet, is_output
from ..records import Failure, Item, utf8_path
from .files import stat_here
from .remote.client import list_files

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterable, Iterator

SORTED_IN_MEMORY = 100_000  # names of a folder, 10 MB; the names of a larger one are sorted in files of this many
FILE, FOLDER, UNKNOWN = b"f", b"d", b"?"  # the kind of a name in a listing; a link is unknown


def walk(
    root: str,
    patterns: list[list[str]],
    ignored: Counter[str],
    known: Iterable[Item] = (),
    scratch: Path | None = None,
    *,
    raw_previews: bool = False,
    begin: str | None = None,
    output: str = "",
) -> Iterator[Item | Failure]:
    """List every image below a folder, in a stable order; a Failure for a folder that cannot be listed.

    `patterns` are globs, split by `split_glob`. Counts what is ignored. Sizes and times of images that are `known`, in
    the order of an earlier walk, are taken from there. The names of a large folder are sorted in files without a name
    in `scratch`. Paths start with `begin` instead of the folder, and so do ids. What is of ours is left out: the folder
    `output`, other outputs, contact sheets.
    """
    before, left_out = begin or "", os.path.realpath(output) if output else None
    earlier = _EarlierWalk(known)
    begun = [("", iter([_make_record(b"", FOLDER)]))]  # the folders on the way to the current one, with what remains
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
            ours = is_output(path) or (left_out and _is_at(path, left_out, is_root=not relative))
            if ours and relative:
                ignored["output of clip"] += 1
                continue
            try:
                records = _list_folder(path, ignored, scratch)
                if ours:  # an output, with images beside
                    records = (one for one in records if os.fsdecode(one[1:-2]) not in OUTPUT_NAMES)
                begun.append((relative, records))
            except OSError as exc:
                placed = path if begin is None else before + relative
                yield _fail(Item(utf8_path((before + relative) or "."), placed, 0), exc)
        elif reason := _explain_ignored(relative, path, kind, patterns, raw_previews=raw_previews):
            ignored[reason] += 1
        else:
            own_id = utf8_path(before + relative)
            status = earlier.find_status(own_id) or stat_here(path)
            if is_contact_sheet(path, status[0]):
                ignored["contact sheet"] += 1
                continue
            yield Item(own_id, path if begin is None else before + relative, *status)


def _is_at(path: str, real: str, *, is_root: bool) -> bool:
    """Whether a folder is at a path without links. Below the root only one of its name is looked at: none is a link."""
    return (is_root or Path(path).name == Path(real).name) and os.path.realpath(path) == real


def walk_prefix(
    prefix: str, patterns: list[list[str]], ignored: Counter[str], *, output: str = "", raw_previews: bool = False
) -> Iterator[Item]:
    """List every image below a prefix on a server, in the server's order, by the rules of a folder, but in `output`.

    Names without an extension are ignored unless a pattern matches them: looking at each would take a request.

    Raises:  InputError where the listing does not come to its end.
    """
    left_out, is_met = output.rstrip("/") + "/", False
    for path, status in list_files(prefix):
        if output and path.startswith(left_out):
            ignored["output of clip"] += not is_met
            is_met = True
            continue
        relative = path.removeprefix(prefix)
        names = relative.split("/")
        if not names[-1]:
            continue  # an empty object that marks a folder
        if any(name.startswith(".") for name in names):
            ignored["hidden"] += 1
        elif patterns and not any(matches(names, glob) for glob in patterns):
            ignored["not an image"] += 1
        elif not patterns and not has_image_name(relative, raw_previews=raw_previews):
            no_extension = has_image_name(relative) is None
            ignored["without an extension" if no_extension else explain_name(relative)] += 1
        else:
            yield Item(utf8_path(relative), path, status.size_bytes or 0, status.modified_ns)


def split_glob(glob: str) -> list[str]:
    """Split a pattern at its slashes; a pattern without a slash matches names in all folders."""
    return (glob if "/" in glob else f"**/{glob}").split("/")


class _EarlierWalk:
    """The images of an earlier walk, read in step with the present one."""

    def __init__(self, items: Iterable[Item]) -> None:
        self._items = iter(items)
        self._next = next(self._items, None)

    def find_status(self, own_id: str) -> tuple[int, int] | None:
        """Return size and time of change of the image of this id, if it is there; skip the images before it."""
        if self._next is None:
            return None
        key = _make_sort_key(own_id)
        while self._next is not None and _make_sort_key(self._next.id) < key:
            self._next = next(self._items, None)
        if self._next is None or self._next.id != own_id:
            return None
        return self._next.size_bytes, self._next.modified_ns


def _make_sort_key(own_id: str) -> list[tuple[int, str]]:
    """Return the key that sorts ids in the order of a walk: a folder's files come before its folders."""
    *folders, last = own_id.split("/")
    return [*((1, folder) for folder in folders), (0, last)]


def _make_record(name: bytes, kind: bytes) -> bytes:
    """Return a name with its kind, as bytes that sort by name, and folders after files."""
    return (b"1" if kind == FOLDER else b"0") + name + b"\0" + kind


def _list_folder(path: str, ignored: Counter[str], scratch: Path | None) -> Iterator[bytes]:
    """Return the records of a folder's names, sorted. Raises: OSError where it cannot be listed."""
    records: list[bytes] = []
    runs: list[BinaryIO] = []
    with os.scandir(path) as listing:
        for entry in listing:
            if entry.name.startswith("."):
                ignored["hidden"] += 1
                continue
            is_file = entry.is_file(follow_symlinks=False)  # known from the listing: no system call
            kind = FILE if is_file else FOLDER if entry.is_dir(follow_symlinks=False) else UNKNOWN
            records.append(_make_record(os.fsencode(entry.name), kind))
            if len(records) == SORTED_IN_MEMORY:
                runs.append(_spill(records, scratch))
                records.clear()
    records.sort()
    return heapq.merge(*map(_read_spilled, runs), records) if runs else iter(records)


def _spill(records: list[bytes], scratch: Path | None) -> BinaryIO:
    """Write records, sorted, to a file without a name. A newline is written as a slash, which no file name has."""
    with translate_os_errors(scratch or Path(tempfile.gettempdir())):
        file = cast("BinaryIO", tempfile.TemporaryFile(dir=scratch))  # noqa: SIM115  closed when it is read
        file.writelines(record.replace(b"\n", b"/") + b"\n" for record in sorted(records))
        file.seek(0)
    return file


def _read_spilled(file: BinaryIO) -> Iterator[bytes]:
    with file:
        for line in file:
            yield line[:-1].replace(b"/", b"\n")


def _explain_ignored(
    relative: str, path: str, kind: bytes, globs: list[list[str]], *, raw_previews: bool
) -> str | None:
    """Return the reason to ignore a name that is no folder; None for an image."""
    if kind == UNKNOWN and (reason := _explain_special(path)):
        return reason
    if globs:
        return None if any(matches(relative.split("/"), glob) for glob in globs) else "not an image"
    return None if is_image(path, raw_previews=raw_previews) else explain_name(path)


def explain_name(name: str) -> str:
    """Return why a file is no image by its name: its kind, where people keep it beside images."""
    return get_unread_kind(name) or "not an image"


def is_image(path: str, *, raw_previews: bool = False) -> bool:
    """Whether a file is an image by its extension, or by its first bytes if it has none."""
    if (by_name := has_image_name(path, raw_previews=raw_previews)) is not None:
        return by_name
    try:
        return looks_like_image(path)
    except OSError:
        return True  # unreadable, so perhaps an image: reading it makes the failure row


def has_image_name(name: str, *, raw_previews: bool = False) -> bool | None:
    """Whether a name has the extension of a format that is decoded; None if it has no extension."""
    extension = os.path.splitext(name)[1].lower()  # noqa: PTH122  Path takes 5 us, this one a half
    if len(extension) < 2:
        return None
    return extension in decodable_extensions() or (raw_previews and is_raw_name(name))


def _explain_special(path: str) -> str | None:
    """Return why a link or a special file is no image; None for a link to a file, a broken one or a circular one."""
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116
    except OSError:
        return None  # perhaps an image: reading it makes the failure row
    return "link to a folder" if stat.S_ISDIR(mode) else None if stat.S_ISREG(mode) else "not a file"


def _fail(folder: Item, exc: OSError) -> Failure:
    reason = f"cannot be listed ({exc.strerror})"
    error = InputError(folder.path, reason, "a readable folder", "Check its permissions.")
    return replace(Failure.of(folder, "read", exc), message=error.reason)


def matches(names: list[str], globs: list[str]) -> bool:
    """Whether a path matches a glob, both split at slashes: *, ? and [] stay inside a name, ** crosses folders."""
    if not globs:
        return not names
    if globs[0] == "**":
        return any(matches(names[skipped:], globs[1:]) for skipped in range(len(names) + 1))
    return bool(names) and fnmatchcase(names[0], globs[0]) and matches(names[1:], globs[1:])
