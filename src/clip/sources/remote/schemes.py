"""Make single requests to servers of files, over fsspec: bytes, a status, a page of names.

    http://, https://    aiohttp, as fsspec's filesystem sets it up; no listing
    s3://, gs://         s3fs, gcsfs, each with its own credentials, endpoints and configuration
    others               whatever fsspec knows, with two requests where these need one

fsspec sets up its libraries, and requests go through the session, credentials and configuration of each, partly by
names with an underscore, so that tests pin their versions. Its own `cat_file` and files read bodies of any length, do
not say of which version a range is, cache listings, and retry below client.py. Here nothing is cached or retried.
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
from ...retry import Patience
from .protocol import FORBIDDEN, GONE, Answer, Server, Status, TransportError, describe, make_refusal, parse_time
from .session import describe_session

if TYPE_CHECKING:
    from collections.abc import Mapping


S3, GS, HTTP = ("s3", "s3a"), ("gs", "gcs"), ("http", "https")
CHUNK_BYTES = 1 << 18
PIECE_BYTES = 1 << 23  # of one call to libraries that return nothing before they have all of it
OK, PARTIAL, NO_SUCH_RANGE = 200, 206, 416
CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")


def get_scheme(url: str) -> str:
    """Return the part of a URL before ://, in lower case."""
    return url.partition("://")[0].lower()


@cache
def get_server(scheme: str) -> Server:
    """Return the server of a scheme. Raises: InputError if it is unknown, or its library is not installed."""
    import fsspec

    if scheme in ("file", "local"):
        raise InputError(f"{scheme}://", "names a file of another machine, or none", "a path", "Name it by its path.")
    try:
        if scheme in HTTP:
            return _Http(_make_filesystem("http", {"client_kwargs": {**describe_session(), "trust_env": True}}))
        if scheme in S3:
            timeout_s = Patience.timeout_s
            config = {"connect_timeout": timeout_s, "read_timeout": timeout_s, "retries": {"total_max_attempts": 1}}
            filesystem = _make_filesystem("s3", {"config_kwargs": config})
            filesystem.retries = 1  # client.py retries
            return _S3(scheme, filesystem)
        if scheme in GS:
            return _Gs(scheme, _make_filesystem("gs", {"session_kwargs": describe_session()}))
        fsspec.get_filesystem_class(scheme)
    except ImportError as exc:
        remedy = "Run: pip install 'clip-turbo[remote]'"
        raise InputError(f"{scheme}://", f"{exc}", "the library for it", remedy) from exc
    except ValueError as exc:
        raise InputError(f"{scheme}://", f"{exc}", "a scheme that fsspec knows", "Check the address.") from exc
    return _FsspecServer()


def _make_filesystem(scheme: str, options: dict[str, dict[str, Any]]) -> Any:
    """Return a new instance of fsspec's filesystem for a scheme; its configuration overrides `options`."""
    import fsspec
    from fsspec.config import conf

    names = next(names for names in (HTTP, S3, GS) if scheme in names)
    for name in names:
        theirs = conf.get(name, {})
        options = {key: {**ours, **theirs.get(key, {})} for key, ours in options.items()}
    return fsspec.filesystem(scheme, skip_instance_cache=True, use_listings_cache=False, **options)


class _HttpAnswer:
    """An answer of aiohttp's."""

    def __init__(self, response: Any) -> None:
        headers: Mapping[str, str] = response.headers
        self._response = response
        part = CONTENT_RANGE.match(headers.get("Content-Range", ""))
        length = headers.get("Content-Length", "")
        self.length = int(length) if length.isdigit() else None
        self.start = int(part[1]) if part and part[1] and response.status == PARTIAL else 0
        whole = int(part[3]) if part and part[3].isdigit() else self.length if response.status == OK else None
        self.encoding = headers.get("Content-Encoding", "").strip().lower()
        self.encoding = "" if self.encoding in ("identity", "aws-chunked") else self.encoding.removeprefix("x-")
        modified = headers.get("Last-Modified", "")
        size = None if self.encoding else whole
        self.status = Status(size, headers.get("X-Goog-Generation") or headers.get("ETag", ""), parse_time(modified))

    async def read(self) -> bytes:
        import aiohttp

        try:
            return await self._response.content.read(CHUNK_BYTES)
        except (aiohttp.ClientError, OSError) as exc:
            raise TransportError(f"the server broke off ({describe(exc)})", retryable=True) from exc

    def close(self) -> None:
        self._response.close()  # if all was read, the connection is back in the pool already


