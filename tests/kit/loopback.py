"""A web server on loopback that gives one file, and misbehaves as a test asks."""

from __future__ import annotations

import hashlib
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Server(ThreadingHTTPServer):
    """Each request takes the next word of `script`; when it is used up, the file is given as it should be."""

    daemon_threads = True

    def __init__(self, content: bytes, *script: str) -> None:
        self.content = content
        self.script = list(script)
        self.requests: list[tuple[str, str | None]] = []  # path and Range of each
        super().__init__(("127.0.0.1", 0), Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is part of the tests."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers["Range"]
        self.server.requests.append((self.path, asked))
        word = self.server.script.pop(0) if self.server.script else "give"
        content = self.server.content
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and word != "ignore range" else 0
        if word.isdigit():
            return self.send_error(int(word))
        if word == "redirect":
            self.send_response(302)
            self.send_header("Location", f"{self.server.url}/elsewhere")
            return self.end_headers()
        if start >= len(content):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if start:
            first = start + 1 if word == "wrong part" else start
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        body = content[start:]
        length = {"claims more": len(body) + 100, "claims less": len(body) - 100}.get(word, len(body))
        if word not in ("no length", "endless"):
            self.send_header("Content-Length", str(length))
        self.end_headers()
        self._body(word, body)

    def _body(self, word: str, body: bytes) -> None:
        half = len(body) // 2
        if word == "corrupt":
            body = bytes([body[0] ^ 1]) + body[1:]
        if word == "cut":
            body = body[:half]
        if word == "endless":
            body += bytes(10_000)
        if word in ("stall", "slow"):
            for chunk in (body[:half], body[half:]):
                self.wfile.write(chunk)
                self.wfile.flush()
                time.sleep(3.0 if word == "stall" else 0.3)
            return
        if word == "reset":
            self.wfile.write(body[:half])
            self.wfile.flush()
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            return self.connection.close()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Tests look at `requests` instead."""


class Hub(ThreadingHTTPServer):
    """What huggingface_hub asks of a Hub, for files held in memory as {"ORG/NAME": {file name: bytes}}."""

    daemon_threads = True
    commit = "0123456789abcdef0123456789abcdef01234567"

    def __init__(self, repositories: dict[str, dict[str, bytes]]) -> None:
        self.repositories = repositories
        self.requests: list[tuple[str, str]] = []  # method and path
        self.cut = False  # whether bodies end in the middle
        super().__init__(("127.0.0.1", 0), HubHandler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is part of the tests."""


class HubHandler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        self.server.requests.append((self.command, self.path))
        organisation, name, verb, revision, file_name = (self.path.split("?")[0].strip("/").split("/", 4) + [""] * 5)[
            :5
        ]
        files = self.server.repositories.get(f"{organisation}/{name}")
        known = verb == "resolve" and files is not None and revision in ("main", Hub.commit)
        body = files.get(file_name) if files is not None and known else None
        if body is None:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound" if known else "RepoNotFound")
            self.send_header("X-Repo-Commit", Hub.commit)
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(200)
        self.send_header("X-Repo-Commit", Hub.commit)
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body[: len(body) // 2] if self.server.cut else body)

    def log_message(self, *_: object) -> None:
        """Tests look at `requests` instead."""


@contextmanager
def running(server: Any) -> Iterator[Any]:
    """The server, answering in a thread until the block ends."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def serving(content: bytes, *script: str) -> AbstractContextManager[Server]:
    return running(Server(content, *script))
