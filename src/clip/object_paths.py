"""Paths on object stores, for what is written there: an `ObjectPath` is used as a path of this machine is.

    s3://bucket/out    Amazon S3, and servers with its interface; also gs://bucket/out, az://container/out

Requests are made by obstore, the bindings of Rust's object_store (object_stores.py). An object appears by one request,
whole, so there are no temporary names, no renames, and no folders but what names say. What only a path of this machine
can do raises TypeError (`__fspath__`), so that nothing is ever written to a folder named "s3:".
"""

from __future__ import annotations

import errno
import fnmatch
import hashlib
import io
import os
import re
import stat
import tempfile
from contextlib import contextmanager
from pathlib import Path, PosixPath
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar, cast

from .errors import StoreUnreachableError
from .object_stores import connect, translate_store_errors
from .parallel import map_ahead

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator

    from obstore import ObjectMeta, PutMode
    from obstore.store import ObjectStore

T = TypeVar("T")
R = TypeVar("R")
URL = re.compile(r"(s3|gs|az)://[^/]+(/.*)?", re.DOTALL)
MANY = 32  # requests at a time, where many objects are asked for; their time is waiting
TAIL_BYTES = 2**16  # at the end of a Parquet file, where its footer is
FIRST_BYTES, MOST_BYTES = 2**18, 2**23  # of a requested part; doubled while parts follow each other
WHOLE_BYTES = 2**26  # up to which an object is sent by one request; a larger one in pieces, which appear together
DELETES = 3  # attempts, where a server gives no answer


def is_object_url(name: str | Path) -> bool:
    """Whether a name is that of an object store, and of a bucket in it."""
    return URL.fullmatch(str(name)) is not None


def open_place(name: str | Path) -> Path:
    """Return the path of an output: on this machine, or on an object store.

    Raises:  InputError where the library for a store, or settings of it, are missing.
    """
    if isinstance(name, Path):
        return name  # `Path(name)` would make of an ObjectPath one of this machine
    if not is_object_url(name):
        return Path(name)
    place = ObjectPath(name)
    connect(place.parts[0].removesuffix(":"), place.parts[1])  # which says at once what is missing
    return place


class ObjectPath(PosixPath):
    """The path of an object, or of all objects below it."""

    _listed: ObjectMeta | None = None  # what the listing said that it came from

    def __str__(self) -> str:
        scheme, *names = self.parts or ("",)
        return f"{scheme}//{'/'.join(names)}" if scheme.endswith(":") else "/".join((scheme, *names))

    def __fspath__(self) -> str:
        raise TypeError(f"{self} is on a server, and no path of this machine")

    @property
    def client(self) -> ObjectStore:
        """The store that it is in. Raises: InputError where the library for it is missing."""
        return connect(self.parts[0].removesuffix(":"), self.parts[1])

    @property
    def key(self) -> str:
        """Its name in the store."""
        return "/".join(self.parts[2:])

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:  # noqa: ARG002  there are no links
        """Return its size and its time of change, to which a hash of its ETag is added; of a folder that it is one."""
        meta = self._listed or self._head()
        if meta is None and next(iter(self._list()), None) is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))
        if meta is None:
            return os.stat_result((stat.S_IFDIR | 0o755, *(0,) * 9))
        seconds, trace = int(meta["last_modified"].timestamp()), hashlib.sha256((meta["e_tag"] or "").encode()).digest()
        times = {"st_mtime_ns": seconds * 10**9 + int.from_bytes(trace[:4], "big") % 10**9}
        return os.stat_result((stat.S_IFREG | 0o644, 0, 0, 1, 0, 0, meta["size"], seconds, seconds, seconds), times)

    def exists(self, *, follow_symlinks: bool = True) -> bool:  # noqa: ARG002
        """Whether there is an object of this name, or one below it."""
        return self.is_file() or self.is_dir()

    def is_file(self, *, follow_symlinks: bool = True) -> bool:  # noqa: ARG002
        """Whether there is an object of this name."""
        return self._head() is not None

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:  # noqa: ARG002
        """Whether there is an object below it."""
        return next(iter(self._list()), None) is not None

    def is_symlink(self) -> bool:
        """Return False."""
        return False

    def iterdir(self) -> Generator[ObjectPath]:
        """Yield the objects and folders in it, which is none where nothing has its name."""
        import obstore

        with translate_store_errors(self):
            found = obstore.list_with_delimiter(self.client, self.key or None)
        for meta in found["objects"]:
            child = self / meta["path"].rpartition("/")[2]
            child._listed = meta
            yield child
        yield from (self / name.rstrip("/").rpartition("/")[2] for name in found["common_prefixes"])

    def glob(self, pattern: str, **_: Any) -> Generator[ObjectPath]:
        """Yield what is in it, and whose name matches."""
        yield from (path for path in self.iterdir() if fnmatch.fnmatchcase(path.name, pattern))

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """Do nothing: a folder is there when something is in it."""

    def rmdir(self) -> None:
        """Do nothing: a folder is gone when nothing is in it."""

    def unlink(self, missing_ok: bool = False) -> None:  # noqa: ARG002  stores do not say whether it was there
        """Remove the object."""
        _delete(self, [self.key])

    def remove_tree(self) -> None:
        """Remove everything below it."""
        _delete(self, [meta["path"] for meta in self._list()])

    def move(self, target: ObjectPath, seal: str) -> None:
        """Copy everything below it to another folder of the same bucket, and remove it here.

        The object named `seal` says that a folder is complete: it is copied last and removed first.
        """
        import obstore

        def copy(key: str) -> None:
            with translate_store_errors(self):
                obstore.copy(self.client, key, target.key + key.removeprefix(self.key))

        sealing, keys = (self / seal).key, sorted(meta["path"] for meta in self._list())
        for _ in map_objects(copy, (key for key in keys if key != sealing), self):
            pass
        if sealing in keys:
            copy(sealing)
            _delete(self, [sealing])
        self.remove_tree()

    def read_object(self, max_bytes: int) -> tuple[bytes, str]:
        """Return the bytes of the object, and the ETag of their version. Raises: OSError if it is missing or larger."""
        import obstore

        with translate_store_errors(self):
            answer = obstore.get(self.client, self.key)
            meta, data = answer.meta, bytes(answer.bytes()) if answer.meta["size"] <= max_bytes else None
        if data is None:
            raise OSError(errno.EFBIG, f"more than {max_bytes:,} bytes", str(self))
        return data, meta["e_tag"] or ""

    def put_if(self, data: bytes, etag: str | None) -> str | None:
        """Write the object if its version is this one, or with None if it is absent; return the ETag that it has then.

        Return None where the condition does not hold. A server that was not understood may have written it.
        """
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        mode: PutMode = "create" if etag is None else {"e_tag": etag}
        try:
            with translate_store_errors(self):
                return obstore.put(self.client, self.key, data, mode=mode)["e_tag"] or ""
        except (AlreadyExistsError, PreconditionError):
            return None

    @contextmanager
    def write_whole(self) -> Generator[BinaryIO]:
        """Open a file that becomes the object when the block ends without an error."""
        import obstore

        with tempfile.TemporaryFile() as file:
            yield cast("BinaryIO", file)
            size_bytes = file.seek(0, io.SEEK_END)
            file.seek(0)
            with translate_store_errors(self):
                obstore.put(self.client, self.key, file, use_multipart=size_bytes > WHOLE_BYTES, chunk_size=WHOLE_BYTES)

    def open_object(self) -> BinaryIO:
        """Open the object to read it at any place, all of one version. Raises: FileNotFoundError."""
        meta = self._head()
        if meta is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))
        return cast("BinaryIO", io.BufferedReader(_ObjectFile(self, meta), FIRST_BYTES))

    def _head(self) -> ObjectMeta | None:
        import obstore

        try:
            with translate_store_errors(self):
                return obstore.head(self.client, self.key) if self.key else None
        except FileNotFoundError:
            return None

    def _list(self) -> Iterator[ObjectMeta]:
        import obstore

        with translate_store_errors(self):
            for page in obstore.list(self.client, self.key or None):
                yield from page


