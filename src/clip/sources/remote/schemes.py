"""One request to a server of files, over fsspec: bytes, status, a page of names. Knows nothing about patience.

    http://, https://    aiohttp, as fsspec's filesystem sets it up; no listing
    s3://                s3fs; gs:// gcsfs; each with its own credentials, endpoints and configuration
    others               whatever fsspec knows, with two requests where these need one

fsspec's caches of files and listings are passed by: what is asked for is what a server has now.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from ...errors import InputError
from .protocol import FORBIDDEN, GONE, Status, TransportError, refusal, said_of, seconds

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .protocol import Answer, Server

S3, GS, HTTP = ("s3", "s3a"), ("gs", "gcs"), ("http", "https")
SILENCE_S = 30.0  # without a byte, after which a request has failed
CHUNK_BYTES = 1 << 18
PIECE_BYTES = 1 << 23  # that are asked for by one call, of libraries that wait for all of them
OK, PARTIAL, NO_SUCH_RANGE = 200, 206, 416
CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")


def scheme_of(url: str) -> str:
    """What stands before ://, in small letters."""
    return url.partition("://")[0].lower()


@cache
def server_of(scheme: str) -> Server:
    """The server of a scheme. Raises: InputError for one that is unknown, or whose library is not installed."""
    import fsspec

    if scheme in ("file", "local"):
        raise InputError(
            f"{scheme}://",
            "is on this machine",
            "a path",
            f"Name it without {scheme}://.",
        )
    try:
        if scheme in HTTP:
            return _Http(_configured("http", {"client_kwargs": {"auto_decompress": False, "trust_env": True}}))
        if scheme in S3:
            config = {"connect_timeout": SILENCE_S, "read_timeout": SILENCE_S, "retries": {"total_max_attempts": 1}}
            filesystem = _configured("s3", {"config_kwargs": config})
            filesystem.retries = 1  # ours are enough
            return _S3(scheme, filesystem)
        if scheme in GS:
            return _Gs(scheme, _configured("gs", {"session_kwargs": {"auto_decompress": False}}))
        fsspec.get_filesystem_class(scheme)
    except ImportError as exc:
        raise InputError(
            f"{scheme}://",
            f"{exc}",
            "what reads from there",
            "Run: pip install 'clip-turbo[remote]'",
        ) from exc
    except ValueError as exc:
        raise InputError(
            f"{scheme}://",
            f"{exc}",
            "one that fsspec has",
            "Check the address.",
        ) from exc
    return _Other()


def _configured(scheme: str, options: dict[str, dict[str, Any]]) -> Any:
    """Fsspec's filesystem of a scheme, an instance of our own; what its configuration says goes before `options`."""
    import fsspec
    from fsspec.config import conf

    names = next(names for names in (HTTP, S3, GS) if scheme in names)
    for name in names:
        theirs = conf.get(name, {})
        options = {key: {**ours, **theirs.get(key, {})} for key, ours in options.items()}
    return fsspec.filesystem(scheme, skip_instance_cache=True, use_listings_cache=False, **options)


class _Streamed:
    """An answer of aiohttp's."""

    def __init__(self, response: Any) -> None:
        headers: Mapping[str, str] = response.headers
        self._response = response
        told = CONTENT_RANGE.match(headers.get("Content-Range", ""))
        length = headers.get("Content-Length", "")
        self.length = int(length) if length.isdigit() else None
        self.start = int(told[1]) if told and told[1] and response.status == PARTIAL else 0
        whole = int(told[3]) if told and told[3].isdigit() else self.length if response.status == OK else None
        self.encoding = headers.get("Content-Encoding", "").strip().lower()
        self.encoding = "" if self.encoding in ("identity", "aws-chunked") else self.encoding.removeprefix("x-")
        modified = headers.get("Last-Modified", "")
        size = None if self.encoding else whole
        self.status = Status(size, headers.get("X-Goog-Generation") or headers.get("ETag", ""), seconds(modified))

    async def read(self) -> bytes:
        import aiohttp

        try:
            return await self._response.content.read(CHUNK_BYTES)
        except (aiohttp.ClientError, OSError) as exc:
            raise TransportError(f"the server broke off ({said_of(exc)})", passes=True) from exc

    def close(self) -> None:
        self._response.close()  # where all was read, the connection has gone back already


