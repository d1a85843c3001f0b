"""Read files on servers: with retries, within limits of time and size, and all of one version.

Nothing waits for ever: a server that is silent or very slow counts as failed, and failures that may pass are retried. A
body that is shorter than announced is never accepted. All requests for one file must be answered with the version that
the first one had, or that was listed. Where a server sends no parts of files, or encodes their bytes, the whole file is
downloaded to a temporary file without a name.
"""

from __future__ import annotations

import asyncio
import errno
import io
import os
import re
import shutil
import tempfile
import time
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, TypeVar, cast
from urllib.parse import unquote, unquote_to_bytes, urlsplit

from ...errors import InputError
from ...retry import Patience
from .protocol import Answer, Status, TransportError
from .schemes import CHUNK_BYTES, HTTP, get_scheme, get_server

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterator
    from concurrent.futures import Future


T = TypeVar("T")

REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
LOCAL = re.compile(r"file:(?://(?:localhost)?(?=/)|(?!//))(/.*)", re.IGNORECASE | re.DOTALL)
PATTERN_IN_URL = re.compile(r"[*\[]")
# Of a requested part; doubled while the parts are consecutive: few requests for a tar, small ones for a zip's list. One
# long answer would be cut by servers when the model is slower than the network.
FIRST_BYTES, MOST_BYTES = 1 << 16, 1 << 23
PARTS_HELD = 4  # of a file: the columns of a table are far apart
CHANGED = "it changed while it was read"
ENCODINGS = ("gzip", "deflate")


@dataclass(frozen=True)
class RequestPatience(Patience):
    """When to repeat a request, and when to give it up."""

    jitter: float = 0.3
    grace_s: float = 60.0  # before a body must come at the minimum speed
    min_bytes_per_s: float = 10_000.0


PATIENCE = RequestPatience()


def is_remote(name: str) -> bool:
    """Whether a name is a URL."""
    return REMOTE.match(name) is not None


def get_local_path(name: str) -> str | None:
    """Return the path that a URI of this machine means, %20 and the like decoded; None for any other name."""
    local = LOCAL.fullmatch(name)
    if local is None:
        return None
    try:
        return os.fsdecode(unquote_to_bytes(os.fsencode(local[1])))
    except UnicodeEncodeError:  # half of a surrogate pair, as JSON can spell it
        return local[1]


def can_list(url: str) -> bool:
    """Whether the server of a URL lists the names below it."""
    return get_scheme(url) not in HTTP


def get_path(name: str) -> str:
    """Return the part of a name that ends with the file's name: of a web address the path, without its query."""
    return unquote(urlsplit(name).path) if is_remote(name) and not can_list(name) else name


def prepare(url: str) -> None:
    """Load the library for a scheme before the first request. Raises: InputError where it is missing."""
    get_server(get_scheme(url))


def check_url(url: str) -> None:
    """Raise InputError for a URL that no server can answer."""
    prepare(url)
    if not can_list(url) and (get_path(url).endswith("/") or PATTERN_IN_URL.search(urlsplit(url).path)):
        raise InputError(url, "a web server lists nothing", "the address of a file", "Name a list of addresses.")


def make_size_error(item: str, size: str, max_bytes: int) -> InputError:
    """Return the error for an image of more bytes than allowed."""
    return InputError(item, f"{size} bytes", f"at most {max_bytes:,}", "Leave it out, or raise `max_bytes`.")


def get_status(url: str) -> Status:
    """Request the status of a file. Raises: InputError where its server has none."""
    try:
        return wait_for(_retry(lambda: _await_answer(get_server(get_scheme(url)).get_status(url))))
    except OSError as exc:
        raise InputError(url, f"{exc}", "a file", f"{_suggest(exc)}.") from exc


def list_files(prefix: str) -> Iterator[tuple[str, Status]]:
    """List all files below a prefix, by URL, in the server's order. Raises: InputError where the listing breaks off."""
    server = get_server(get_scheme(prefix))
    token = None
    try:
        while True:
            page, token = wait_for(_retry(lambda: _await_answer(server.list_page(prefix, token))))  # noqa: B023  called at once
            yield from page
            if token is None:
                return
    except OSError as exc:
        raise InputError(prefix, f"cannot be listed ({exc})", "names", f"{_suggest(exc)}.") from exc


def read(url: str, max_bytes: int) -> bytes:
    """Return the bytes of a file. Raises: OSError, and InputError for a file of more than `max_bytes`."""
    return wait_for(fetch(url, max_bytes))