def _delete(path: ObjectPath, keys: list[str]) -> None:
    import obstore

    for number in reversed(range(DELETES if keys else 0)):
        try:
            with translate_store_errors(path):
                obstore.delete(path.client, keys)
            return
        except StoreUnreachableError:  # obstore does not repeat what is no put and may have been done
            if not number:
                raise


class _ObjectFile(io.RawIOBase):
    """An object that is read in parts, and its end at once, as a Parquet file's footer is there."""

    def __init__(self, path: ObjectPath, meta: ObjectMeta) -> None:
        self._path, self._meta = path, meta
        self._size = meta["size"]
        self._place = 0
        self._held: list[tuple[int, bytes]] = []  # the latest part, and the end
        self._next_bytes = FIRST_BYTES

    def _request(self, start: int, stop: int) -> bytes:
        import obstore
        from obstore.exceptions import PreconditionError

        etag = self._meta["e_tag"]
        try:
            with translate_store_errors(self._path):
                options: Any = {"range": (start, stop), **({"if_match": etag} if etag else {})}
                data = bytes(obstore.get(self._path.client, self._path.key, options=options).bytes())
        except PreconditionError as exc:
            raise OSError(errno.ESTALE, "it changed while it was read", str(self._path)) from exc
        if len(data) != stop - start:
            found = f"was sent in part: {len(data):,} of {stop - start:,} bytes"
            raise StoreUnreachableError(self._path, found, "all of them", "Run again.")
        return data

    def _find_part(self) -> tuple[int, bytes]:
        for start, data in self._held:
            if start <= self._place < start + len(data):
                return start, data
        tail = max(0, self._size - TAIL_BYTES)
        if self._place >= tail:
            self._held.append((tail, self._request(tail, self._size)))
            return self._held[-1]
        follows = any(start + len(data) == self._place for start, data in self._held)
        self._next_bytes = min(2 * self._next_bytes, MOST_BYTES) if follows else FIRST_BYTES
        part = (self._place, self._request(self._place, min(self._size, self._place + self._next_bytes)))
        self._held = [part, *(held for held in self._held if held[0] >= tail)]
        return part

    def readinto(self, buffer: memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Read at most to the end of the current part."""
        if self._place >= self._size or not len(buffer):
            return 0
        start, data = self._find_part()
        piece = memoryview(data)[self._place - start :][: len(buffer)]
        memoryview(buffer).cast("B")[: len(piece)] = piece
        self._place += len(piece)
        return len(piece)

    def readall(self) -> bytes:
        """Read all that is left, by one request where it is not much."""
        if self._size - self._place > WHOLE_BYTES:
            return super().readall()
        data = self._request(self._place, self._size) if self._place < self._size else b""
        self._place = self._size
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a place in the object."""
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        self._place = max(0, origin + offset)
        return self._place

    def tell(self) -> int:
        """Return the place in the object."""
        return self._place

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True


def map_objects(function: Callable[[T], R], items: Iterable[T], path: Path) -> Iterator[R]:
    """Call a function for each item, in their order; many at a time where the path is on an object store."""
    if not isinstance(path, ObjectPath):
        return map(function, items)
    return map_ahead(function, items, workers=MANY, ahead=2 * MANY)
