"""A server on loopback with many files, which speaks HTTP, S3 and Google's JSON API, and misbehaves as a test asks.

http://host/bucket/key                       with ranges, ETag and Last-Modified
the same with AWS_ENDPOINT_URL               what s3fs asks of S3
the same with STORAGE_EMULATOR_HOST          what gcsfs asks of Google Cloud Storage
"""

from __future__ import annotations

import gzip
import hashlib
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import pytest

from clip.sources.remote.schemes import get_server
from kit import loopback

TIME_S = 1_700_000_000
ISO_TIME = "2023-11-14T22:13:20.000Z"


class Cloud(ThreadingHTTPServer):
    """Each request for a path takes the next word of its script; when that is used up, or there is none, all is well.

    Words in `always` are those of every request for a file: "no ranges", "no etag", "gzip".
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        self.ended = threading.Event()
        self.lock = threading.Lock()
        self.under_way = self.waiting = 0  # also of requests that an earlier test left
        self.reset()
        super().__init__(("127.0.0.1", 0), Handler)

    def reset(self) -> None:
        """Remove all files and scripts."""
        self.files: dict[str, bytes] = {}  # "/bucket/key"
        self.scripts: dict[str, list[str]] = {}
        self.always: set[str] = set()
        self.requests: list[tuple[str, str, str]] = []  # method, path and Range of each
        self.targets: list[str] = []  # of each request, as it was sent
        self.delay_s = 0.0  # before each answer
        self.page = 1000  # names in a listing
        self.most_under_way = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def put(self, folder: Path, below: str) -> None:
        """Serve all files of a folder."""
        for path in folder.rglob("*"):
            if path.is_file():
                self.files[f"{below}/{path.relative_to(folder)}"] = path.read_bytes()

    def server_close(self) -> None:
        self.ended.set()
        super().server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is part of the tests."""


def etag(data: bytes) -> str:
    return f'"{hashlib.md5(data).hexdigest()}"'