class _Http:
    """Any web server."""

    def __init__(self, filesystem: Any) -> None:
        self._filesystem = filesystem

    async def _session(self) -> Any:
        return await self._filesystem.set_session()

    async def get(self, url: str, start: int, stop: int | None) -> Answer:
        return await self._answer(url, _headers(start, stop), start)

    async def _answer(self, url: str, headers: dict[str, str], start: int) -> Answer:
        import aiohttp
        import yarl

        try:
            session = await self._session()
            # As it is written, for a signature may depend on that; only what no URL may hold is quoted.
            address = yarl.URL(url, encoded=url.isascii() and url.isprintable() and " " not in url)
            response = await session.get(address, headers=headers)
        except (aiohttp.InvalidURL, ValueError) as exc:
            raise TransportError(f"the address is none ({said_of(exc)})") from exc
        except (aiohttp.ClientError, OSError) as exc:
            lasting = isinstance(exc, aiohttp.TooManyRedirects) or _is_unknown(exc)
            raise TransportError(f"the server cannot be reached ({said_of(exc)})", passes=not lasting) from exc
        if response.status == NO_SUCH_RANGE and not start:
            response.close()
            return _Empty(Status(0, response.headers.get("ETag", "")))
        if response.status not in (OK, PARTIAL):
            response.close()
            raise refusal(response.status, response.reason or "", response.headers.get("Retry-After", ""))
        return _Streamed(response)

    async def status(self, url: str) -> Status:
        answer = await self.get(url, 0, 1)  # not HEAD, for which a signed URL may not be signed
        answer.close()
        return answer.status

    async def page(self, url: str, token: Any) -> tuple[list[tuple[str, Status]], Any]:  # noqa: ARG002
        raise InputError(
            url,
            "a web server lists nothing",
            "a file",
            "Name a list of addresses.",
        )


class _Gs(_Http):
    """Google Cloud Storage: its addresses and headers are gcsfs's, the rest is HTTP."""

    def __init__(self, scheme: str, filesystem: Any) -> None:
        super().__init__(filesystem)
        self._scheme = scheme

    async def _session(self) -> Any:
        await self._filesystem._set_session()
        return self._filesystem.session

    async def get(self, url: str, start: int, stop: int | None) -> Answer:
        headers = self._filesystem._get_headers(_headers(start, stop))
        return await self._answer(self._filesystem.url(url), headers, start)

    async def page(self, url: str, token: Any) -> tuple[list[tuple[str, Status]], Any]:
        bucket, prefix = _split(url)
        asked = {"prefix": prefix, "fields": "nextPageToken,items(name,size,updated,generation)"}
        address = self._filesystem._format_path("b/{}/o", (bucket,))
        query = urlencode(asked | ({"pageToken": token} if token else {}))
        answer = await self._answer(f"{address}?{query}", self._filesystem._get_headers({}), 0)
        parts: list[bytes] = []
        while part := await answer.read():
            parts.append(part)
        try:
            told = json.loads(b"".join(parts))
        except ValueError as exc:
            raise TransportError(f"the server sent what is no JSON ({said_of(exc)})", passes=True) from exc
        found = [
            (
                f"{self._scheme}://{bucket}/{item['name']}",
                Status(int(item["size"]), str(item.get("generation", "")), seconds(item.get("updated", ""))),
            )
            for item in told.get("items", [])
        ]
        return found, told.get("nextPageToken")


