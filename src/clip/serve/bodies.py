"""Read the body of a request within limits of size, time and memory, and parse it."""

from __future__ import annotations

import asyncio
import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from .request_error import RequestError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator

    from starlette.requests import Request

    from .service import Service

MAX_JSON_VALUES = 500_000  # in lists and objects: each takes a hundred bytes of memory, whatever it holds
LARGE_BYTES = 100_000  # of JSON, which a thread parses
CHUNK_BYTES = 65_536  # of a form that is parsed before others have their turn
MAX_PARTS = 4096  # of a form


class Held:
    """The bytes of one request's body that are counted as held."""

    def __init__(self, service: Service) -> None:
        self._service, self.size_bytes = service, 0

    def grow(self, size_bytes: int) -> None:
        """Count more bytes. Raises: RequestError where all requests hold too many."""
        if self._service.held_bytes + size_bytes > self._service.job.traffic.held_bytes:
            self._service.metrics.count_rejection("memory")
            message = "the bodies of other requests take all the memory that they may. Try again later."
            raise RequestError(429, message, "overloaded", retry_after_s=1.0, close=True)
        self._service.held_bytes += size_bytes
        self.size_bytes += size_bytes

    def release(self) -> None:
        """Count the bytes no more."""
        self._service.held_bytes -= self.size_bytes
        self.size_bytes = 0


@contextmanager
def hold(service: Service) -> Generator[Held]:
    """Count the bytes of a body until the end of the block."""
    held = Held(service)
    try:
        yield held
    finally:
        held.release()


async def read_body(request: Request, service: Service, held: Held) -> bytes:
    """Return the body of a request. Raises: RequestError for one that is too large, too slow or compressed."""
    limits = service.job.traffic
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        message = f"the body has the content encoding {encoding!r}, expected none. Send it as it is."
        raise RequestError(415, message, "unsupported_encoding", close=True)
    length = request.headers.get("content-length", "0")
    if length.isdigit() and int(length) > limits.max_body_bytes:
        raise _make_size_error(limits.max_body_bytes)
    body = bytearray()
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for chunk in request.stream():
                if len(body) + len(chunk) > limits.max_body_bytes:
                    raise _make_size_error(limits.max_body_bytes)
                held.grow(len(chunk))
                body += chunk
    except TimeoutError as exc:
        message = f"the body did not arrive in {limits.body_seconds:g} s. Send it faster, or in smaller requests."
        raise RequestError(408, message, "body_timeout", close=True) from exc
    return bytes(body)


def _make_size_error(limit: int) -> RequestError:
    message = f"the body is larger than {limit:,} bytes. Send fewer or smaller images in one request."
    return RequestError(413, message, "request_too_large", close=True)


async def parse_json(body: bytes) -> dict[str, Any]:
    """Return the object that a body is in JSON. Raises: RequestError."""
    value = parse_object(body) if len(body) < LARGE_BYTES else await asyncio.to_thread(parse_object, body)
    await asyncio.sleep(0)
    return value


def parse_object(body: bytes | str) -> dict[str, Any]:
    """Return the object that a text is in JSON. Raises: RequestError."""
    marks = (b",", b"[", b"{") if isinstance(body, bytes) else (",", "[", "{")
    if sum(body.count(mark) for mark in marks) > MAX_JSON_VALUES:  # type: ignore[arg-type]  # pyright: ignore
        message = f"the body has more than {MAX_JSON_VALUES:,} values, expected fewer. Send several requests."
        raise RequestError(400, message, "too_many_items")
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as exc:
        reason = "it is nested too deeply" if isinstance(exc, RecursionError) else str(exc)
        raise RequestError(400, f"the body is no JSON: {reason}. Send a JSON object.", "invalid_json") from exc
    if not isinstance(value, dict):
        raise RequestError(400, 'the body is no JSON object. Send one, as in {"input": ...}.', "invalid_json")
    return cast("dict[str, Any]", value)


async def parse_form(body: bytes, headers: Headers) -> list[tuple[str, str | bytes]]:
    """Return the fields and the files of a multipart body by their names, in order. Raises: RequestError."""

    async def pieces() -> AsyncGenerator[bytes]:
        for start in range(0, len(body), CHUNK_BYTES):
            yield body[start : start + CHUNK_BYTES]
            await asyncio.sleep(0)

    parser = MultiPartParser(headers, pieces(), max_files=MAX_PARTS, max_fields=MAX_PARTS, max_part_size=len(body))
    parser.spool_max_size = len(body) + 1  # no file goes to the disk
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError) as exc:
        reason = exc.message if isinstance(exc, MultiPartException) else "it has no boundary"
        message = f"the form cannot be read: {reason}. Send multipart/form-data."
        raise RequestError(400, message, "invalid_form") from exc
    try:
        parts = form.multi_items()
        return [(name, await part.read() if isinstance(part, UploadFile) else part) for name, part in parts]
    finally:
        await form.close()


async def wait_gone(request: Request) -> None:
    """Return when the client of a request, whose body has been read, is gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
