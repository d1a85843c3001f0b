"""A web server on loopback that gives one file, and misbehaves as a test asks."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


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


@contextmanager
def serving(content: bytes, *script: str) -> Iterator[Server]:
    server = Server(content, *script)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
