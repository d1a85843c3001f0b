"""List what a user names as input, in shards, and read it.

    photos/              a folder: folders.py has its rules
    'photos/**/*.jpg'    a pattern: * ? [] inside a name, ** across folders
    photo.jpg            an image
    list.txt, -          paths, one per line; .csv, .tsv, .ndjson by a column; .parquet by a column of texts
    list.csv.gz, .zst    the same, compressed
    a.tar, b.tar.gz      archives, read from front to back; each is a shard
    c.zip, d.parquet     archives and tables that hold images; shards of at most `shard_size`, or of a row group
    e.arrow, dataset/    a table, and a dataset of Hugging Face as `save_to_disk` writes it: saved_dataset.py
    '{000..127}.tar'     each of them; so does {a,b}
    s3://, gs://, https://  any of these on a server, but for folders and patterns over HTTP: remote/client.py

Ids: the path below the base of the inputs (base.py: of one folder the folder itself); of a list's entry its path as the
list writes it, or its id column; of a member ARCHIVE!MEMBER, of a row TABLE!NUMBER or its id column; of a text
LIST!NUMBER or its id column. In outputs of version 0.1.0 ids are relative to each input, and paths as they were given.
"""

from __future__ import annotations

import os
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError
from ..jobs.options import Columns, Limits
from ..records import STDIN, TEXT, ContainerPart, Entry, Failure, Item, Member, Shard, in_shards, join_root, utf8_path
from .base import find_common, make_relative, resolve, resolve_file
from .container import Table
from .expand import expand_braces, split_pattern
from .files import open_file, read_file, stat_file
from .folders import split_glob, walk, walk_prefix
from .inputs import check_input, explain_nothing, is_folder, is_pattern
from .kinds import find_container, has_known_ending
from .lists import is_list, make_item, read_lines
from .members import PartReader, Selection
from .remote.client import get_local_path, get_path, is_remote
from .saved_dataset import list_dataset_files
from .sidecars import KEY, MAX_BYTES, list_endings, read_beside

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ..budgets import ByteBudget


