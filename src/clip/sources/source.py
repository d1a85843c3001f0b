"""What a user names as input -> shards of entries, and an entry -> its bytes. Knows nothing about decoding or models.

    photos/              a folder: folders.py has its rules
    'photos/**/*.jpg'    a pattern: * ? [] inside a name, ** across folders
    photo.jpg            an image
    list.txt, -          paths, a line each; .csv, .tsv, .ndjson by a column; .parquet by a column of texts
    a.tar, b.tar.gz      archives, read from front to back; a shard each
    c.zip, d.parquet     archives and tables that hold images; shards of at most --shard-size, or of a row group
    '{000..127}.tar'     each of them; so does {a,b}
    s3://, gs://, https://  any of these on a server, but for folders and patterns over HTTP: client.py

Ids: below a folder or a pattern's fixed part the path relative to it; of a list's entry what the list says, or its id
column; of a member NAME!MEMBER with the archive's file name, of a row NAME!NUMBER or its id column; of a text likewise.
"""

from __future__ import annotations

import json
import os
import stat
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError
from ..jobs.options import Columns, Limits
from ..records import STDIN, TEXT, ContainerPart, Failure, Item, Member, Shard, as_utf8, in_shards, utf8_path
from .expand import MAGIC, expand_braces, split_pattern
from .folders import file_status, image_by_name, is_image, split_glob, walk, walk_listed
from .lists import COLUMN_ENDINGS, PLAIN_ENDINGS, Line, lines_in, resolved
from .members import CHUNK_BYTES, Members
from .parquet import PARQUET_ENDINGS, lines_in_table, read_layout, table_members
from .remote import client
from .remote.client import check, is_remote, lists, opened, path_of
from .tar import TAR_ENDINGS, tar_members
from .zip import ZIP_ENDINGS, zip_members, zip_size

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator

    from ..records import Entry

ENDINGS = PLAIN_ENDINGS + COLUMN_ENDINGS + TAR_ENDINGS + ZIP_ENDINGS + PARQUET_ENDINGS


