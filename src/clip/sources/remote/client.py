"""Names of files on servers -> their bytes, with patience and of one version. Knows nothing about what is in them.

Nothing waits for ever: a server that is silent, or sends next to nothing, has failed; what may pass is tried again. A
body that is shorter than announced is never taken. A file that is read in several requests is pinned to the version
that the first one found, or that was listed. Where a server sends no parts of files, or none of the file's own bytes,
the file is fetched whole into a temporary one without a name.
"""

from __future__ import annotations

import asyncio
import io
import random
import re
import shutil
import tempfile
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar, cast
from urllib.parse import unquote, urlsplit

from ...errors import InputError
from .protocol import TransportError
from .schemes import CHUNK_BYTES, HTTP, SILENCE_S, scheme_of, server_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterator
    from concurrent.futures import Future

    from .protocol import Answer, Status

T = TypeVar("T")

REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
PATTERN_IN_URL = re.compile(r"[*\[]")
FIRST_BYTES, MOST_BYTES = 1 << 16, 1 << 23  # of a part that is asked for; twice as many while they follow each other
PARTS_HELD = 4  # of a file: the columns of a table lie apart
MAX_WAIT_S = 30.0
CHANGED = "it changed while it was read"
ENCODINGS = ("gzip", "deflate")


@dataclass(frozen=True)
class Patience:
    """How long to bear with a server."""

    attempts: int = 4
    silence_s: float = SILENCE_S  # for an answer to begin, and between two pieces of it
    first_wait_s: float = 1.0  # before the second attempt; doubled each time, up to MAX_WAIT_S
    grace_s: float = 60.0  # before a body has to come at least at the next speed
    least_bytes_per_s: float = 10_000.0


PATIENCE = Patience()


def is_remote(name: str) -> bool:
    """Whether a name is a URL."""
    return REMOTE.match(name) is not None


def lists(url: str) -> bool:
    """Whether there are names below a URL that its server tells."""
    return scheme_of(url) not in HTTP


def path_of(name: str) -> str:
    """The part of a name that tells what it is: of a web address that before its query."""
    return unquote(urlsplit(name).path) if is_remote(name) and not lists(name) else name


def prepare(url: str) -> None:
    """Make ready what its scheme needs, for the first of its files. Raises: InputError."""
    server_of(scheme_of(url))


def check(url: str) -> None:
    """Refuse what cannot be read from anywhere. Raises: InputError."""
    prepare(url)
    if not lists(url) and (path_of(url).endswith("/") or PATTERN_IN_URL.search(urlsplit(url).path)):
        raise InputError(
            url,
            "a web server lists nothing",
            "the address of a file",
            "Name a list of addresses.",
        )


def status(url: str) -> Status:
    """What is told of a file. Raises: InputError where its server cannot tell."""
    try:
        return wait_for(_patiently(lambda: _spoken(server_of(scheme_of(url)).status(url))))
    except OSError as exc:
        raise InputError(
            url,
            f"{exc}",
            "a file",
            "Check the address, or try again later.",
        ) from exc


def listed(prefix: str) -> Iterator[tuple[str, Status]]:
    """All files below a prefix, by URL, as their server orders them. Raises: InputError where it does not list all."""
    server = server_of(scheme_of(prefix))
    token = None
    try:
        while True:
            found, token = wait_for(_patiently(lambda: _spoken(server.page(prefix, token))))  # noqa: B023  called at once
            yield from found
            if token is None:
                return
    except OSError as exc:
        raise InputError(
            prefix,
            f"cannot be listed ({exc})",
            "names",
            "Check it, or try again later.",
        ) from exc


def read(url: str, max_bytes: int) -> bytes:
    """The bytes of a file. Raises: OSError, and InputError for one of more than `max_bytes`."""
    return wait_for(fetched(url, max_bytes))