class _S3:
    """Amazon S3, and what speaks as it does."""

    def __init__(self, scheme: str, filesystem: Any) -> None:
        self._scheme = scheme
        self._filesystem = filesystem

    async def _call(self, method: str, **arguments: Any) -> Any:
        from aiohttp import ClientError
        from botocore import exceptions

        try:
            return await self._filesystem._call_s3(method, **arguments)
        except (OSError, exceptions.BotoCoreError, exceptions.ClientError, ClientError) as exc:
            causes = [cause for cause in (exc, exc.__cause__, exc.__context__) if cause is not None]
            response: Any = next(filter(None, (getattr(cause, "response", None) for cause in causes)), None)
            if isinstance(response, dict):
                told, code = response.get("Error", {}), response["ResponseMetadata"].get("HTTPStatusCode", 0)
                raise refusal(code, told.get("Code", "")) from exc
            if any(isinstance(cause, exceptions.NoCredentialsError) for cause in causes):
                raise TransportError("no credentials (AWS_ACCESS_KEY_ID..., or FSSPEC_S3='{\"anon\": true}')") from exc
            lasting = isinstance(exc, exceptions.BotoCoreError) and not isinstance(exc, exceptions.HTTPClientError)
            raise TransportError(f"the server cannot be reached ({said_of(exc)})", passes=not lasting) from exc

    async def get(self, url: str, start: int, stop: int | None) -> Answer:
        bucket, key = _split(url)
        asked = _range(start, stop)
        try:
            found = await self._call("get_object", Bucket=bucket, Key=key, **asked)
        except TransportError as trouble:
            if trouble.code == NO_SUCH_RANGE and not start:
                return _Empty(await self.status(url))
            raise
        return _S3Answer(found, bool(asked))

    async def status(self, url: str) -> Status:
        bucket, key = _split(url)
        return _s3_status(found := await self._call("head_object", Bucket=bucket, Key=key), found["ContentLength"])

    async def page(self, url: str, token: Any) -> tuple[list[tuple[str, Status]], Any]:
        bucket, prefix = _split(url)
        more = {"ContinuationToken": token} if token else {}
        told = await self._call("list_objects_v2", Bucket=bucket, Prefix=prefix, **more)
        found = [
            (f"{self._scheme}://{bucket}/{item['Key']}", _s3_status(item, item["Size"]))
            for item in told.get("Contents", [])
        ]
        return found, told.get("NextContinuationToken") if told.get("IsTruncated") else None


def _s3_status(told: Mapping[str, Any], size: int | None) -> Status:
    return Status(size, told.get("ETag", ""), int(told["LastModified"].timestamp()))


class _S3Answer:
    """An answer of aiobotocore's."""

    def __init__(self, found: dict[str, Any], ranged: bool) -> None:
        self._body = found["Body"]
        told = CONTENT_RANGE.match(found.get("ContentRange", ""))
        self.length: int | None = found["ContentLength"]
        self.start = int(told[1]) if ranged and told and told[1] else 0
        self.encoding = ""  # of S3 the bytes are those that were put there, whatever they are said to be
        self.status = _s3_status(found, int(told[3]) if told and told[3].isdigit() else self.length)

    async def read(self) -> bytes:
        from aiohttp import ClientError
        from botocore.exceptions import BotoCoreError

        try:
            return await self._body.read(CHUNK_BYTES)
        except (OSError, BotoCoreError, ClientError) as exc:
            raise TransportError(f"the server broke off ({said_of(exc)})", passes=True) from exc

    def close(self) -> None:
        self._body.close()


@dataclass
class _Empty:
    """The answer that is a file without bytes."""

    status: Status
    start: int = 0
    length: int | None = 0
    encoding: str = ""

    async def read(self) -> bytes:
        return b""

    def close(self) -> None:
        """There is nothing to leave."""


