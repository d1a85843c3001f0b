"""Listen, answer, and stop in order: uvicorn with limits to what a connection may do."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..errors import InputError
from .answers import dump
from .app import make_app
from .request_error import RequestError
from .service import Service

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from ..jobs.serve import ServeJob

SIGNALS = (signal.SIGINT, signal.SIGTERM)
EXIT_SIGNAL = 128  # plus the signal's number, as shells have it
BACKLOG = 1024
HEADER_BYTES = 65_536  # of a request's header
CLOSE_S = 5.0  # for a batch that runs when all is over


def serve(job: ServeJob, tell: Callable[[str], None] = lambda _: None) -> None:
    """Answer requests until SIGTERM or Ctrl-C, then those that are under way. `tell` gets messages and the access log.

    Raises:  InputError for a model, an address or a port that cannot be used, and as Encoder.
    """
    service = Service(job)
    listener = _listen(job)
    asyncio.run(_run(service, listener, tell))
    if not service.close(CLOSE_S):
        os._exit(0)  # a batch is still running, and a thread inside a library would abort the end of the interpreter
    if service.load_error is not None:
        raise service.load_error


def _listen(job: ServeJob) -> socket.socket:
    """Return the socket to listen at. Raises: InputError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(job.host, job.port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError as exc:
        found = f"{job.host}:{job.port} cannot be listened at ({exc})"
        raise InputError("`port`", found, "a free port of this machine", "Pass another `port` or `host`.") from exc
    return listener


async def _run(service: Service, listener: socket.socket, tell: Callable[[str], None]) -> None:
    limits = service.job.traffic
    protocol = type("Protocol", (_Protocol,), {"limits": limits})
    config = uvicorn.Config(
        make_app(service, tell),
        http=protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=limits.keep_alive_seconds,  # type: ignore[arg-type]  # pyright: ignore
        h11_max_incomplete_event_size=HEADER_BYTES,
        timeout_graceful_shutdown=1,
    )
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)  # what it has to say is in the access log
    server = _Server(config)
    stop = asyncio.Event()
    with _handle_signals(stop):
        service.begin()
        host, port = listener.getsockname()[:2]
        tell(f"listening at http://{f'[{host}]' if ':' in host else host}:{port}")
        serving = asyncio.ensure_future(server.serve(sockets=[listener]))
        watching = asyncio.ensure_future(service.watch())
        announcing = asyncio.ensure_future(_announce(service, tell, stop))
        await stop.wait()
        service.is_draining = True
        with suppress(TimeoutError):
            async with asyncio.timeout(limits.drain_seconds):
                while service.requests:
                    await asyncio.sleep(0.02)
        server.should_exit = True
        for task in (watching, announcing):
            task.cancel()
        await asyncio.gather(serving, watching, announcing, return_exceptions=True)
        tell("stopped")


async def _announce(service: Service, tell: Callable[[str], None], stop: asyncio.Event) -> None:
    """Say when the first model is loaded, and stop where it cannot be."""
    model = service.models.first
    while not model.is_loaded:
        if service.load_error is not None:
            stop.set()
            return
        await asyncio.sleep(0.02)
    encoder = model.encoder
    page = "; the page is at /" if service.job.index else ""
    tell(f"ready: {model.name} on {encoder.device} in {encoder.computed_in}, vectors of {encoder.dim}{page}")


@contextmanager
def _handle_signals(stop: asyncio.Event) -> Generator[None]:
    """Set the event at the first signal, end the process at the second."""
    loop = asyncio.get_running_loop()

    def handle(number: int) -> None:
        if stop.is_set():
            os._exit(EXIT_SIGNAL + number)
        stop.set()

    for number in SIGNALS:
        loop.add_signal_handler(number, handle, number)
    try:
        yield
    finally:
        for number in SIGNALS:
            loop.remove_signal_handler(number)


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Generator[None]:
        """Leave signals to `_handle_signals`: uvicorn would end the process by them."""
        yield


class _Protocol(H11Protocol):
    """A connection, closed where its next request's header takes too long, and refused where there are too many."""

    limits: Any
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection; where there are too many, end the one that has been silent longest, or refuse this one."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.max_connections and not self._end_silent_one():
            message = f"{self.limits.max_connections:,} connections are open. Try again later."
            self._refuse(RequestError(503, message, "too_many_connections", retry_after_s=1.0, close=True))
            return
        self._expect_header()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timer."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Begin to count when a request begins, and end when its header is there."""
        super().data_received(data)
        if not self._is_between_requests():
            self._stop_timer()
        elif self._timer is None:
            self._expect_header()

    def on_response_complete(self) -> None:
        """Begin to count for what follows on this connection."""
        super().on_response_complete()
        if self._is_between_requests() and self.conn.trailing_data[0]:
            self._expect_header()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP in the shape of all errors."""
        self._refuse(RequestError(400, f"this is no HTTP request that can be read: {msg}", "invalid_http", close=True))

    def _refuse(self, refusal: RequestError) -> None:
        body = dump(refusal.body)
        headers = [*refusal.headers.items(), ("content-type", "application/json"), ("content-length", str(len(body)))]
        with suppress(h11.LocalProtocolError):  # an answer has begun already
            head = h11.Response(status_code=refusal.status, headers=headers, reason=b"")
            for event in (head, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _is_between_requests(self) -> bool:
        return not self.cycle or self.cycle.response_complete

    def _expect_header(self) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(self.limits.header_seconds, self._end)

    def _end(self) -> None:
        """Close the connection; one whose client does not even read what it was sent at once."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()  # after an abort the client's system may drop what it has not read yet

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end_silent_one(self) -> bool:
        """End the connection that has waited longest for a header; return whether there was one."""
        others = [each for each in self.connections if isinstance(each, _Protocol) and each is not self]
        silent = [each for each in others if each._is_between_requests() or each.transport.is_closing()]
        if not silent:
            return False
        first = min(silent, key=lambda each: each._timer.when() if each._timer else float("inf"))
        first.transport.abort()
        return True