async def fetched(url: str, max_bytes: int, reserve: Callable[[int], Awaitable[None]] | None = None) -> bytes:
    """Likewise, where fsspec's requests run; `reserve` is asked before so many bytes more are held."""
    server = server_of(scheme_of(url))
    held = 0

    async def attempt() -> bytes:
        parts: list[bytes] = []
        taken = 0

        async def take(announced: int, part: bytes) -> None:
            nonlocal taken, held
            parts.append(part)
            taken += len(part)
            if max(announced, taken) > max_bytes:
                found = f"{announced:,} bytes" if announced > max_bytes else f"more than {max_bytes:,} bytes"
                raise InputError(f"{found}, expected at most {max_bytes:,}. Leave it out, or raise --max-bytes.")
            if reserve is not None and max(announced, taken) > held:
                more, held = max(announced, taken) - held, max(announced, taken)
                await reserve(more)

        await _received(await _spoken(server.get(url, 0, None)), take)
        return b"".join(parts)

    try:
        return await _patiently(attempt)
    except OSError as exc:
        advice = "Check the address." if isinstance(exc, FileNotFoundError) else "Try again later, with --update."
        raise type(exc)(f"{exc}, expected the file. {advice}") from exc


def opened(path: str, as_listed: tuple[int, int] | None = None) -> BinaryIO:
    """A file here or on a server, to be read anywhere. Raises: OSError.

    One on a server has to be of the size and time of change `as_listed`, if they are given.
    """
    if not is_remote(path):
        return Path(path).open("rb")
    file = _Parts(path)
    found = file.status
    if as_listed is not None and (found.size_bytes or 0, found.modified_ns) != as_listed:
        raise OSError("it changed since it was listed")
    return cast("BinaryIO", io.BufferedReader(file, CHUNK_BYTES)) if file.in_parts else _spooled(path, found)


def begun(coroutine: Coroutine[None, None, T]) -> Future[T]:
    """Have a coroutine run where fsspec's requests do."""
    from fsspec.asyn import get_loop

    return asyncio.run_coroutine_threadsafe(coroutine, get_loop())


def wait_for(coroutine: Coroutine[None, None, T]) -> T:
    """What a coroutine gives, run where fsspec's requests do. One that is not waited for any more is ended."""
    future = begun(coroutine)
    try:
        return future.result()
    finally:
        future.cancel()


async def _patiently(attempt: Callable[[], Awaitable[T]]) -> T:
    """What an attempt gives, the first or a later one. Raises: OSError when patience is at an end."""
    number = 1
    while True:
        try:
            return await attempt()
        except TransportError as trouble:
            if not trouble.passes or number >= PATIENCE.attempts:
                times = f" {number} times" if number > 1 else ""
                raise trouble.as_error(trouble.said + times) from trouble
            wait_s = PATIENCE.first_wait_s * 2 ** (number - 1) * random.uniform(0.7, 1.3)
            await asyncio.sleep(min(max(wait_s, trouble.wait_s), MAX_WAIT_S))
            number += 1


async def _spoken(answer: Awaitable[T]) -> T:
    """What a server answers, within the time for that."""
    try:
        async with asyncio.timeout(PATIENCE.silence_s):
            return await answer
    except TimeoutError as exc:
        raise TransportError(f"the server was silent for {PATIENCE.silence_s:g} s", passes=True) from exc


async def _received(answer: Answer, take: Callable[[int, bytes], Awaitable[None]]) -> int:
    """Have a whole body taken, piece by piece, and tell its length; `take` is told first what is announced, or 0."""
    decoder = None
    if answer.encoding:
        if answer.encoding not in ENCODINGS:
            raise TransportError(f"the server encodes it ({answer.encoding}), though asked not to")
        decoder = zlib.decompressobj(zlib.MAX_WBITS | 32 if answer.encoding == "gzip" else zlib.MAX_WBITS)
    came = given = 0
    begin = time.monotonic()
    waited_s = 0.0  # for the one who takes
    try:
        await take(answer.length or 0 if decoder is None else 0, b"")
        while piece := await _spoken(answer.read()):
            came += len(piece)
            spent_s = time.monotonic() - begin - waited_s
            if spent_s > PATIENCE.grace_s and came < spent_s * PATIENCE.least_bytes_per_s:
                raise TransportError(f"the server sent {came:,} bytes in {spent_s:.0f} s", passes=True)
            turn = time.monotonic()
            while piece:
                part = decoder.decompress(piece, CHUNK_BYTES) if decoder else piece
                piece = decoder.unconsumed_tail if decoder else b""
                given += len(part)
                await take(0, part)
            waited_s += time.monotonic() - turn
    except zlib.error as exc:
        raise TransportError(f"what the server encoded is damaged ({exc})", passes=True) from exc
    finally:
        answer.close()
    if (answer.length is not None and came != answer.length) or (decoder is not None and not decoder.eof):
        raise TransportError(f"the server sent {came:,} of {answer.length or 0:,} bytes", passes=True)
    return given