async def fetch(url: str, max_bytes: int, reserve: Callable[[int], Awaitable[None]] | None = None) -> bytes:
    """Do the same as `read`, where fsspec's requests run; `reserve(n)` is awaited before n more bytes are held."""
    server = get_server(get_scheme(url))
    held = 0

    async def attempt() -> bytes:
        whole = io.BytesIO()  # joining parts would hold all of them twice

        async def take(announced: int, part: bytes) -> None:
            nonlocal held
            whole.write(part)
            taken = whole.tell()
            if max(announced, taken) > max_bytes:
                size = f"{announced:,}" if announced > max_bytes else f"more than {max_bytes:,}"
                raise make_size_error(url, size, max_bytes)
            if reserve is not None and max(announced, taken) > held:
                more, held = max(announced, taken) - held, max(announced, taken)
                await reserve(more)

        await _receive(await _await_answer(server.get(url, 0, None)), take)
        return whole.getvalue()

    try:
        return await _retry(attempt)
    except OSError as exc:
        again = ", with update=True" if isinstance(exc, ConnectionError) else ""
        raise type(exc)(f"{exc}, expected the file. {_suggest(exc)}{again}.") from exc


def _suggest(exc: OSError) -> str:
    """Return what helps against a request that failed: only what passes by itself is worth another try."""
    if isinstance(exc, PermissionError):
        return "Check the credentials, or get an address whose signature has not expired"
    return "Try again later" if isinstance(exc, ConnectionError) else "Check the address"


def open_(url: str, as_listed: tuple[int, int] | None = None) -> BinaryIO:
    """Open a file on a server; it can be read at any place. Raises: OSError.

    It must have the size and time of change `as_listed`, if they are given.
    """
    file = _RangedFile(url)
    status = file.status
    if as_listed is not None and (status.size_bytes or 0, status.modified_ns) != as_listed:
        raise OSError("it changed since it was listed")
    return cast("BinaryIO", io.BufferedReader(file, CHUNK_BYTES)) if file.has_ranges else _download(url, status)


def start(coroutine: Coroutine[None, None, T]) -> Future[T]:
    """Start a coroutine where fsspec's requests run."""
    from fsspec.asyn import get_loop

    return asyncio.run_coroutine_threadsafe(coroutine, get_loop())


def wait_for(coroutine: Coroutine[None, None, T]) -> T:
    """Return a coroutine's result, from where fsspec's requests run; an interrupted wait cancels it."""
    future = start(coroutine)
    try:
        return future.result()
    finally:
        future.cancel()


async def _retry(attempt: Callable[[], Awaitable[T]]) -> T:
    """Return the result of the first attempt that succeeds. Raises: OSError after the last one."""
    number = 1
    while True:
        try:
            return await attempt()
        except TransportError as error:
            if not error.retryable or number >= PATIENCE.attempts:
                times = f" {number} times" if number > 1 else ""
                raise error.as_error(error.message + times) from error
            number += 1
            await asyncio.sleep(PATIENCE.wait_s(number, error.wait_s))


async def _await_answer(answer: Awaitable[T]) -> T:
    """Wait for a server's answer, or the next piece of it, no longer than `timeout_s`."""
    try:
        async with asyncio.timeout(PATIENCE.timeout_s):
            return await answer
    except TimeoutError as exc:
        raise TransportError(f"the server was silent for {PATIENCE.timeout_s:g} s", retryable=True) from exc


async def _receive(answer: Answer, take: Callable[[int, bytes], Awaitable[None]]) -> int:
    """Pass a whole body to `take(announced, piece)`, and return its length.

    The first call has the announced length, or 0 if there is none, and no bytes; the others have 0 and a piece.
    """
    decoder = None
    if answer.encoding:
        if answer.encoding not in ENCODINGS:
            raise TransportError(f"the server encodes it ({answer.encoding}), though asked not to")
        decoder = zlib.decompressobj(zlib.MAX_WBITS | 32 if answer.encoding == "gzip" else zlib.MAX_WBITS)
    received = decoded = 0
    begin = time.monotonic()
    waited_s = 0.0  # for `take`
    try:
        await take(answer.length or 0 if decoder is None else 0, b"")
        while piece := await _await_answer(answer.read()):
            received += len(piece)
            spent_s = time.monotonic() - begin - waited_s
            if spent_s > PATIENCE.grace_s and received < spent_s * PATIENCE.min_bytes_per_s:
                raise TransportError(f"the server sent {received:,} bytes in {spent_s:.0f} s", retryable=True)
            turn = time.monotonic()
            while piece:
                part = decoder.decompress(piece, CHUNK_BYTES) if decoder else piece
                piece = decoder.unconsumed_tail if decoder else b""
                decoded += len(part)
                await take(0, part)
            waited_s += time.monotonic() - turn
    except zlib.error as exc:
        raise TransportError(f"the server's encoded body is damaged ({exc})", retryable=True) from exc
    finally:
        answer.close()
    if (answer.length is not None and received != answer.length) or (decoder is not None and not decoder.eof):
        raise TransportError(f"the server sent {received:,} of {answer.length or 0:,} bytes", retryable=True)
    return decoded


