"""An S3 server on loopback, moto's, between which and the client requests fail as a test asks.

moto keeps S3's rules, conditional puts and multipart uploads among them; here only one request at a time reaches it, as
its checks of conditions are no single step. Each request takes the next word of the first script that fits it:

    500, 503     that answer, and nothing is done
    silence      no answer until the client gives up
    lost         the request is carried out, and the connection ends without an answer
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import botocore.session
import moto.s3.models
import pytest
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

from clip import object_stores
from clip.sources.remote.schemes import get_server

BUCKET = "bucket"
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
PATIENCE = object_stores.StorePatience(timeout_s=2.0, first_wait_s=0.01, longest_wait_s=0.02)


class ObjectServer:
    """The application in front of moto's."""

    def __init__(self) -> None:
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._turn = threading.Lock()
        self.ended = threading.Event()
        self.url = ""
        self.scripts: list[tuple[re.Pattern[str], list[str]]] = []
        self.requests: list[str] = []  # "PUT /bucket/key" of each

    def fail(self, pattern: str, *words: str) -> None:
        """Let the next requests that match, as in "PUT .*part-00001", take these words; "" is for one that succeeds."""
        self.scripts.append((re.compile(pattern), list(words)))

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        request = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}"
        with self._turn:
            self.requests.append(request)
            script = next((words for pattern, words in self.scripts if words and pattern.fullmatch(request)), [])
            word = script.pop(0) if script else ""
        if word in ("500", "503"):
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response(f"{word} refused", [("Content-Length", str(len(SLOW_DOWN)))])
            return [SLOW_DOWN]
        if word == "silence":
            self.ended.wait(10 * PATIENCE.timeout_s)
        with self._turn:
            answer = [] if word == "silence" else list(self._moto(environ, start_response if not word else _drop))
        if word:  # "silence" or "lost"
            environ["werkzeug.socket"].shutdown(2)
            start_response("200 OK", [("Content-Length", "0")])
        return answer if not word else []

    def list(self) -> list[str]:
        """Return the names of all objects."""
        return sorted(_bucket().keys)

    def read(self, key: str) -> bytes:
        return _bucket().keys[key].value

    def put(self, key: str, data: bytes) -> None:
        """Put an object past the scripts."""
        moto.s3.models.s3_backends["123456789012"]["aws"].put_object(BUCKET, key, data)

    def delete(self, key: str) -> None:
        """Remove an object past the scripts."""
        _bucket().keys.pop(key)


def _bucket() -> Any:
    return moto.s3.models.s3_backends["123456789012"]["aws"].buckets[BUCKET]


def _drop(*_: Any) -> None:
    """Take the begin of an answer that nobody gets."""


class _Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, *_: Any) -> None:
        """Tests look at `requests` instead."""


@contextmanager
def running() -> Iterator[ObjectServer]:
    """Run a server with an empty bucket, to which s3:// leads until the block ends."""
    application = ObjectServer()
    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=_Quiet)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    application.url = f"http://127.0.0.1:{server.server_port}"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (KEYS | {"AWS_ENDPOINT_URL": application.url}).items():
            patch.setenv(name, value)
        patch.setattr(object_stores, "PATIENCE", PATIENCE)
        object_stores.connect.cache_clear()
        get_server.cache_clear()
        try:
            make_bucket(application.url)
            yield application
        finally:
            application.ended.set()
            server.shutdown()
            thread.join()
            server.server_close()
            moto.s3.models.s3_backends.reset()
            object_stores.connect.cache_clear()
            get_server.cache_clear()


def make_bucket(url: str) -> None:
    client = botocore.session.Session().create_client("s3", endpoint_url=url)
    client.create_bucket(Bucket=BUCKET)
    client.close()
