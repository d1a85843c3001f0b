"""Read zip archives: by the list at their end, or from the front where the list is gone."""

from __future__ import annotations

import io
import os
import stat
import struct
import zipfile
import zlib
from dataclasses import replace
from typing import TYPE_CHECKING, BinaryIO, cast

from ..errors import InputError
from ..records import ContainerPart, Failure, Item, Member
from .files import CHUNK_BYTES, open_file, stat_file
from .members import CHANGED, DAMAGE, PartReader, Selection, read_whole
from .remote.client import make_size_error
from .sidecars import MAX_BYTES, identify, is_sidecar, list_endings

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from ..budgets import Hold


LOCAL_HEADER = struct.Struct("<4s5H3I2H")  # before a member: signature, version, flags, method, ..., sizes, lengths
LOCAL_SIGNATURE, DESCRIPTOR_SIGNATURE = b"PK\x03\x04", b"PK\x07\x08"
ENCRYPTED, SIZES_FOLLOW, NAME_IS_UTF8 = 0x1, 0x8, 0x800  # flags of a member
ZIP64_SIZE = 0xFFFFFFFF
NOTHING: dict[str, bytes] = {}  # beside an image


class ZipArchive:
    """A zip archive, cut into parts by its list; one part if the list is gone."""

    endings: tuple[str, ...] = (".zip",)

    def parts(self, path: str, own_id: str, shard_size: int, selection: Selection) -> Iterator[ContainerPart | Failure]:
        """List the parts, with their numbers of entries that are not folders.

        Raises:  InputError where a server has no such file.
        """
        status = stat_file(path)
        try:
            with open_file(path) as file:
                count = _count_files(file)
        except OSError as exc:
            error = InputError(path, f"cannot be read ({exc})", remedy="Check its permissions.")
            yield replace(Failure.of(Item(own_id, path, 0), "read", exc), message=error.reason)
            return
        columns = identify(selection.columns)
        if count is None:
            yield ContainerPart(own_id, path, *status, columns=columns)
            return
        for start in range(0, count, shard_size):
            stop = min(start + shard_size, count)
            yield ContainerPart(own_id, path, *status, start, stop, stop - start, columns=columns)

    def members(self, file: BinaryIO, part: ContainerPart, reader: PartReader) -> Generator[Member | Failure]:
        """Read the images of a part. A damaged member becomes a failure; the others can still be read.

        The failure of the rest stands for the whole part where the archive cannot be opened, for the entries that its
        list has lost since it was cut into parts, and, without a list, for what follows the last member that was read.
        """
        try:
            archive = zipfile.ZipFile(file)
        except DAMAGE as exc:
            if part.stop is None:
                yield from _salvage(file, reader, exc)
            else:  # it had a list when it was cut into parts; read from the front, each part would give all
                yield reader.fail_rest(exc)
            return
        with archive:
            listed = _list_files(archive)
            beside = {one.filename: one for one in listed if reader.takes_sidecars and is_sidecar(one.filename)}

            def find(name: str) -> bytes | None:
                header = beside.get(name)
                if header is not None and header.file_size > MAX_BYTES:
                    raise make_size_error(name, f"{header.file_size:,}", MAX_BYTES)
                return None if header is None else _read_bytes(archive, header)

            headers = listed[part.start : part.stop]
            for header in headers:
                if (outcome := _read_member(archive, header, reader, find)) is not None:
                    yield outcome
            if len(headers) < (part.members or 0):
                yield reader.fail_rest(OSError(CHANGED))


def _count_files(file: BinaryIO) -> int | None:
    """Return how many files an archive lists; None where its list is gone."""
    try:
        with zipfile.ZipFile(file) as archive:
            return len(_list_files(archive))
    except DAMAGE:
        return None


def _list_files(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    return [header for header in archive.infolist() if not header.is_dir()]


def _read_member(
    archive: zipfile.ZipFile, header: zipfile.ZipInfo, reader: PartReader, find: Callable[[str], bytes | None]
) -> Member | Failure | None:
    if stat.S_ISLNK(header.external_attr >> 16):
        reader.ignored["link to a file"] += 1
        return None
    if (own_id := reader.choose(header.filename)) is None:
        return None
    try:
        return reader.read(own_id, header.filename, header.file_size, lambda: _read_bytes(archive, header), find)
    except DAMAGE as exc:
        return reader.fail(own_id, exc)


def _read_bytes(archive: zipfile.ZipFile, header: zipfile.ZipInfo) -> bytes:
    """Return the bytes of a member, at most as many as its header says: zipfile would inflate all that there are."""
    with archive.open(header) as member:
        return read_whole(cast("BinaryIO", member), header.file_size)


def _salvage(file: BinaryIO, reader: PartReader, lost: Exception) -> Iterator[Member | Failure]:
    """Read the images of an archive without its list, which is at its end and the first thing that a cut takes.

    zipfile needs the list; here the header before each member gives its name and size.
    """
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
                break  # the place of the next member is unknown
            own_id = None if name.endswith("/") else reader.choose(name)
            is_lacking = bool(list_endings(reader.selection.columns))
            kept = 0 if own_id is None or is_lacking else reader.max_bytes + 1
            held = reader.budget.hold()
            try:
                data, end = _inflate(file, begin, packed if known else None, method, kept, held)
            except DAMAGE:
                held.release()
                raise
            file.seek(end + (_measure_descriptor(file, end) if flags & SIZES_FOLLOW else 0))
            if own_id is None:
                continue
            if is_lacking:
                found = "what is beside it is not known, as the archive's list is gone"
                yield reader.fail(own_id, InputError(own_id, found, remedy="Restore the archive."))
            elif (outcome := reader.read(own_id, name, len(data), lambda: data, NOTHING.get, held)) is not None:  # noqa: B023  called at once
                yield outcome
    except DAMAGE as exc:
        lost = exc
    yield reader.fail_rest(lost)


def _inflate(file: BinaryIO, begin: int, packed: int | None, method: int, kept: int, held: Hold) -> tuple[bytes, int]:
    """Return the first `kept` bytes of a member, and the place where it ends; `held` grows with them."""
    if method == zipfile.ZIP_STORED and packed is not None:
        held.grow(min(packed, kept))
        data = read_whole(file, min(packed, kept))
        if len(data) < min(packed, kept):
            raise EOFError("a member is cut")
        return data, begin + packed
    if method != zipfile.ZIP_DEFLATED:
        raise NotImplementedError(f"compression method {method}")
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    whole = io.BytesIO()
    while not inflater.eof:
        chunk = file.read(CHUNK_BYTES)
        if not chunk:
            raise EOFError("a member is cut")
        while chunk and not inflater.eof:
            part = inflater.decompress(chunk, CHUNK_BYTES)[: kept - whole.tell()]
            held.grow(len(part))
            whole.write(part)
            chunk = inflater.unconsumed_tail
    return whole.getvalue(), file.tell() - len(inflater.unused_data)


def _measure_descriptor(file: BinaryIO, end: int) -> int:
    """Return the length of the sizes after a member: with or without a signature, in four bytes each."""
    file.seek(end)
    return 16 if file.read(4) == DESCRIPTOR_SIGNATURE else 12
