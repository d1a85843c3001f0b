"""The server's app in this process, without sockets: requests go to it as uvicorn hands them over."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from clip.jobs.serve import ServeJob
from clip.serve.app import make_app
from clip.serve.service import Service

PATIENCE_S = 120  # for an answer, on a machine that is busy
NEVER = None  # as a chunk of a body: it does not come


@dataclass
class Answer:
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict[str, str])
    body: bytes = b""

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error, which has OpenAI's four fields and nothing else."""
        assert set(self.json) == {"error"}
        error = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]
        return error


class Served:
    """An app, with its event loop in a thread."""

    def __init__(self, job: ServeJob) -> None:
        self.lines: list[str] = []  # of the access log
        self.service = Service(job)
        self.app = make_app(self.service, self.lines.append)
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()

    def load(self) -> None:
        self.service.models.load(self.service.models.first)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()
        self.service.close(PATIENCE_S)

    def begin(
        self,
        method: str,
        path: str,
        body: Any = b"",
        *,
        headers: dict[str, str] | None = None,
        gone: threading.Event | None = None,
    ) -> Future[Answer]:
        """Begin a request. A body that is no bytes goes as JSON, a list of bytes in chunks."""
        chunks = (
            body
            if isinstance(body, list) and body
            else [body if isinstance(body, bytes) else json.dumps(body).encode()]
        )
        given = {"content-type": "application/json"} | (headers or {})
        return asyncio.run_coroutine_threadsafe(self._call(method, path, chunks, given, gone), self.loop)

    def ask(self, method: str, path: str, body: Any = b"", **headers: str) -> Answer:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.begin(method, path, body, headers=named).result(PATIENCE_S)

    def post(self, path: str, body: Any, **headers: str) -> Answer:
        return self.ask("POST", path, body, **headers)

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, **headers)

    async def _call(
        self,
        method: str,
        path: str,
        chunks: Iterable[bytes | None],
        headers: dict[str, str],
        gone: threading.Event | None,
    ) -> Answer:
        plain, _, query = path.partition("?")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "path": plain,
            "raw_path": plain.encode(),
            "root_path": "",
            "query_string": query.encode(),
            "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
            "scheme": "http",
        }
        left, answer, answered = list(chunks), Answer(), asyncio.Event()

        async def receive() -> dict[str, Any]:
            if left and left[0] is not NEVER:
                return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}
            while not answered.is_set() and not (gone and gone.is_set()):
                await asyncio.sleep(0.005)
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                answer.status = message["status"]
                answer.headers = {name.decode(): value.decode() for name, value in message["headers"]}
            else:
                answer.body += message.get("body", b"")
                if not message.get("more_body"):
                    answered.set()

        await self.app(scope, receive, send)
        return answer


@contextmanager
def serving(job: ServeJob, *, loaded: bool = True) -> Iterator[Served]:
    """A server that is there until the block ends."""
    served = Served(job)
    try:
        if loaded:
            served.load()
        yield served
    finally:
        served.close()