class _Other:
    """What fsspec has beside these. Its libraries may wait; a thread of their own does that."""

    async def _asked(self, url: str, method: str, **arguments: Any) -> Any:
        import fsspec

        def ask() -> Any:
            filesystem, path = fsspec.url_to_fs(url, use_listings_cache=False)
            return getattr(filesystem, method)(path, **arguments)

        try:
            return await asyncio.to_thread(ask)
        except FileNotFoundError as exc:
            raise TransportError(said_of(exc), code=GONE[0]) from exc
        except PermissionError as exc:
            raise TransportError(said_of(exc), code=FORBIDDEN[1]) from exc
        except OSError as exc:
            raise TransportError(said_of(exc), passes=True) from exc

    async def get(self, url: str, start: int, stop: int | None) -> Answer:
        status = await self.status(url)
        if status.size_bytes is None:
            raise TransportError("its size is not told")
        return _InPieces(self, url, status, start, status.size_bytes if stop is None else min(stop, status.size_bytes))

    async def piece(self, url: str, start: int, stop: int) -> bytes:
        """Some bytes of a file."""
        return await self._asked(url, "cat_file", start=start, end=stop)

    async def status(self, url: str) -> Status:
        return _other_status(await self._asked(url, "info"))

    async def page(self, url: str, token: Any) -> tuple[list[tuple[str, Status]], Any]:
        import fsspec

        folder, *others = token or [url]
        names: list[dict[str, Any]] = sorted(await self._asked(folder, "ls", detail=True), key=lambda one: one["name"])
        root = fsspec.url_to_fs(url)[0]._strip_protocol(url).rstrip("/")

        def address(name: str) -> str:
            return f"{url.rstrip('/')}/{name.removeprefix(root).strip('/')}"

        found = [(address(told["name"]), _other_status(told)) for told in names if told["type"] == "file"]
        below = [address(told["name"]) for told in names if told["type"] == "directory"]
        return found, [*below, *others] or None


class _InPieces:
    """An answer that is asked for piece by piece; the last one comes if the file is still the same."""

    def __init__(self, server: _Other, url: str, status: Status, start: int, stop: int) -> None:
        self.status = status
        self.start = start
        self.length: int | None = max(0, stop - start)
        self.encoding = ""
        self._server = server
        self._url = url
        self._next, self._stop = start, stop

    async def read(self) -> bytes:
        start, stop = self._next, min(self._next + PIECE_BYTES, self._stop)
        if start >= stop:
            return b""
        self._next = stop
        piece = await self._server.piece(self._url, start, stop)
        if len(piece) != stop - start:
            raise TransportError(f"the server sent {len(piece):,} of {stop - start:,} bytes", passes=True)
        if stop == self._stop and await self._server.status(self._url) != self.status:
            raise TransportError("it changed while it was read", passes=True)
        return piece

    def close(self) -> None:
        self._next = self._stop


def _other_status(told: Mapping[str, Any]) -> Status:
    etag = next((str(told[name]) for name in ("ETag", "etag", "md5", "checksum", "sha256") if told.get(name)), "")
    times = (told[name] for name in ("mtime", "LastModified", "last_modified", "modified", "created") if name in told)
    return Status(told.get("size"), etag or str(told.get("created", "")), seconds(next(times, "")))


def _is_unknown(exc: Exception) -> bool:
    """Whether there is no host of that name, of which lists have many."""
    found = getattr(exc, "os_error", None)
    return isinstance(found, socket.gaierror) and found.errno == socket.EAI_NONAME


def _range(start: int, stop: int | None) -> dict[str, str]:
    """What asks for a part of a file; nothing for all of it."""
    return {"Range": f"bytes={start}-{'' if stop is None else stop - 1}"} if start or stop is not None else {}


def _headers(start: int, stop: int | None) -> dict[str, str]:
    return {"Accept-Encoding": "identity", **_range(start, stop)}


def _split(url: str) -> tuple[str, str]:
    """The bucket and the key, which may hold what has a meaning in other URLs."""
    bucket, _, key = url.partition("://")[2].partition("/")
    return bucket, key