class _Http:
    """Any web server."""

    def __init__(self, filesystem: Any) -> None:
        self._filesystem = filesystem

    async def _session(self) -> Any:
        return await self._filesystem.set_session()

    async def get(self, url: str, start: int, stop: int | None) -> Answer:
        return await self._answer(url, _make_headers(start, stop), start)

    async def _answer(self, url: str, headers: dict[str, str], start: int) -> Answer:
        import aiohttp
        import yarl

        try:
            session = await self._session()
            # As it is written, as a signature may depend on that; only characters that no URL may have are quoted.
            address = yarl.URL(url, encoded=url.isascii() and url.isprintable() and " " not in url)
            response = await session.get(address, headers=headers)
        except (aiohttp.InvalidURL, ValueError) as exc:
            raise TransportError(f"the address is not valid ({describe(exc)})") from exc
        except (aiohttp.ClientError, OSError) as exc:
            lasting = isinstance(exc, aiohttp.TooManyRedirects) or _is_unknown_host(exc)
            raise TransportError(f"the server cannot be reached ({describe(exc)})", retryable=not lasting) from exc
        if response.status == NO_SUCH_RANGE and not start:
            response.close()
            return _EmptyAnswer(Status(0, response.headers.get("ETag", "")))
        if response.status not in (OK, PARTIAL):
            response.close()
            raise make_refusal(response.status, response.reason or "", response.headers.get("Retry-After", ""))
        return _HttpAnswer(response)

    async def get_status(self, url: str) -> Status:
        answer = await self.get(url, 0, 1)  # not HEAD, for which a signed URL may not be signed
        answer.close()
        return answer.status

    async def list_page(self, url: str, token: Any) -> tuple[list[tuple[str, Status]], Any]:  # noqa: ARG002
        raise InputError(url, "a web server lists nothing", "a file", "Name a list of addresses.")


class _Gs(_Http):
    """Google Cloud Storage: gcsfs makes addresses and headers, the rest is HTTP."""

    def __init__(self, scheme: str, filesystem: Any) -> None:
        super().__init__(filesystem)
        self._scheme = scheme

    async def _session(self) -> Any:
        await self._filesystem._set_session()
        return self._filesystem.session

    async def get(self, url: str, start: int, stop: int | None) -> Answer:
        headers = self._filesystem._get_headers(_make_headers(start, stop))
        return await self._answer(self._filesystem.url(url), headers, start)

    async def list_page(self, url: str, token: Any) -> tuple[list[tuple[str, Status]], Any]:
        bucket, prefix = _split_url(url)
        fields = {"prefix": prefix, "fields": "nextPageToken,items(name,size,updated,generation)"}
        address = self._filesystem._format_path("b/{}/o", (bucket,))
        query = urlencode(fields | ({"pageToken": token} if token else {}))
        answer = await self._answer(f"{address}?{query}", self._filesystem._get_headers({}), 0)
        parts: list[bytes] = []
        while part := await answer.read():
            parts.append(part)
        try:
            listing = json.loads(b"".join(parts))
        except ValueError as exc:
            raise TransportError(f"the server did not send JSON ({describe(exc)})", retryable=True) from exc
        files = [
            (
                f"{self._scheme}://{bucket}/{item['name']}",
                Status(int(item["size"]), str(item.get("generation", "")), parse_time(item.get("updated", ""))),
            )
            for item in listing.get("items", [])
        ]
        return files, listing.get("nextPageToken")


class _S3:
    """Amazon S3, and servers with its interface."""

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
                code = response["ResponseMetadata"].get("HTTPStatusCode", 0)
                raise make_refusal(code, response.get("Error", {}).get("Code", "")) from exc
            if any(isinstance(cause, exceptions.NoCredentialsError) for cause in causes):
                found = "no credentials (AWS_ACCESS_KEY_ID..., or FSSPEC_S3='{\"anon\": true}')"
                raise TransportError(found, code=FORBIDDEN[0]) from exc
            lasting = isinstance(exc, exceptions.BotoCoreError) and not isinstance(exc, exceptions.HTTPClientError)
            raise TransportError(f"the server cannot be reached ({describe(exc)})", retryable=not lasting) from exc

    async def get(self, url: str, start: int, stop: int | None) -> Answer:
        bucket, key = _split_url(url)
        part = _make_range(start, stop)
        try:
            response = await self._call("get_object", Bucket=bucket, Key=key, **part)
        except TransportError as error:
            if error.code == NO_SUCH_RANGE and not start:
                return _EmptyAnswer(await self.get_status(url))
            raise
        return _S3Answer(response, bool(part))

    async def get_status(self, url: str) -> Status:
        bucket, key = _split_url(url)
        head = await self._call("head_object", Bucket=bucket, Key=key)
        return _read_s3_status(head, head["ContentLength"])

    async def list_page(self, url: str, token: Any) -> tuple[list[tuple[str, Status]], Any]:
        bucket, prefix = _split_url(url)
        more = {"ContinuationToken": token} if token else {}
        listing = await self._call("list_objects_v2", Bucket=bucket, Prefix=prefix, **more)
        files = [
            (f"{self._scheme}://{bucket}/{item['Key']}", _read_s3_status(item, item["Size"]))
            for item in listing.get("Contents", [])
        ]
        return files, listing.get("NextContinuationToken") if listing.get("IsTruncated") else None


def _read_s3_status(response: Mapping[str, Any], size: int | None) -> Status:
    return Status(size, response.get("ETag", ""), int(response["LastModified"].timestamp()))


