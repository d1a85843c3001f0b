"""The images of a zip archive, in order. Knows nothing about models."""

from __future__ import annotations

import os
import stat
import struct
import zipfile
import zlib
from typing import TYPE_CHECKING, BinaryIO

from ..records import Failure, Member
from .members import CHUNK_BYTES, DAMAGE, Members

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from ..records import ContainerPart

ZIP_ENDINGS = (".zip",)
LOCAL_HEADER = struct.Struct("<4s5H3I2H")  # of a zip's member: signature, version, flags, method, ..., sizes, lengths
LOCAL_SIGNATURE, DESCRIPTOR_SIGNATURE = b"PK\x03\x04", b"PK\x07\x08"
ENCRYPTED, SIZES_FOLLOW, NAME_IS_UTF8 = 0x1, 0x8, 0x800  # flags of a zip's member
ZIP64_SIZE = 0xFFFFFFFF


def zip_size(file: BinaryIO) -> int | None:
    """How many members a zip archive lists; None where its list is gone, so that it has to be read from the front."""
    try:
        with zipfile.ZipFile(file) as archive:
            return len(_listed(archive))
    except DAMAGE:
        return None


def _listed(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    return [header for header in archive.infolist() if not header.is_dir()]


def zip_members(file: BinaryIO, pack: ContainerPart, members: Members) -> Generator[Member | Failure]:
    """The images of a zip archive, or of a part of its list."""
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
    """The images of a zip archive without its list, which stands at the end: by the headers before each member."""
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
