"""Read tar archives, plain or compressed, from front to back."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from ..records import ContainerPart, Failure, Member
from .files import CHUNK_BYTES, stat_file
from .members import DAMAGE, PartReader, Selection, is_hidden, read_whole
from .samples import Samples
from .sidecars import identify, is_sidecar

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator


MAX_HEADER_BYTES = 1_000_000  # of a long name or of PAX attributes, which tarfile reads whole
DRAINED_BYTES = 64_000_000  # read after an archive's end, for the checksum of its compression
END_MARK = "EOFHeaderError"  # the error by which tarfile says that an archive is over
EXTENDED_TYPES = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)
PEEKED_BYTES = 6
MAGICS = ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\x00", lzma.open))


class TarArchive:
    """A tar archive: one part, as its members are known only when it is read."""

    endings: tuple[str, ...] = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")

    def parts(self, path: str, own_id: str, shard_size: int, selection: Selection) -> Iterator[ContainerPart]:  # noqa: ARG002
        """Return the one part. Raises: InputError where a server has no such file."""
        yield ContainerPart(own_id, path, *stat_file(path), columns=identify(selection.columns))

    def members(self, file: BinaryIO, part: ContainerPart, reader: PartReader) -> Generator[Member | Failure]:  # noqa: ARG002
        """Read the images of an archive, in order; the failure of the rest is the last outcome."""
        ends: list[Exception] = []
        samples = Samples(reader) if reader.takes_sidecars else None
        try:
            with _decompress(file) as plain:
                with tarfile.open(
                    fileobj=plain, mode="r|", tarinfo=_make_header_class(ends), errors="surrogateescape"
                ) as archive:
                    while (header := archive.next()) is not None:
                        archive.members = []  # pyright: ignore[reportAttributeAccessIssue]  or it keeps all headers
                        if samples is not None and header.isreg() and not is_hidden(header.name):
                            yield from _take_member(archive, header, reader, samples)
                        elif (outcome := _read_member(archive, header, reader)) is not None:
                            yield outcome
                if not ends or type(ends[-1]).__name__ != END_MARK:  # tarfile accepts a cut archive as complete
                    raise tarfile.ReadError(f"no end mark: {ends[-1] if ends else 'it stops'}")
                for _ in range(0, DRAINED_BYTES, CHUNK_BYTES):
                    if not plain.read(CHUNK_BYTES):
                        break
                if samples is not None:
                    yield from samples.end()
        except DAMAGE as exc:
            if samples is not None:
                yield from samples.end(is_cut=True)
            yield reader.fail_rest(exc)


def _take_member(
    archive: tarfile.TarFile, header: tarfile.TarInfo, reader: PartReader, samples: Samples
) -> Iterator[Member | Failure]:
    """Put a member into its sample; yield the images of the sample that ends before it."""
    yield from samples.begin(header.name)
    if is_sidecar(header.name):
        reader.choose(header.name)  # which counts it
        samples.add_beside(header.name, header.size, cast("BinaryIO", archive.extractfile(header)).read)
    elif (outcome := _read_member(archive, header, reader)) is not None:
        samples.add_image(header.name, outcome)


def _read_member(archive: tarfile.TarFile, header: tarfile.TarInfo, reader: PartReader) -> Member | Failure | None:
    if header.isdir():
        return None
    if not header.isreg():
        reader.ignored["link to a file" if header.issym() or header.islnk() else "not a file"] += 1
        return None
    if (own_id := reader.choose(header.name)) is None:
        return None
    return reader.read(own_id, header.name, header.size, lambda: _read_bytes(archive, header))


def _read_bytes(archive: tarfile.TarFile, header: tarfile.TarInfo) -> bytes:
    data = read_whole(cast("BinaryIO", archive.extractfile(header)), header.size)
    if len(data) < header.size:
        raise tarfile.ReadError("unexpected end of data")
    return data


def _make_header_class(ends: list[Exception]) -> type[tarfile.TarInfo]:
    """Return a reader of headers that appends to `ends` the errors tarfile hides, and refuses enormous headers.

    tarfile reads the headers of one member, however many, into memory, and keeps those that hold for a whole archive.
    """
    before, of_all = 0, 0  # bytes of the headers that extend the next member, and all

    class Header(tarfile.TarInfo):
        @classmethod
        def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> tarfile.TarInfo:
            try:
                return super().frombuf(buf, encoding, errors)
            except tarfile.HeaderError as exc:
                ends.append(exc)
                raise

        def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
            nonlocal before, of_all
            before = before + self.size if self.type in EXTENDED_TYPES else 0
            of_all += self.size if self.type == tarfile.XGLTYPE else 0
            if max(before, of_all) > MAX_HEADER_BYTES:
                raise tarfile.ReadError(f"headers of {max(before, of_all):,} bytes")
            return super()._proc_member(archive)  # type: ignore[misc]  # pyright: ignore

        def _proc_sparse(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
            with _limit_reading(archive):
                return super()._proc_sparse(archive)  # type: ignore[misc]  # pyright: ignore

        def _proc_gnusparse_10(self, following: object, headers: object, archive: tarfile.TarFile) -> None:
            with _limit_reading(archive):
                super()._proc_gnusparse_10(following, headers, archive)  # type: ignore[misc]  # pyright: ignore

    return Header


class _Limited:
    """A file of which no more than a header's bytes are read: tarfile keeps a list of the holes of a sparse member."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._left = MAX_HEADER_BYTES
        self.tell = file.tell

    def read(self, size: int) -> bytes:
        self._left -= size
        if self._left < 0:
            raise tarfile.ReadError(f"a list of holes of more than {MAX_HEADER_BYTES:,} bytes")
        return self._file.read(size)


@contextmanager
def _limit_reading(archive: tarfile.TarFile) -> Generator[None]:
    file = archive.fileobj
    archive.fileobj = cast("Any", _Limited(file))
    try:
        yield
    finally:
        archive.fileobj = file


@contextmanager
def _decompress(file: BinaryIO) -> Generator[BinaryIO]:
    """Open a file that may be compressed, by its first bytes; checksums are verified at its end."""
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