class _S3Answer:
    """An answer of aiobotocore's."""

    def __init__(self, response: dict[str, Any], ranged: bool) -> None:
        self._body = response["Body"]
        part = CONTENT_RANGE.match(response.get("ContentRange", ""))
        self.length: int | None = response["ContentLength"]
        self.start = int(part[1]) if ranged and part and part[1] else 0
        self.encoding = ""  # S3 sends the bytes that were stored, whatever encoding they are labelled with
        self.status = _read_s3_status(response, int(part[3]) if part and part[3].isdigit() else self.length)

    async def read(self) -> bytes:
        from aiohttp import ClientError
        from botocore.exceptions import BotoCoreError

        try:
            return await self._body.read(CHUNK_BYTES)
        except (OSError, BotoCoreError, ClientError) as exc:
            raise TransportError(f"the server broke off ({describe(exc)})", retryable=True) from exc

    def close(self) -> None:
        self._body.close()


@dataclass
class _EmptyAnswer:
    """The answer for a file without bytes."""

    status: Status
    start: int = 0
    length: int | None = 0
    encoding: str = ""

    async def read(self) -> bytes:
        return b""

    def close(self) -> None:
        """Do nothing: there is no rest."""


class _FsspecServer:
    """Any other filesystem of fsspec. Its libraries may block, so they are called in a thread."""

    async def _call(self, url: str, method: str, **arguments: Any) -> Any:
        import fsspec

        def call() -> Any:
            filesystem, path = fsspec.url_to_fs(url, use_listings_cache=False)
            return getattr(filesystem, method)(path, **arguments)

        try:
            return await asyncio.to_thread(call)
        except FileNotFoundError as exc:
            raise TransportError(describe(exc), code=GONE[0]) from exc
        except PermissionError as exc:
            raise TransportError(describe(exc), code=FORBIDDEN[1]) from exc
        except OSError as exc:
            raise TransportError(describe(exc), retryable=True) from exc

    async def get(self, url: str, start: int, stop: int | None) -> Answer:
        status = await self.get_status(url)
        if status.size_bytes is None:
            raise TransportError("the server does not say its size")
        return _PiecewiseAnswer(
            self, url, status, start, status.size_bytes if stop is None else min(stop, status.size_bytes)
        )

    async def get_piece(self, url: str, start: int, stop: int) -> bytes:
        """Request some bytes of a file."""
        return await self._call(url, "cat_file", start=start, end=stop)

    async def get_status(self, url: str) -> Status:
        return _read_status(await self._call(url, "info"))

    async def list_page(self, url: str, token: Any) -> tuple[list[tuple[str, Status]], Any]:
        import fsspec

        folder, *others = token or [url]
        infos: list[dict[str, Any]] = sorted(await self._call(folder, "ls", detail=True), key=lambda info: info["name"])
        root = fsspec.url_to_fs(url)[0]._strip_protocol(url).rstrip("/")

        def make_url(name: str) -> str:
            return f"{url.rstrip('/')}/{name.removeprefix(root).strip('/')}"

        files = [(make_url(info["name"]), _read_status(info)) for info in infos if info["type"] == "file"]
        below = [make_url(info["name"]) for info in infos if info["type"] == "directory"]
        return files, [*below, *others] or None


class _PiecewiseAnswer:
    """An answer that is requested piece by piece; before the last one the file is checked to be the same."""

    def __init__(self, server: _FsspecServer, url: str, status: Status, start: int, stop: int) -> None:
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
        piece = await self._server.get_piece(self._url, start, stop)
        if len(piece) != stop - start:
            raise TransportError(f"the server sent {len(piece):,} of {stop - start:,} bytes", retryable=True)
        if stop == self._stop and await self._server.get_status(self._url) != self.status:
            raise TransportError("it changed while it was read", retryable=True)
        return piece

    def close(self) -> None:
        self._next = self._stop


def _read_status(info: Mapping[str, Any]) -> Status:
    etag = next((str(info[name]) for name in ("ETag", "etag", "md5", "checksum", "sha256") if info.get(name)), "")
    times = (info[name] for name in ("mtime", "LastModified", "last_modified", "modified", "created") if name in info)
    return Status(info.get("size"), etag or str(info.get("created", "")), parse_time(next(times, "")))


def _is_unknown_host(exc: Exception) -> bool:
    """Whether there is no host of that name, as is frequent in lists."""
    error = getattr(exc, "os_error", None)
    return isinstance(error, socket.gaierror) and error.errno == socket.EAI_NONAME


def _make_range(start: int, stop: int | None) -> dict[str, str]:
    """Return the header that requests a part of a file; none for the whole file."""
    return {"Range": f"bytes={start}-{'' if stop is None else stop - 1}"} if start or stop is not None else {}


def _make_headers(start: int, stop: int | None) -> dict[str, str]:
    return {"Accept-Encoding": "identity", **_make_range(start, stop)}


def _split_url(url: str) -> tuple[str, str]:
    """Return the bucket and the key, which may contain characters that have a meaning in other URLs."""
    bucket, _, key = url.partition("://")[2].partition("/")
    return bucket, key