class _Parts(io.RawIOBase):
    """A file on a server, read in parts, all of the version that is there at first."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._server = server_of(scheme_of(url))
        self._held: list[tuple[int, bytes]] = []  # parts and their places, the one used last behind
        self._place = 0
        self._next_bytes = FIRST_BYTES
        self.status, self.in_parts = wait_for(_patiently(self._begin))

    async def _begin(self) -> tuple[Status, bool]:
        """What is told of the file, and whether its server sends parts."""
        answer = await _spoken(self._server.get(self._url, 0, FIRST_BYTES))
        size = answer.status.size_bytes
        if answer.encoding or size is None or answer.length not in (None, min(size, FIRST_BYTES)):
            answer.close()
            return answer.status, False
        await self._take(answer, 0, min(size, FIRST_BYTES))
        return answer.status, True

    async def _ask(self, start: int, stop: int) -> None:
        answer = await _spoken(self._server.get(self._url, start, stop))
        if answer.status != self.status:
            answer.close()
            raise OSError(CHANGED)
        if answer.start != start:
            answer.close()
            raise TransportError("the server sends another part than the one asked for", passes=True)
        await self._take(answer, start, stop)

    async def _take(self, answer: Answer, start: int, stop: int) -> None:
        parts: list[bytes] = []
        taken = 0

        async def take(_: int, part: bytes) -> None:
            nonlocal taken
            taken += len(part)
            if taken > stop - start:
                raise TransportError("the server sends another part than the one asked for", passes=True)
            parts.append(part)

        await _received(answer, take)
        if taken != stop - start:
            raise TransportError(f"the server sent {taken:,} of {stop - start:,} bytes", passes=True)
        self._held = [*self._held[1 - PARTS_HELD :], (start, b"".join(parts))]

    def _part(self) -> tuple[int, bytes]:
        """The part in which the next byte stands."""
        place, size = self._place, self.status.size_bytes or 0
        for index, (start, data) in enumerate(self._held):
            if start <= place < start + len(data):
                self._held.append(self._held.pop(index))
                return self._held[-1]
        follows = any(start + len(data) == place for start, data in self._held)
        self._next_bytes = min(2 * self._next_bytes, MOST_BYTES) if follows else FIRST_BYTES
        stop = min(size, place + self._next_bytes)
        wait_for(_patiently(lambda: self._ask(place, stop)))
        return self._held[-1]

    def readinto(self, buffer: memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        """As many bytes as the next part has, at most."""
        if self._place >= (self.status.size_bytes or 0) or not len(buffer):
            return 0
        start, data = self._part()
        found = memoryview(data)[self._place - start :][: len(buffer)]
        memoryview(buffer).cast("B")[: len(found)] = found
        self._place += len(found)
        return len(found)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """To a place in the file."""
        before = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self.status.size_bytes or 0}[whence]
        self._place = max(0, before + offset)
        return self._place

    def tell(self) -> int:
        """The place in the file."""
        return self._place

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True


def _spooled(url: str, expected: Status) -> BinaryIO:
    """A file that a server gives as a whole only, in a temporary one that is gone when it is closed."""
    folder = tempfile.gettempdir()
    if (expected.size_bytes or 0) > shutil.disk_usage(folder).free:
        raise OSError(f"the server sends no parts of it, and {folder} has no room for {expected.size_bytes:,} bytes")
    file = cast("BinaryIO", tempfile.TemporaryFile())  # noqa: SIM115  the caller's

    async def take(_: int, part: bytes) -> None:
        file.write(part)

    async def attempt() -> None:
        file.seek(0)
        file.truncate()
        answer = await _spoken(server_of(scheme_of(url)).get(url, 0, None))
        if (answer.status.etag, answer.status.modified_s) != (expected.etag, expected.modified_s):
            answer.close()
            raise OSError(CHANGED)
        await _received(answer, take)

    try:
        wait_for(_patiently(attempt))
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return file