class Handler(BaseHTTPRequestHandler):
    server: Cloud
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or each answer waits 40 ms between its headers and its body

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        path, query = unquote(parts.path), parse_qs(parts.query)
        path = path.replace("/download/storage/v1/b/", "/").replace("/o/", "/", 1) if "/storage/v1/b/" in path else path
        with self.server.lock:
            self.server.requests.append((self.command, path, self.headers["Range"] or ""))
            self.server.targets.append(self.path)
            script = self.server.scripts.get(path)
            word = script.pop(0) if script else ""
            self.server.under_way += 1
            self.server.waiting += 1
            self.server.most_under_way = max(self.server.most_under_way, self.server.waiting)
        self.server.ended.wait(self.server.delay_s)
        with self.server.lock:
            self.server.waiting -= 1  # before the answer, as the client may ask again as soon as it has that
        try:
            self.answer(path, query, word)
        finally:
            with self.server.lock:
                self.server.under_way -= 1

    def answer(self, path: str, query: dict[str, list[str]], word: str) -> None:
        if word.isdigit() or word == "slow down":
            code = 503 if word == "slow down" else int(word)
            return self.give(code, b"<Error><Code>SlowDown</Code><Message>reduce your request rate</Message></Error>")
        if word.startswith("to "):
            return self.give(302, b"", {"Location": word.removeprefix("to ")})
        if word == "redirect":
            return self.give(302, b"", {"Location": f"{self.server.url}{path}?redirected=1"})
        if word == "silence":
            self.server.ended.wait(60)
            return None
        if "list-type" in query:
            return self.list_s3(path.strip("/"), query)
        if path.startswith("/storage/v1/b/"):
            return self.list_gs(path.split("/")[4], query)
        if word == "change":
            self.server.files[path] = bytes(reversed(self.server.files[path]))
        content = self.server.files.get(path)
        if content is None:
            return self.give(404, b"<Error><Code>NoSuchKey</Code><Message>none</Message></Error>")
        return self.give_file(content, word)

    def give_file(self, content: bytes, word: str) -> None:
        headers = {"Last-Modified": formatdate(TIME_S, usegmt=True)}
        if "no etag" not in self.server.always:
            headers |= {"ETag": etag(content), "X-Goog-Generation": str(int(etag(content)[1:9], 16))}
        if "gzip" in self.server.always:
            return self.give(200, gzip.compress(content), {**headers, "Content-Encoding": "gzip"}, word)
        asked = self.headers["Range"]
        if not asked or "no ranges" in self.server.always:
            return self.give(200, content, headers, word)
        first, _, last = asked.removeprefix("bytes=").partition("-")
        start, stop = int(first), min(len(content), int(last) + 1 if last else len(content))
        if start >= len(content):
            return self.give(416, b"<Error><Code>InvalidRange</Code></Error>", headers)
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
        return self.give(206, content[start:stop], headers, word)

    def give(self, code: int, body: bytes, headers: dict[str, str] | None = None, word: str = "") -> None:
        self.send_response(code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        length = len(body) + (100 if word == "claims more" else 0)
        if word == "endless":
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(10**12 if word == "claims most" else length))
        if word:
            self.close_connection = True
        self.end_headers()
        if self.command == "HEAD":
            return
        if word == "endless":
            while not self.server.ended.is_set():
                self.wfile.write(b"10000\r\n" + bytes(0x10000) + b"\r\n")
        elif word in ("cut", "reset", "stall", "claims more", "claims most"):
            self.wfile.write(body[: len(body) // 2] if word != "claims more" else body)
            self.wfile.flush()
            if word == "stall":
                self.server.ended.wait(60)
            if word == "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                self.connection.close()
        elif word == "drip":
            for place in range(len(body)):
                if self.server.ended.wait(0.05):
                    return
                self.wfile.write(body[place : place + 1])
                self.wfile.flush()
        else:
            self.wfile.write(body)

    def _page(self, bucket: str, prefix: str, token: str) -> tuple[list[tuple[str, bytes]], str]:
        keys = sorted(path.removeprefix(f"/{bucket}/") for path in self.server.files if path.startswith(f"/{bucket}/"))
        keys = [key for key in keys if key.startswith(prefix) and key > token]
        page = keys[: self.server.page]
        more = page[-1] if len(keys) > len(page) else ""
        return [(key, self.server.files[f"/{bucket}/{key}"]) for key in page], more

    def list_s3(self, bucket: str, query: dict[str, list[str]]) -> None:
        page, more = self._page(bucket, query.get("prefix", [""])[0], query.get("continuation-token", [""])[0])
        contents = "".join(
            f"<Contents><Key>{escape(key)}</Key><LastModified>{ISO_TIME}</LastModified>"
            f"<ETag>{escape(etag(data))}</ETag><Size>{len(data)}</Size></Contents>"
            for key, data in page
        )
        token = f"<NextContinuationToken>{escape(more)}</NextContinuationToken>" if more else ""
        listing = f"<ListBucketResult><IsTruncated>{'true' if more else 'false'}</IsTruncated>{token}{contents}"
        self.give(200, f"{listing}</ListBucketResult>".encode(), {"Content-Type": "application/xml"})

    def list_gs(self, bucket: str, query: dict[str, list[str]]) -> None:
        page, more = self._page(bucket, query.get("prefix", [""])[0], query.get("pageToken", [""])[0])
        items = [
            {"name": key, "size": str(len(data)), "updated": ISO_TIME, "generation": str(int(etag(data)[1:9], 16))}
            for key, data in page
        ]
        listing: dict[str, Any] = {"items": items} | ({"nextPageToken": more} if more else {})
        self.give(200, json.dumps(listing).encode(), {"Content-Type": "application/json"})

    def log_message(self, *_: object) -> None:
        """Tests look at `requests` instead."""


def environment(cloud: Cloud) -> dict[str, str]:
    """Return the environment variables that make s3:// and gs:// lead to it."""
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    return dict.fromkeys(names, "test") | {
        "AWS_ENDPOINT_URL": cloud.url,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "STORAGE_EMULATOR_HOST": cloud.url,
    }


@contextmanager
def running() -> Iterator[Cloud]:
    """Run a server, to which s3:// and gs:// lead until the block ends."""
    with pytest.MonkeyPatch.context() as patch, loopback.running(Cloud()) as cloud:
        for name, value in environment(cloud).items():
            patch.setenv(name, value)
        get_server.cache_clear()
        yield cloud
        get_server.cache_clear()
