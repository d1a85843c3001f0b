"""Members of tar and zip archives, in order, with their bytes. Knows nothing about models.

Nothing is ever extracted: names are only names, so absolute ones, ".." and links lead nowhere. Members that are no
files, hidden, or no pictures by the rules of a folder are ignored and counted. One larger than the cap is a failure.
Where an archive is damaged, what stands before is given, and one failure for the rest.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO, cast

from clip.folders import matches, picture_by_name
from clip.items import Failure, Item, Member, id_hash, utf8_path
from clip.pixels import SNIFF_BYTES, begins_like_picture

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Generator, Iterator

    from clip.items import Pack

TAR_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
ZIP_ENDINGS = (".zip",)
MAX_HEADER_BYTES = 1_000_000  # of a long name or of PAX attributes, which tarfile reads whole
DRAINED_BYTES = 64_000_000  # read behind an archive's end, for the checksum of what it is compressed with
CHUNK_BYTES = 1_000_000
END_MARK = "EOFHeaderError"  # of tarfile's errors the one that says that an archive is over
LOCAL_HEADER = struct.Struct("<4s5H3I2H")  # of a zip's member: signature, version, flags, method, ..., sizes, lengths
LOCAL_SIGNATURE, DESCRIPTOR_SIGNATURE = b"PK\x03\x04", b"PK\x07\x08"
ENCRYPTED, SIZES_FOLLOW, NAME_IS_UTF8 = 0x1, 0x8, 0x800  # flags of a zip's member
ZIP64_SIZE = 0xFFFFFFFF
EXTENDED_TYPES = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
PEEKED_BYTES = 6
MAGICS = ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\x00", lzma.open))
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
    """Which members of a pack are pictures, under which ids; and how many are not."""

    def __init__(self, pack: Pack, globs: list[list[str]], max_bytes: int, ignored: Counter[str]) -> None:
        self.max_bytes = max_bytes
        self.ignored = ignored
        self._pack = pack
        self._globs = globs
        self._seen: set[int] = set()

    def id_of(self, name: str) -> str | None:
        """The id of a file of this name; None, and counted, where it is hidden or no picture by its name."""
        name = name.removeprefix("./")
        parts = name.split("/")
        if any(part.startswith(".") and part not in (".", "..") for part in parts):
            self.ignored["hidden"] += 1
        elif not any(matches(parts, glob) for glob in self._globs) if self._globs else picture_by_name(name) is False:
            self.ignored["not a picture"] += 1
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
        """A member with its bytes; None, and counted, where it has no extension and no picture's first bytes."""
        if size_bytes > self.max_bytes:
            return self.too_large(own_id, size_bytes)
        data = read()
        if not self._globs and picture_by_name(name) is None and not begins_like_picture(data[:SNIFF_BYTES]):
            self.ignored["not a picture"] += 1
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


def tar_members(file: BinaryIO, members: Members) -> Generator[Member | Failure]:
    """The pictures of a tar archive, plain or compressed, read from front to back."""
    ends: list[Exception] = []
    try:
        with _decompressed(file) as plain:
            with tarfile.open(
                fileobj=plain, mode="r|", tarinfo=_header_class(ends), errors="surrogateescape"
            ) as archive:
                while (header := archive.next()) is not None:
                    archive.members = []  # pyright: ignore[reportAttributeAccessIssue]  or it keeps all headers
                    if (found := _tar_member(archive, header, members)) is not None:
                        yield found
            if not ends or type(ends[-1]).__name__ != END_MARK:  # tarfile takes any end for the end
                raise tarfile.ReadError(f"no end mark: {ends[-1] if ends else 'it stops'}")
            for _ in range(0, DRAINED_BYTES, CHUNK_BYTES):
                if not plain.read(CHUNK_BYTES):
                    break
    except DAMAGE as exc:
        yield members.rest(exc)


def _tar_member(archive: tarfile.TarFile, header: tarfile.TarInfo, members: Members) -> Member | Failure | None:
    if header.isdir():
        return None
    if not header.isreg():
        members.ignored["link to a file" if header.issym() or header.islnk() else "not a file"] += 1
        return None
    if (own_id := members.id_of(header.name)) is None:
        return None
    return members.read(own_id, header.name, header.size, lambda: cast("BinaryIO", archive.extractfile(header)).read())


def _header_class(ends: list[Exception]) -> type[tarfile.TarInfo]:
    """A reader of headers that says how the last one ended, which tarfile swallows, and refuses enormous ones."""

    class Header(tarfile.TarInfo):
        @classmethod
        def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> tarfile.TarInfo:
            try:
                return super().frombuf(buf, encoding, errors)
            except tarfile.HeaderError as exc:
                ends.append(exc)
                raise

        def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
            if self.type in EXTENDED_TYPES and self.size > MAX_HEADER_BYTES:
                raise tarfile.ReadError(f"a header of {self.size:,} bytes")
            return super()._proc_member(archive)  # type: ignore[misc]  # pyright: ignore

    return Header


