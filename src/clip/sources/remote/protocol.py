"""The answers of a server, its errors, and the calls that a server of each scheme provides.

A call to a `Server` makes one request; client.py decides how often a failed request is repeated.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Protocol

from ...retry import RETRIED_STATUS

GONE, FORBIDDEN = (404, 410), (401, 403)
MAX_MESSAGE = 200  # characters of a server's or a library's message
MAX_TIME_NS = 2**63 - 1  # the largest that a plan can hold, in the year 2262


@dataclass(frozen=True)
class Status:
    """Size, version and time of change of a file. Equal ones mean equal bytes, as far as the server says."""

    size_bytes: int | None
    etag: str = ""
    modified_s: int = 0  # since the epoch; 0 where the server does not say

    @property
    def modified_ns(self) -> int:
        """The second of its change, plus a hash of the ETag below it: a change within the same second shows."""
        trace = int.from_bytes(hashlib.sha256(self.etag.encode()).digest()[:4], "big") % 10**9 if self.etag else 0
        return max(-MAX_TIME_NS, min(self.modified_s * 10**9 + trace, MAX_TIME_NS))


class TransportError(Exception):
    """A failed request; `retryable` if the next attempt may succeed."""

    def __init__(self, message: str, *, code: int = 0, retryable: bool = False, wait_s: float = 0.0) -> None:
        super().__init__(message)
        self.message = message
        self.code = code  # of HTTP; 0 where there was no answer
        self.retryable = retryable
        self.wait_s = wait_s  # that the server asks for

    def as_error(self, message: str) -> OSError:
        """Return the builtin exception for it, with another message."""
        if self.code in GONE:
            return FileNotFoundError(message)
        if self.code in FORBIDDEN:
            return PermissionError(message)
        return ConnectionError(message) if self.retryable else OSError(message)


class Answer(Protocol):
    """An answer whose body is still to be read."""

    status: Status
    start: int  # the place of its first byte in the file
    length: int | None  # of the body, as announced
    encoding: str  # "gzip", "deflate", or "" for the file's own bytes

    async def read(self) -> bytes:
        """Return the next bytes; none at the end."""
        ...

    def close(self) -> None:
        """Drop the rest."""
        ...


class Server(Protocol):
    """The server of one scheme. All calls raise TransportError."""

    async def get(self, url: str, start: int, stop: int | None) -> Answer:
        """Request a file, or a part of it if either end is given."""
        ...

    async def get_status(self, url: str) -> Status:
        """Request the status of a file without its bytes."""
        ...

    async def list_page(self, url: str, token: Any) -> tuple[list[tuple[str, Status]], Any]:
        """Request some files below a prefix, by URL, and the token of the next page; None begins and ends."""
        ...


def parse_time(value: Any) -> int:
    """Return the seconds since the epoch of a time as servers and libraries write it; 0 for anything else."""
    try:
        if isinstance(value, datetime):
            return int(value.timestamp())
        if isinstance(value, (int, float)):
            return int(value)
        if "," in value:
            return int(parsedate_to_datetime(value).timestamp())
        return int(datetime.fromisoformat(value).astimezone(UTC).timestamp())
    except (ValueError, TypeError, OverflowError):
        return 0


def make_refusal(code: int, message: str, retry_after: str = "") -> TransportError:
    """Return the error for a status of HTTP."""
    wait_s = float(retry_after) if retry_after.isdigit() else 0.0
    retryable = code in RETRIED_STATUS or not code
    message = "" if message == str(code) else message  # S3's libraries repeat the code where there is no body
    answer = f"the server answered {code} {message[:MAX_MESSAGE]}".strip()
    return TransportError(answer, code=code, retryable=retryable, wait_s=wait_s)


def describe(exc: BaseException) -> str:
    """Return an exception in a few words."""
    return (str(exc) or type(exc).__name__)[:MAX_MESSAGE]