@dataclass(frozen=True)
class Source:
    """One or several inputs, in the order in which they were named."""

    inputs: tuple[str, ...]
    globs: tuple[str, ...] = ()  # of folders and archives
    columns: Columns = Columns()  # noqa: RUF009  frozen too
    root: str = ""  # where relative paths in lists start, itself relative to `base`; default: there
    base: str | None = None  # where paths of entries start, and ids; None for each input by itself, as in version 0.1.0

    output: str = ""  # the folder that a run of it writes, which is left out
    raw_previews: bool = False  # whether RAW photos are images

    def __post_init__(self) -> None:
        for name in self.expand():
            check_input(name, raw_previews=self.raw_previews)

    def list_places(self) -> tuple[str, ...]:
        """Return the inputs, those of this machine as absolute paths."""
        return tuple(
            name if is_remote(name) or name == STDIN else get_local_path(name) or os.path.abspath(name)  # noqa: PTH100  of patterns too, as names
            for name in self.inputs
        )

    def with_base(self) -> Source:
        """Return the source with its base, which is empty where none of the inputs is on this machine.

        Its root becomes relative to the base; one on a server stays.
        """
        given = get_local_path(self.root) or self.root
        root = given if is_remote(given) else resolve(given)
        folders = [self._find_folder(name, root) for name in self.expand()]
        base = find_common(folder for folder in folders if folder and not is_remote(folder))
        if not self.root and not any(name == STDIN or has_known_ending(name) for name in (*self.expand(), *self.globs)):
            root = base  # of which nothing makes use
        return replace(self, base=base, root=root if is_remote(root) else make_relative(root, base))

    def _find_folder(self, name: str, root: str) -> str | None:
        """Return the folder at which the paths of an input start; None where it is not on this machine."""
        if self.columns.kind != "texts" and self._names_images(name):
            return root
        if name == STDIN or is_remote(name):
            return None
        if is_pattern(name):
            return resolve(split_pattern(name)[0])
        return resolve(name) if is_folder(name) else os.path.dirname(resolve_file(name))  # noqa: PTH120

    def _names_images(self, name: str) -> bool:
        """Whether an input is a list, or a table like one: its paths start at the root, wherever it is itself."""
        if is_pattern(name) or is_folder(name):
            # Of many files the first shows what they are, as all of a run are alike.
            if not any(map(has_known_ending, self.globs if is_folder(name) else [name])):
                return False
            first = next(self._walk(name, Counter()), None)
            if not isinstance(first, Item) or (is_list(first.path) and not self.columns.beside):
                return False
            name = first.path
        if is_list(name):
            return True
        table = find_container(name)
        if is_remote(name) or not isinstance(table, Table):
            return False
        try:
            return not table.holds_images(name, self.columns)
        except InputError:
            return False  # the listing says what is wrong with it

    @property
    def selection(self) -> Selection:
        """What is taken of the files."""
        return Selection(
            self.globs, self.columns, get_local_path(self.root) or self.root, self.base or "", self.raw_previews
        )

    def locate(self, path: str) -> str:
        """Return where the path of an entry leads."""
        return join_root(self.base or "", path)

    @cached_property
    def _list_folder(self) -> str:
        """The folder that holds all lists, to which their own ids are relative."""
        lists = [name for name in self.expand() if name != STDIN and not is_remote(name) and self._is_list(name)]
        return find_common(os.path.dirname(resolve_file(name)) for name in lists)  # noqa: PTH120

    def _is_list(self, name: str) -> bool:
        return is_list(name) or isinstance(find_container(name), Table)

    def _place(self, name: str, *, is_folder: bool = False) -> tuple[str, str]:
        """Return the id and the path of a file or folder that is an input."""
        if self.base is None or is_remote(name) or name == STDIN:
            return utf8_path(Path(get_path(name)).name), name
        absolute = resolve(name) if is_folder else resolve_file(name)
        path = make_relative(absolute, self.base)
        # The ids of a list's lines do not change with the folder that the command is given in.
        below = path if is_folder or not self._is_list(name) else make_relative(absolute, self._list_folder)
        return utf8_path(below), path

    def expand(self) -> list[str]:
        """Return the inputs with their braces written out, and as paths where they are URIs of this machine.

        An input that exists as it is stays.
        """
        names = (
            name for given in self.inputs for name in ([given] if os.path.lexists(given) else expand_braces(given))
        )
        return [name if os.path.lexists(name) else get_local_path(name) or name for name in names]

    def with_types(self) -> Source:
        """Return the source with the types of its copied columns: those of the first table, or text for a list.

        Raises:  InputError for a table or a column that cannot be used.
        """
        if not self.columns.keep:
            return self
        name = self.expand()[0]
        if (files := list_dataset_files(name)) is not None:
            name = os.path.join(name, files[0]) if files else name  # noqa: PTH118
        elif is_folder(name) or is_pattern(name):
            first = next(self._walk(name, Counter()), None)
            name = self.locate(first.path) if isinstance(first, Item) else name
        container = find_container(name)
        if not isinstance(container, Table):
            return self
        return replace(self, columns=replace(self.columns, types=container.read_types(name, self.columns)))

    def entries(
        self, shard_size: int, ignored: Counter[str], known: Iterable[Item] = (), scratch: Path | None = None
    ) -> Iterator[Entry]:
        """List everything that is to be read, in order; count what is ignored.

        Raises:  InputError for an input that cannot be used, or that yields nothing.
        """
        # A server's listing has the status of each; ids of a column do not show where in a walk an item was.
        known = (item for item in known if not (self.columns.id or is_remote(item.path)))
        for name in self.expand():
            is_empty = True
            before = dict(ignored)
            for entry in self._list_input(name, shard_size, ignored, known, scratch):
                is_empty = False
                yield entry
            if is_empty:
                raise explain_nothing(name, {reason: n - before.get(reason, 0) for reason, n in ignored.items()})

    def _list_input(
        self, name: str, shard_size: int, ignored: Counter[str], known: Iterable[Item], scratch: Path | None
    ) -> Iterator[Entry]:
        if not self.globs and (files := list_dataset_files(name)) is not None:
            begin = self._begin(name)
            for file in files:
                own_id, path = utf8_path((begin or "") + file), os.path.join(name, file)  # noqa: PTH118
                yield from self._list_parts(path if begin is None else begin + file, own_id, shard_size) or ()
            return
        if is_folder(name) or is_pattern(name):
            walked = self._walk(name, ignored, known, scratch)
            if not (chosen := bool(self.globs) or is_pattern(name)) or self.columns.kind != "texts":
                walked = self._add_beside(name, walked)
            yield from self._unpack(walked, shard_size, ignored) if chosen else walked
            return
        own_id, path = self._place(name)
        if is_list(name):
            yield from self._list_lines(path, own_id)
        elif (parts := self._list_parts(path, own_id, shard_size)) is not None:
            yield from parts
        else:
            yield from self._add_beside(name, [Item(own_id, path, *stat_file(name))])

    def _begin(self, folder: str) -> str | None:
        """Return what ids and paths below a folder begin with; None where paths begin with the folder as given."""
        if self.base is None:
            return None
        path = self._place(folder, is_folder=True)[1]
        return f"{path}/" if path else ""

    def _walk(
        self, name: str, ignored: Counter[str], known: Iterable[Item] = (), scratch: Path | None = None
    ) -> Iterator[Item | Failure]:
        """List the files of a folder or of a pattern, here or on a server."""
        patterns = [split_glob(glob) for glob in self.globs]
        if is_pattern(name):
            name, pattern = split_pattern(name)
            patterns = [pattern.split("/")]
        if is_remote(name):
            prefix = name.rstrip("/") + "/"
            return walk_prefix(prefix, patterns, ignored, output=self.output, raw_previews=self.raw_previews)
        begin = self._begin(name)
        return walk(
            name, patterns, ignored, known, scratch, begin=begin, output=self.output, raw_previews=self.raw_previews
        )

    def _unpack(self, entries: Iterable[Item | Failure], shard_size: int, ignored: Counter[str]) -> Iterator[Entry]:
        """Replace containers by their parts, and lists and tables by their entries where columns are asked for."""
        texts = self.columns.kind == "texts"
        for entry in entries:
            if isinstance(entry, Failure):
                yield entry
            elif is_list(entry.path):
                needed = texts or self.columns.beside
                yield from self._list_lines(entry.path, entry.id) if needed else [entry]
            elif texts and not isinstance(find_container(entry.path), Table):
                ignored["not a list or table"] += 1
            elif (parts := self._list_parts(entry.path, entry.id, shard_size)) is not None:
                yield from parts
            else:
                yield entry

    def _list_lines(self, path: str, own_id: str) -> Iterator[Item | Failure]:
        self._check_types(path)
        selection = self.selection
        for number, line in enumerate(read_lines(path if path == STDIN else self.locate(path), self.columns)):
            yield make_item(line, path, own_id, number, selection)

    def _list_parts(self, path: str, own_id: str, shard_size: int) -> Iterator[Entry] | None:
        """List the parts of a container, or what a table names; None for another file."""
        container = find_container(path)
        if container is None:
            return None
        if not isinstance(container, Table):
            self._check_types(path)
            if self.columns.kind == "texts":
                self._check_place(Item(own_id, path, 0))
        here = self.locate(path)
        parts = container.parts(here, own_id, shard_size, self.selection)
        return (_move(entry, path) if entry.path == here else entry for entry in parts) if self.base else parts

    def _add_beside(self, name: str, entries: Iterable[Item | Failure]) -> Iterator[Item | Failure]:
        """Yield the files of an input, images with what the files beside them say of the columns.

        Raises:  InputError where texts are asked for, for images on servers, and where no image has such a file.
        """
        endings, asked = list_endings(self.columns), False
        found: set[str] = set()
        if not (self.columns.beside or self.columns.kind == "texts"):
            yield from entries
            return
        for entry in entries:
            if isinstance(entry, Item) and not has_known_ending(entry.path):
                self._check_types(entry.path)
                self._check_place(entry)
                entry, beside = self._read_beside(entry)
                asked, found = True, found | beside
            yield entry
        if asked and endings and not found:
            column = next(column for column in self.columns.beside if column != KEY)
            wanted = f"column {column!r} in one, or in a .txt or .json beside an image"
            remedy = "Leave it out, or pass the list or table that names it."
            raise InputError(name, "found neither a list nor a table", wanted, remedy)

    def _read_beside(self, item: Item) -> tuple[Item | Failure, set[str]]:
        """Return an image of this machine with its values, and which files are beside it."""

        def read(path: str) -> bytes | None:
            try:
                return read_file(self.locate(path), MAX_BYTES)
            except (FileNotFoundError, NotADirectoryError):
                return None

        try:
            beside = read_beside(item.path, read, self.columns)
        except (OSError, InputError) as exc:
            return Failure.of(item, "read", exc), set(list_endings(self.columns))
        own_id = item.id if beside.id is None else utf8_path(beside.id)
        return item._replace(id=own_id, values=beside.values), beside.endings

    def _check_place(self, entry: Item) -> None:
        if self.columns.kind == "texts":
            remedy = "Leave it out, or pass the list or table that names it."
            raise InputError(entry.path, "found neither a list nor a table", "texts in one", remedy)
        if is_remote(entry.path) and list_endings(self.columns):  # each file would take a request of its own
            column = next(column for column in self.columns.beside if column != KEY)
            found = f"is on a server, where no files beside an image are read for column {column!r}"
            remedy = (
                "Pack the images with their files into tars, as WebDataset does, or list their URLs with the column."
            )
            raise InputError(entry.path, found, "an archive, a list or a table", remedy)

    def _check_types(self, path: str) -> None:
        """Raise InputError for columns that are to have other types than text in what has texts alone."""
        for name, kind in self.columns.taken:
            if kind != TEXT:
                found = f"column {name!r} holds texts, as in every list"
                remedy = "Name the list first, and all become texts."
                raise InputError(path, found, f"{kind} as in the first table", remedy)

    def shards(
        self,
        size: int,
        ignored: Counter[str],
        limit: int | None = None,
        known: Iterable[Item] = (),
        scratch: Path | None = None,
    ) -> Iterator[Shard]:
        """List the first `limit` entries (default: all) in shards of `size`; each part of a container is a shard."""
        yield from in_shards(_limit(self.entries(size, ignored, known, scratch), limit), size)

    def read(self, item: Item, max_bytes: int = Limits.max_bytes) -> bytes:
        """Return the bytes of an image. Raises: OSError, and InputError for a file of more than `max_bytes`."""
        return read_file(self.locate(item.path), max_bytes)

    def members(
        self, part: ContainerPart, max_bytes: int, ignored: Counter[str], budget: ByteBudget | None = None
    ) -> Iterator[Member | Failure | Item]:
        """Read the images of a part, in order; an Item for an image that is only named. Counts what is ignored.

        The bytes of a member are held in `budget` from before they are read; who takes the member releases them.

        A part that is read to its end, with `part.members` known, has as many outcomes and ignored members together.
        Where a Failure with the part's id comes last, it stands for the rest, which cannot be read.
        """
        reader = PartReader(part, self.selection, max_bytes, ignored, budget)
        here = replace(part, path=self.locate(part.path))
        container = find_container(here.path)
        if container is None:
            raise InputError(here.path, "nothing that we read", "an archive or a table", "Check the path.")
        try:
            file = open_file(here.path, (part.size_bytes, part.modified_ns))
        except OSError as exc:
            yield reader.fail_rest(exc)
            return
        with file, closing(container.members(file, here, reader)) as outcomes:
            yield from islice(outcomes, part.limit)


def _limit(entries: Iterator[Entry], limit: int | None) -> Iterator[Entry]:
    """Cut a listing to `limit` images. A tar, whose members are not counted before, is the last entry."""
    for entry in entries:
        if limit is None:
            yield entry
        elif limit > 0:
            yield replace(entry, limit=limit) if isinstance(entry, ContainerPart) else entry
            limit -= 1 if not isinstance(entry, ContainerPart) else limit if entry.members is None else entry.members
        else:
            return


def _move(entry: Entry, path: str) -> Entry:
    return entry._replace(path=path) if isinstance(entry, Item) else replace(entry, path=path)
