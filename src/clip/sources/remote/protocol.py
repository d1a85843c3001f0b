"""What a server tells and sends, and what it does instead. Knows nothing about schemes or libraries.

A `Server` is asked once for each `Answer`; who asks, how often and how patiently is not its concern.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Protocol

from ...retry import RETRIED_STATUS

GONE, FORBIDDEN = (404, 410), (401, 403)
MAX_SAID = 200  # characters of what a server says
MAX_TIME_NS = 2**63 - 1  # that a plan can hold; reached in the year 2262


@dataclass(frozen=True)
class Status:
    """What a server tells of a file: two that are equal are of the same bytes, as far as it tells anything."""

    size_bytes: int | None
    etag: str = ""
    modified_s: int = 0  # since the epoch; 0 where it is not told

    @property
    def modified_ns(self) -> int:
        """The second of its change, with a trace of the ETag below it: what is replaced within a second shows."""
        trace = int.from_bytes(hashlib.sha256(self.etag.encode()).digest()[:4], "big") % 10**9 if self.etag else 0
        return max(-MAX_TIME_NS, min(self.modified_s * 10**9 + trace, MAX_TIME_NS))


class TransportError(Exception):
    """What a server did instead of giving what was asked for; `passes` if it may do better the next time."""

    def __init__(self, said: str, *, code: int = 0, passes: bool = False, wait_s: float = 0.0) -> None:
        super().__init__(said)
        self.said = said
        self.code = code  # of HTTP; 0 where it did not come to that
        self.passes = passes
        self.wait_s = wait_s  # that the server asks for

    def as_error(self, said: str) -> OSError:
        """The builtin exception that says so."""
        if self.code in GONE:
            return FileNotFoundError(said)
        if self.code in FORBIDDEN:
            return PermissionError(said)
        return ConnectionError(said) if self.passes else OSError(said)


class Answer(Protocol):
    """What a server has begun to send."""

    status: Status
    start: int  # the place of its first byte in the file
    length: int | None  # of the body, as it says
    encoding: str  # "gzip", "deflate", or "" for the file's own bytes

    async def read(self) -> bytes:
        """The next bytes; none at the end."""
        ...

    def close(self) -> None:
        """Leave the rest."""
        ...


class Server(Protocol):
    """Where files of one scheme are. All raise TransportError."""

    async def get(self, url: str, start: int, stop: int | None) -> Answer:
        """A file, or a part of it if either end is given."""
        ...

    async def status(self, url: str) -> Status:
        """What is told of a file without its bytes."""
        ...

    async def page(self, url: str, token: Any) -> tuple[list[tuple[str, Status]], Any]:
        """Some files below a prefix, by URL, and the token of the next page; None is that of the first, and ends it."""
        ...


def seconds(told: Any) -> int:
    """A time as servers and libraries write it; 0 for one that is none."""
    try:
        if isinstance(told, datetime):
            return int(told.timestamp())
        if isinstance(told, (int, float)):
            return int(told)
        if "," in told:
            return int(parsedate_to_datetime(told).timestamp())
        return int(datetime.fromisoformat(told).astimezone(UTC).timestamp())
    except (ValueError, TypeError, OverflowError):
        return 0


def refusal(code: int, said: str, retry_after: str = "") -> TransportError:
    """What a status of HTTP means."""
    wait_s = float(retry_after) if retry_after.isdigit() else 0.0
    passes = code in RETRIED_STATUS or not code
    said = "" if said == str(code) else said  # an answer without a body, as S3's libraries tell it
    told = f"the server answered {code} {said[:MAX_SAID]}".strip()
    return TransportError(told, code=code, passes=passes, wait_s=wait_s)


def said_of(exc: BaseException) -> str:
    """An exception in a few words."""
    return (str(exc) or type(exc).__name__)[:MAX_SAID]
