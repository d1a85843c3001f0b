"""What every request passes: its id, the key, counting, the access log; and what every error becomes."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import logging
import re
import secrets
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from starlette.requests import ClientDisconnect
from starlette.responses import Response

from ..errors import ClipError
from .answers import dump
from .batcher import EngineError
from .decoders import DecoderError
from .request_error import RequestError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from ..jobs.serve import AccessLog
    from .service import Service

OPEN_PATHS = frozenset({"/", "/health", "/health/live", "/health/ready", "/ping"})  # which need no key
QUIET_PATHS = OPEN_PATHS - {"/"} | {"/metrics"}  # asked every few seconds: no line in the access log while all is well
OPEN_FOLDER = "/page/"  # the page's own files
REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
TRACEPARENT = re.compile(r"[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
CLIENT_GONE = 499  # as nginx counts them
RETRY_S = 1.0

_log = logging.getLogger("clip")


class Gate:
    """The outermost part of the app."""

    def __init__(self, app: ASGIApp, service: Service, write: Callable[[str], None]) -> None:
        """`write` takes the lines of the access log."""
        self._app, self._service, self._write = app, service, write
        self._format = _choose_format(service.job.access_log)
        self._key = service.job.api_key
        self._is_local = self._key is None and _is_loopback(service.job.host)
        self._hosts = frozenset(name.lower() for name in service.job.hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        answer = _Answer(send, headers, self._service.job.traffic.body_seconds)
        scope["clip.answer"] = answer
        self._service.requests += 1
        try:
            name = _read_host(headers.get("host", "localhost"))
            if self._is_local and name not in self._hosts and not _is_loopback(name):
                message = (
                    f"the request was sent to {name[:80]!r}, and this server takes what is sent to this machine alone. "
                    "Ask it as localhost, or start it with --allow-host and that name."
                )
                await make_response(RequestError(403, message, "host_not_allowed"))(scope, receive, answer)
            elif not self._is_allowed(scope, headers):
                message = "the API key is missing or wrong. Send it as Authorization: Bearer KEY."
                await make_response(RequestError(401, message, "invalid_api_key"))(scope, receive, answer)
            else:
                await self._app(scope, receive, answer)
        finally:
            self._service.requests -= 1
            seconds = time.monotonic() - started
            self._service.metrics.count_request(_name_route(scope), answer.status, seconds)
            is_quiet = scope["path"] in QUIET_PATHS and answer.status in (200, 503)
            if self._format is not None and not is_quiet:
                self._write(self._format(_describe(scope, headers, answer, seconds)))

    def _is_allowed(self, scope: Scope, headers: dict[str, str]) -> bool:
        path: str = scope["path"]
        if self._key is None or path in OPEN_PATHS or path.startswith(OPEN_FOLDER) or scope["method"] == "OPTIONS":
            return True
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        return hmac.compare_digest(given.encode("latin-1"), self._key.encode())


def _read_host(header: str) -> str:
    """Return the name or address of a Host header, without its port; an empty one where it has none."""
    with suppress(ValueError):
        return urlsplit(f"//{header}").hostname or ""
    return ""


def _is_loopback(name: str) -> bool:
    """Whether a host is this machine by its name, which no server of names can make another's.

    A page in a browser whose own name was made to lead here, by DNS rebinding, sends that name as Host.
    """
    with suppress(ValueError):
        return ipaddress.ip_address(name).is_loopback
    return name == "localhost" or name.endswith(".localhost")


class _Answer:
    """Sends what the app answers, with the headers that each answer has, and notes what it was."""

    def __init__(self, send: Send, headers: dict[str, str], send_seconds: float) -> None:
        self._send, self._send_seconds = send, send_seconds
        given = headers.get("x-request-id", "")
        self.request_id = given if REQUEST_ID.fullmatch(given) else secrets.token_hex(16)
        given = headers.get("traceparent", "")
        self.traceparent = given if TRACEPARENT.fullmatch(given) else None
        self.status = CLIENT_GONE
        self.size_bytes = 0
        self.items = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            own = [(b"x-request-id", self.request_id.encode("ascii")), (b"x-content-type-options", b"nosniff")]
            if self.traceparent:
                own.append((b"traceparent", self.traceparent.encode("ascii")))
            message = {**message, "headers": [*message.get("headers", []), *own]}
        elif message["type"] == "http.response.body":
            self.size_bytes += len(message.get("body", b""))
        async with asyncio.timeout(self._send_seconds):  # a client that does not read ends its connection by that
            await self._send(message)


def _choose_format(wanted: AccessLog) -> Callable[[dict[str, Any]], str] | None:
    """Return what makes a line of the access log of a request's facts; None where none is wanted."""
    if wanted == "none":
        return None
    in_words = wanted == "text" or (wanted == "auto" and sys.stderr is not None and sys.stderr.isatty())
    return _say_in_words if in_words else json.dumps


def _say_in_words(line: dict[str, Any]) -> str:
    path = json.dumps(line["path"])[1:-1]  # a path may hold what moves a terminal's cursor
    items = f", {line['items']:,} items" if line["items"] else ""
    return f"{line['time'][11:19]} {line['method']} {path} {line['status']}, {1000 * line['seconds']:.0f} ms{items}"


def _name_route(scope: Scope) -> str:
    """Return the path of a route as the app has it; of what it does not have, one name for all."""
    return getattr(scope.get("route"), "path", None) or scope.get("clip.route", "unknown")


def _describe(scope: Scope, headers: dict[str, str], answer: _Answer, seconds: float) -> dict[str, Any]:
    """Return the line of a request in the access log."""
    client = scope.get("client")
    line = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "method": scope["method"],
        "path": scope["path"],
        "status": answer.status,
        "seconds": round(seconds, 6),
        "items": answer.items,
        "request_bytes": int(length) if (length := headers.get("content-length", "")).isdigit() else None,
        "answer_bytes": answer.size_bytes,
        "client": client[0] if client else None,
        "user_agent": headers.get("user-agent"),
        "request_id": answer.request_id,
    }
    return line | ({"trace_id": answer.traceparent.split("-")[1]} if answer.traceparent else {})


def note_items(request: Request, items: int) -> None:
    """Note how many items a request has, for the access log."""
    answer: _Answer = request.scope["clip.answer"]
    answer.items = items


def make_response(refusal: RequestError) -> Response:
    """Return the answer that an error becomes."""
    headers = dict(refusal.headers)
    return Response(dump(refusal.body), refusal.status, headers, media_type="application/json")


def guarded(endpoint: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    """Return an endpoint whose errors become answers, whatever they are; tracebacks go to the log alone."""

    async def call(request: Request) -> Response:
        try:
            return await endpoint(request)
        except RequestError as exc:
            return make_response(exc)
        except ClipError as exc:
            return make_response(RequestError.of(exc))
        except ClientDisconnect:
            return Response(status_code=CLIENT_GONE)
        except EngineError as exc:
            return make_response(RequestError(500, str(exc), "engine_error"))
        except DecoderError as exc:
            _log.error("no image can be decoded: %s", exc)
            message = "no process can be started to decode images in. Try again later."
            return make_response(RequestError(503, message, "decoder_unavailable", retry_after_s=RETRY_S))
        except Exception:  # noqa: BLE001  a request's end, whatever it was
            _log.exception("a request failed")
            return make_response(RequestError(500, "the server failed; its log says why.", "internal_error"))

    return call