def _make_changed_error() -> OSError:
    """Return the error for a file of two versions; its errno tells it from what libraries raise over damaged bytes."""
    error = OSError(CHANGED)
    error.errno = errno.ESTALE
    return error


class _RangedFile(io.RawIOBase):
    """A file on a server, read in parts, all of the version that the first request found."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._server = get_server(get_scheme(url))
        self._held: list[tuple[int, bytes]] = []  # parts and their places, the one used last at the end
        self._place = 0
        self._next_bytes = FIRST_BYTES
        self.status, self.has_ranges = wait_for(_retry(self._begin))

    async def _begin(self) -> tuple[Status, bool]:
        """Request the first part; return the file's status, and whether its server sends parts."""
        answer = await _await_answer(self._server.get(self._url, 0, FIRST_BYTES))
        size = answer.status.size_bytes
        if answer.encoding or size is None or answer.length not in (None, min(size, FIRST_BYTES)):
            answer.close()
            return answer.status, False
        await self._receive(answer, 0, min(size, FIRST_BYTES))
        return answer.status, True

    async def _request(self, start: int, stop: int) -> None:
        answer = await _await_answer(self._server.get(self._url, start, stop))
        if answer.status != self.status:
            answer.close()
            raise _make_changed_error()
        if answer.start != start:
            answer.close()
            raise TransportError("the server sends another part than the requested one", retryable=True)
        await self._receive(answer, start, stop)

    async def _receive(self, answer: Answer, start: int, stop: int) -> None:
        parts: list[bytes] = []
        taken = 0

        async def take(_: int, part: bytes) -> None:
            nonlocal taken
            taken += len(part)
            if taken > stop - start:
                raise TransportError("the server sends another part than the requested one", retryable=True)
            parts.append(part)

        await _receive(answer, take)
        if taken != stop - start:
            raise TransportError(f"the server sent {taken:,} of {stop - start:,} bytes", retryable=True)
        self._held = [*self._held[1 - PARTS_HELD :], (start, b"".join(parts))]

    def _find_part(self) -> tuple[int, bytes]:
        """Return the part that contains the next byte; request it if it is not held."""
        place, size = self._place, self.status.size_bytes or 0
        for index, (start, data) in enumerate(self._held):
            if start <= place < start + len(data):
                self._held.append(self._held.pop(index))
                return self._held[-1]
        is_next = any(start + len(data) == place for start, data in self._held)
        self._next_bytes = min(2 * self._next_bytes, MOST_BYTES) if is_next else FIRST_BYTES
        stop = min(size, place + self._next_bytes)
        wait_for(_retry(lambda: self._request(place, stop)))
        return self._held[-1]

    def readinto(self, buffer: memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Read at most to the end of the current part."""
        if self._place >= (self.status.size_bytes or 0) or not len(buffer):
            return 0
        start, data = self._find_part()
        piece = memoryview(data)[self._place - start :][: len(buffer)]
        memoryview(buffer).cast("B")[: len(piece)] = piece
        self._place += len(piece)
        return len(piece)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a place in the file."""
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self.status.size_bytes or 0}[whence]
        self._place = max(0, origin + offset)
        return self._place

    def tell(self) -> int:
        """Return the place in the file."""
        return self._place

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True


def _download(url: str, expected: Status) -> BinaryIO:
    """Download a file that its server sends only whole, to a temporary file that is gone when it is closed."""
    folder = tempfile.gettempdir()
    if (expected.size_bytes or 0) > shutil.disk_usage(folder).free:
        raise OSError(f"the server sends no parts of it, and {folder} has no room for {expected.size_bytes:,} bytes")
    file = cast("BinaryIO", tempfile.TemporaryFile())  # noqa: SIM115  the caller's

    async def take(_: int, part: bytes) -> None:
        file.write(part)

    async def attempt() -> None:
        file.seek(0)
        file.truncate()
        answer = await _await_answer(get_server(get_scheme(url)).get(url, 0, None))
        if (answer.status.etag, answer.status.modified_s) != (expected.etag, expected.modified_s):
            answer.close()
            raise _make_changed_error()
        await _receive(answer, take)

    try:
        wait_for(_retry(attempt))
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return file