@contextmanager
def _decompressed(file: BinaryIO) -> Generator[BinaryIO]:
    """What is in a file that may be compressed, by its first bytes; checksums are verified at its end."""
    peekable = io.BufferedReader(cast("io.RawIOBase", file))
    try:
        begin = peekable.peek(PEEKED_BYTES)
        opener = next((opener for magic, opener in MAGICS if begin.startswith(magic)), None)
        if opener is None:
            yield cast("BinaryIO", peekable)
        else:
            with opener(peekable, "rb") as plain:
                yield cast("BinaryIO", plain)
    finally:
        peekable.detach()  # the file is the caller's


def zip_size(file: BinaryIO) -> int | None:
    """How many members a zip archive lists; None where its list is gone, so that it has to be read from the front."""
    try:
        with zipfile.ZipFile(file) as archive:
            return len(_listed(archive))
    except DAMAGE:
        return None


def _listed(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    return [header for header in archive.infolist() if not header.is_dir()]


def zip_members(file: BinaryIO, pack: Pack, members: Members) -> Generator[Member | Failure]:
    """The pictures of a zip archive, or of a part of its list."""
    try:
        archive = zipfile.ZipFile(file)
    except DAMAGE as exc:
        if pack.stop is None:
            yield from _salvaged(file, members, exc)
        else:  # it had a list when it was cut into parts; from the front each of them would give all
            yield members.rest(exc)
        return
    with archive:
        for header in _listed(archive)[pack.start : pack.stop]:
            if stat.S_ISLNK(header.external_attr >> 16):
                members.ignored["link to a file"] += 1
                continue
            if (own_id := members.id_of(header.filename)) is None:
                continue
            try:
                found = members.read(own_id, header.filename, header.file_size, lambda: _inflate(archive, header))  # noqa: B023  called at once
            except DAMAGE as exc:
                found = members.failure(own_id, exc)  # the others stand elsewhere
            if found is not None:
                yield found


def _inflate(archive: zipfile.ZipFile, header: zipfile.ZipInfo) -> bytes:
    """The bytes of a member, as many as it is said to have: asked for all, zipfile inflates what a liar holds."""
    with archive.open(header) as member:
        return member.read(header.file_size)


def _salvaged(file: BinaryIO, members: Members, lost: Exception) -> Iterator[Member | Failure]:
    """The pictures of a zip archive without its list, which stands at the end: by the headers before each member."""
    file.seek(0)
    try:
        while len(block := file.read(LOCAL_HEADER.size)) == LOCAL_HEADER.size:
            signature, _, flags, method, _, _, _, packed, size, name_bytes, extra_bytes = LOCAL_HEADER.unpack(block)
            if signature != LOCAL_SIGNATURE:
                break
            encoded = file.read(name_bytes)
            file.seek(extra_bytes, os.SEEK_CUR)
            begin = file.tell()
            name = encoded.decode("utf-8" if flags & NAME_IS_UTF8 else "cp437", "surrogateescape")
            known = not flags & SIZES_FOLLOW and ZIP64_SIZE not in (packed, size)
            if flags & ENCRYPTED or not (known or method == zipfile.ZIP_DEFLATED):
                break  # where the next member begins is not told
            data, end = _inflated(file, begin, packed if known else None, method, members.max_bytes)
            file.seek(end + (_descriptor_bytes(file, end) if flags & SIZES_FOLLOW else 0))
            if name.endswith("/") or (own_id := members.id_of(name)) is None:
                continue
            if (found := members.read(own_id, name, len(data), lambda: data)) is not None:  # noqa: B023  called at once
                yield found
    except DAMAGE as exc:
        lost = exc
    yield members.rest(lost)


def _inflated(file: BinaryIO, begin: int, packed: int | None, method: int, max_bytes: int) -> tuple[bytes, int]:
    """The bytes of a member, one more than the cap at most, and where it ends."""
    if method == zipfile.ZIP_STORED and packed is not None:
        data = file.read(min(packed, max_bytes + 1))
        if len(data) < min(packed, max_bytes + 1):
            raise EOFError("a member is cut")
        return data, begin + packed
    if method != zipfile.ZIP_DEFLATED:
        raise NotImplementedError(f"compression method {method}")
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    parts: list[bytes] = []
    taken = 0
    while not inflater.eof:
        chunk = file.read(CHUNK_BYTES)
        if not chunk:
            raise EOFError("a member is cut")
        while chunk and not inflater.eof:
            part = inflater.decompress(chunk, CHUNK_BYTES)
            if taken <= max_bytes:
                parts.append(part)
            taken += len(part)
            chunk = inflater.unconsumed_tail
    return b"".join(parts), file.tell() - len(inflater.unused_data)


def _descriptor_bytes(file: BinaryIO, end: int) -> int:
    """How long the sizes behind a member are: with or without a signature, in four bytes each."""
    file.seek(end)
    return 16 if file.read(4) == DESCRIPTOR_SIGNATURE else 12
