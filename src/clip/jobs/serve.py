"""The job of `clip serve`: which models and outputs to serve, to whom, and within which limits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ..errors import InputError
from .fields import documented
from .options import DecodeOptions, Limits, ModelOptions, check_counts, check_words

if TYPE_CHECKING:
    from pathlib import Path

Decoders = Literal["processes", "threads"]
AccessLog = Literal["auto", "json", "text", "none"]
MAX_PORT = 65_535


@documented
@dataclass(frozen=True)
class Traffic:
    """How much of requests the server takes at a time, and for how long it waits for them."""

    max_body_bytes: int = 64_000_000
    """Largest body of a request, in bytes."""
    held_bytes: int = 512_000_000
    """Bytes of bodies that are held at the same time, of all requests."""
    max_items: int = 2048
    """Images and texts of one request; OpenAI's own limit."""
    queue: int = 256
    """Images and texts that wait or are worked on at the same time; a request that would be beyond gets 429."""
    body_seconds: float = 30.0
    """Seconds in which a request's body has to arrive."""
    header_seconds: float = 10.0
    """Seconds in which a request's header has to arrive on a new connection, and its rest once it has begun."""
    keep_alive_seconds: float = 60.0
    """Seconds that an idle connection is kept open."""
    max_connections: int = 512
    """Connections that are open at the same time."""
    wait_ms: float = 4.0
    """Milliseconds that a batch waits for images which are being decoded; it never waits when there are none."""
    drain_seconds: float = 30.0
    """Seconds that requests have to finish after SIGTERM or Ctrl-C."""

    def __post_init__(self) -> None:
        check_counts(self, ("max_body_bytes", "held_bytes", "max_items", "queue", "max_connections"))
        for name in ("body_seconds", "header_seconds", "keep_alive_seconds"):
            if not getattr(self, name) > 0:
                raise InputError(f"`{name}`", f"found {getattr(self, name)}", "more than 0", "Pass a larger number.")
        for name in ("wait_ms", "drain_seconds"):
            if not getattr(self, name) >= 0:
                raise InputError(f"`{name}`", f"found {getattr(self, name)}", "0 or more", "Pass a larger number.")


@documented
@dataclass(frozen=True, kw_only=True)
class ServeJob:
    """What `clip serve` answers with, and whom."""

    models: tuple[str, ...] = ()
    """A model's name or path, or NAME=PATH to name it; default: that of the index, else ViT-B/32."""
    model: ModelOptions = ModelOptions()  # noqa: RUF009  frozen, as are the next three
    """How the models run; the name in it is not used."""
    decode: DecodeOptions = DecodeOptions()  # noqa: RUF009
    """How images become pixels."""
    limits: Limits = Limits()  # noqa: RUF009
    """What an image may cost."""
    traffic: Traffic = Traffic()
    """How much of requests is taken at a time."""
    index: tuple[str | Path, ...] = ()
    """Outputs of `clip embed` to search in, with the page at /."""
    root: str | Path | None = None
    """Folder where the images of the index are now, if they have moved since."""
    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0 is all of this machine's."""
    port: int = 8000
    """Port to listen at; 0 takes a free one."""
    api_key: str | None = None
    """Key that requests must carry, as Authorization: Bearer KEY; default: none is asked for."""
    hosts: tuple[str, ...] = ()
    """Other names of this server, as a proxy passes them on; asked by others, one of this machine alone refuses."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose pages may call this server from a browser; * is all."""
    allow_urls: bool = False
    """Fetch images from URLs in requests; never from addresses that are not public."""
    fetch_seconds: float = 10.0
    """Seconds that fetching an image may take, with allow_urls."""
    decoders: Decoders = "processes"
    """Where images are decoded: in processes, which may crash or hang without harm to the server, or in threads."""
    workers: int | None = None
    """Images to decode at the same time; default: one per core."""
    max_seconds: float = 10.0
    """Seconds that decoding an image may take, in processes."""
    decode_budget_bytes: int = 400_000_000
    """Bytes of decoded images that may be held at the same time."""
    access_log: AccessLog = "auto"
    """A line on stderr for each request: text on a terminal and JSON elsewhere (auto), or one of them, or none."""

    def __post_init__(self) -> None:
        check_counts(self, ("workers", "decode_budget_bytes"))
        check_words(self)
        if not 0 <= self.port <= MAX_PORT:
            raise InputError("`port`", f"found {self.port}", f"0 to {MAX_PORT:,}", "Pass another number.")
        for name in ("max_seconds", "fetch_seconds"):
            if not getattr(self, name) > 0:
                raise InputError(f"`{name}`", f"found {getattr(self, name)}", "more than 0", "Pass a larger number.")
        if self.api_key is not None and not self.api_key:
            raise InputError("`api_key`", "found an empty one", "a key", "Leave it out to ask for none.")
