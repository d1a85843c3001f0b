"""The images of a tar archive, in order. Knows nothing about models."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO, cast

from ..records import Failure, Member
from .members import CHUNK_BYTES, DAMAGE, Members

if TYPE_CHECKING:
    from collections.abc import Generator


TAR_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
MAX_HEADER_BYTES = 1_000_000  # of a long name or of PAX attributes, which tarfile reads whole
DRAINED_BYTES = 64_000_000  # read behind an archive's end, for the checksum of what it is compressed with
END_MARK = "EOFHeaderError"  # of tarfile's errors the one that says that an archive is over
EXTENDED_TYPES = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
PEEKED_BYTES = 6
MAGICS = ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\x00", lzma.open))


def tar_members(file: BinaryIO, members: Members) -> Generator[Member | Failure]:
    """The images of a tar archive, plain or compressed, read from front to back."""
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