@dataclass(frozen=True)
class Source:
    """One or several inputs, in the order in which they were named."""

    inputs: tuple[str, ...]
    globs: tuple[str, ...] = ()  # of folders and archives
    columns: Columns = Columns()  # noqa: RUF009  frozen too
    root: str = ""  # that relative paths in lists start from; the current folder without

    def __post_init__(self) -> None:
        for name in self.expanded():
            if is_remote(name):
                _check_remote(name)
                continue
            if name == STDIN or (MAGIC.search(name) and not Path(name).exists()):
                continue
            path = Path(name or "\0")
            known = path.is_dir() or (path.is_file() and (name.lower().endswith(ENDINGS) or is_image(name)))
            if not known:
                found = "nothing that we read" if path.exists() else "no such file"
                raise InputError(
                    f"{name or '(empty)'}: {found}, expected a folder, an image, a list, an archive or a table. "
                    "Check the path."
                )

    def expanded(self) -> list[str]:
        """The inputs with their braces written out. One that is there as it stands is left alone."""
        return [name for given in self.inputs for name in ([given] if os.path.lexists(given) else expand_braces(given))]

    def typed(self) -> Source:
        """The same with the types that kept columns have in an output: those of the first table, texts of a list.

        Raises:  InputError for a table or a column that cannot be used.
        """
        if not self.columns.keep:
            return self
        name = self.expanded()[0]
        walked = self._walked(name, Counter())
        first = next(walked[0], None) if walked else None
        name = first.path if isinstance(first, Item) else name
        if not path_of(name).lower().endswith(PARQUET_ENDINGS):
            return self
        return replace(self, columns=replace(self.columns, types=read_layout(name, self.columns).types))

    def entries(
        self, shard_size: int, ignored: Counter[str], known: Iterable[Item] = (), scratch: Path | None = None
    ) -> Iterator[Entry]:
        """Everything that is to be read, in order. Counts what is passed over.

        Raises:  InputError for an input that cannot be used, or that yields nothing.
        """
        known = (item for item in known if not is_remote(item.path))  # of these a listing tells all anew
        for name in self.expanded():
            count = 0
            before = dict(ignored)
            for entry in self._entries_of(name, shard_size, ignored, known, scratch):
                count += 1
                yield entry
            if not count:
                passed_over = {reason: n - before.get(reason, 0) for reason, n in ignored.items()}
                raise InputError(_why_nothing(name, passed_over))

    def _entries_of(
        self, name: str, shard_size: int, ignored: Counter[str], known: Iterator[Item], scratch: Path | None
    ) -> Iterator[Entry]:
        walked = self._walked(name, ignored, known, scratch)
        if walked is not None:
            yield from self._unpacked(*walked, shard_size, ignored)
            return
        own_id = utf8_path(Path(path_of(name)).name)
        of_list = name == STDIN or path_of(name).lower().endswith(PLAIN_ENDINGS + COLUMN_ENDINGS)
        held = self._listed(name, own_id) if of_list else self._packs(name, own_id, shard_size)
        yield from [self._bare(Item(own_id, name, *_status(name)))] if held is None else held

    def _walked(
        self, name: str, ignored: Counter[str], known: Iterable[Item] = (), scratch: Path | None = None
    ) -> tuple[Iterator[Item | Failure], bool] | None:
        """What is below a folder, or what a pattern means, and whether patterns chose it; None for a file."""
        if is_remote(name):
            if not _is_prefix(name):
                return None
        elif not (Path(name).is_dir() or (MAGIC.search(name) and not Path(name).exists())):
            return None
        patterns = [split_glob(glob) for glob in self.globs]
        if MAGIC.search(name) and (is_remote(name) or not Path(name).is_dir()):
            name, pattern = split_pattern(name)
            patterns = [pattern.split("/")]
        if is_remote(name):
            return walk_listed(name.rstrip("/") + "/", patterns, ignored), bool(patterns)
        return walk(name, patterns, ignored, known, scratch), bool(patterns)

    def _unpacked(
        self, entries: Iterable[Item | Failure], chosen: bool, shard_size: int, ignored: Counter[str]
    ) -> Iterator[Entry]:
        """The same entries; where patterns chose them, the parts of archives, and what lists and tables name."""
        texts = self.columns.kind == "texts"
        columns = texts or bool(self.columns.taken)
        for entry in entries:
            lower = path_of(entry.path).lower()
            if isinstance(entry, Failure) or not chosen:
                yield self._bare(entry)
            elif columns and lower.endswith(PLAIN_ENDINGS + COLUMN_ENDINGS):
                yield from self._listed(entry.path, entry.id)
            elif texts and not lower.endswith(PARQUET_ENDINGS):
                ignored["not a list or table"] += 1
            else:
                packs = self._packs(entry.path, entry.id, shard_size)
                yield from [self._bare(entry)] if packs is None else packs

    def _listed(self, path: str, own_id: str) -> Iterator[Item]:
        for name, kind in self.columns.taken:
            if kind != TEXT:
                raise InputError(
                    path,
                    f"column {name!r} holds texts, as in every list",
                    f"{kind} as in the first table",
                    "Name the list first, and all become texts.",
                )
        yield from (
            self._of_line(line, path, own_id, number) for number, line in enumerate(lines_in(path, self.columns))
        )

    def _of_line(self, line: Line, path: str, own_id: str, number: int) -> Item:
        """An image that a list names, or a text, which has no file of its own."""
        if self.columns.kind == "texts":
            size_bytes = len((line.entry or "").encode("utf-8", "surrogatepass"))
            values = (line.entry, *line.values)
            return Item(utf8_path(line.id or f"{own_id}!{number}"), path, size_bytes, values=values)
        where = _openable(resolved(line.entry or "", self.root))
        return Item(utf8_path(line.id or line.entry or ""), where, *file_status(where), line.values)

    def _bare(self, entry: Item | Failure) -> Item | Failure:
        """What stands in no list or table. Raises: InputError where its columns are asked for."""
        asked = [name for name, _ in self.columns.taken]
        if isinstance(entry, Item) and (asked or self.columns.kind == "texts"):
            wanted = f"column {asked[0]!r}" if asked else "texts"
            raise InputError(
                entry.path,
                "found neither a list nor a table",
                f"{wanted} in one",
                "Leave it out, or pass the list or table that names it.",
            )
        return entry

    def _packs(self, path: str, own_id: str, shard_size: int) -> Iterator[Entry] | None:
        """The parts of a file that holds images, or what it names; None for another file."""
        lower = path_of(path).lower()
        if lower.endswith(PARQUET_ENDINGS):
            return self._table_packs(path, own_id, shard_size)
        if not lower.endswith(TAR_ENDINGS + ZIP_ENDINGS):
            return None
        self._bare(Item(own_id, path, 0))
        return (
            self._zip_packs(path, own_id, shard_size) if lower.endswith(ZIP_ENDINGS) else self._tar_pack(path, own_id)
        )

    def _tar_pack(self, path: str, own_id: str) -> Iterator[Entry]:
        yield ContainerPart(own_id, path, *_status(path))

    def _zip_packs(self, path: str, own_id: str, shard_size: int) -> Iterator[Entry]:
        status = _status(path)
        try:
            with opened(path) as file:
                members = zip_size(file)
        except OSError as exc:
            yield Failure(own_id, path, "read", type(exc).__name__, f"cannot be read ({exc}). Check its permissions.")
            return
        if members is None:
            yield ContainerPart(own_id, path, *status)
            return
        for start in range(0, members, shard_size):
            stop = min(start + shard_size, members)
            yield ContainerPart(own_id, path, *status, start, stop, stop - start)

    def _table_packs(self, path: str, own_id: str, shard_size: int) -> Iterator[Entry]:
        status = _status(path)  # before the layout, so that what is not of this status is noticed
        layout = read_layout(path, self.columns)
        if not layout.holds:
            lines = lines_in_table(path, layout, self.columns)
            yield from (self._of_line(line, path, own_id, number) for number, line in enumerate(lines))
            return
        told = json.dumps([layout.column, self.columns.id, self.columns.taken, layout.struct and self.root])
        start = rows = 0
        for index, group_rows in enumerate(layout.groups):
            if rows and rows + group_rows > shard_size:
                yield ContainerPart(own_id, path, *status, start, index, rows, columns=told)
                start, rows = index, 0
            rows += group_rows
        if rows:
            yield ContainerPart(own_id, path, *status, start, len(layout.groups), rows, columns=told)

    def shards(
        self,
        size: int,
        ignored: Counter[str],
        limit: int | None = None,
        known: Iterable[Item] = (),
        scratch: Path | None = None,
    ) -> Iterator[Shard]:
        """The first `limit` entries (all without one) in shards of `size`; a pack is a shard of its own."""
        yield from in_shards(_first(self.entries(size, ignored, known, scratch), limit), size)

    def read(self, item: Item, max_bytes: int = Limits.max_bytes) -> bytes:
        """The bytes of an image. Raises OSError, and InputError for a file of more than `max_bytes`."""
        if is_remote(item.path):
            return client.read(item.path, max_bytes)
        # Without waiting: what was a file when it was listed may be a pipe by now.
        descriptor = os.open(item.path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with open(descriptor, "rb") as file:  # noqa: PTH123
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise InputError("became something else than a file since it was listed. Leave it out.")
            size_bytes = status.st_size
            data = file.read(size_bytes + 1) if size_bytes <= max_bytes else b""
            while len(data) > size_bytes and size_bytes <= max_bytes:  # it grows: to its end, or to the cap
                size_bytes = len(data)
                data += file.read(CHUNK_BYTES)
        if size_bytes > max_bytes:
            raise InputError(
                f"{size_bytes:,} bytes, expected at most {max_bytes:,}. Leave it out, or raise --max-bytes."
            )
        return data

    def members(self, pack: ContainerPart, max_bytes: int, ignored: Counter[str]) -> Iterator[Member | Failure | Item]:
        """What a pack holds, in its order; an Item for what it only names. Counts what is passed over."""
        members = Members(pack, [split_glob(glob) for glob in self.globs], max_bytes, ignored)
        try:
            file = opened(pack.path, (pack.size_bytes, pack.modified_ns))
        except OSError as exc:
            yield members.rest(exc)
            return
        with file:
            lower = path_of(pack.path).lower()
            if lower.endswith(TAR_ENDINGS):
                found: Generator[Member | Failure | Item] = tar_members(file, members)
            elif lower.endswith(ZIP_ENDINGS):
                found = zip_members(file, pack, members)
            else:
                try:
                    layout = read_layout(pack.path, self.columns, file)
                except InputError as exc:  # it was another when it was listed
                    yield members.rest(exc)
                    return
                found = table_members(file, pack, layout, self.columns, members)
            with closing(found):
                for outcome in islice(found, pack.limit):
                    yield self._resolved(outcome) if isinstance(outcome, Item) else outcome

    def _resolved(self, item: Item) -> Item:
        path = resolved(item.path, self.root)
        return Item(item.id, path, *file_status(path), item.values)


def _openable(path: str) -> str:
    """A path that the system can be asked for; one with half of a surrogate pair in it names nothing."""
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        return as_utf8(path)
    return path


def _check_remote(name: str) -> None:
    """Refuse a URL that cannot be an input. Raises: InputError."""
    check(name)
    path = path_of(name)
    if not (_is_prefix(name) or path.lower().endswith(ENDINGS) or image_by_name(path) is not False):
        raise InputError(
            name,
            "nothing that we read",
            "an image, a list or an archive",
            "Check the address.",
        )


def _is_prefix(url: str) -> bool:
    """Whether a URL stands for what is below it: where its server lists, unless it is a file's by its ending."""
    is_file = url.lower().endswith(ENDINGS) or image_by_name(url.rpartition("/")[2])
    return lists(url) and (url.endswith("/") or MAGIC.search(url) is not None or not is_file)


def _status(path: str) -> tuple[int, int]:
    """Size and time of change of a file that is here or on a server. Raises: InputError where that cannot tell."""
    if not is_remote(path):
        return file_status(path)
    found = client.status(path)
    return found.size_bytes or 0, found.modified_ns


def _first(entries: Iterator[Entry], limit: int | None) -> Iterator[Entry]:
    """At most `limit` images. How many a tar holds is not known, so where it may hold as many, nothing follows it."""
    for entry in entries:
        if limit is None:
            yield entry
        elif limit > 0:
            yield replace(entry, limit=limit) if isinstance(entry, ContainerPart) else entry
            limit -= 1 if not isinstance(entry, ContainerPart) else limit if entry.members is None else entry.members
        else:
            return


def _why_nothing(name: str, passed_over: dict[str, int]) -> str:
    told = ", ".join(f"{count:,} {reason}" for reason, count in sorted(passed_over.items()) if count)
    if MAGIC.search(path_of(name)):
        return f"{name}: matches no file, expected some. Check it, and quote it, so that the shell leaves it."
    if _is_prefix(name) if is_remote(name) else Path(name).is_dir():
        found = f"nothing but {told}" if told else "empty"
        return f"{name}: {found}, expected images. Check the folder, or take files of other names with --glob."
    return f"{name}: names no image, expected some. Check that it is the right file, and its --column."
