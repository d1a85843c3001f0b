"""Fetch an image that a request names by its URL, from public addresses only.

A name is resolved once, every address of it is checked, and the one that was checked is dialled: a name that answers
otherwise the second time leads nowhere. Redirects are followed here, and checked like the first address. Size, time and
the number of redirects are limited. Source of the ranges: `ipaddress`, which follows IANA's registries.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
import time
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urljoin, urlsplit

from ..errors import ImageError, quote

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_REDIRECTS = 4
REDIRECTS = frozenset({301, 302, 303, 307, 308})
PIECE_BYTES = 65_536
MAX_URL = 4_096  # letters
SPECIAL = ipaddress.ip_network("192.0.0.0/24"), ipaddress.ip_network("192.88.99.0/24")  # as newer Pythons have them
NAT64 = ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("64:ff9b:1::/48")
PUBLIC = "an image at an address that is public"
SEND_IT = "Send the image itself, as a data URI."


def fetch(
    url: str, place: str, *, max_bytes: int, seconds: float, is_allowed: Callable[[str], bool] | None = None
) -> bytes:
    """Return the bytes that a URL gives. `is_allowed` judges an address as a text; default: `is_public`.

    Raises:  ImageError for an address that is not public, for redirects without end, for too many bytes or seconds, and
             for an answer that is none.
    """
    end = time.monotonic() + seconds
    allowed = is_allowed or is_public
    for _ in range(MAX_REDIRECTS + 1):
        parts = _split(url, place)
        connection = _connect(parts, place, end, allowed)
        try:
            target = f"{parts.path or '/'}{f'?{parts.query}' if parts.query else ''}"
            connection.request("GET", target, headers={"Accept": "image/*", "User-Agent": "clip-turbo"})
            answer = connection.getresponse()
            if answer.status in REDIRECTS and (location := answer.headers.get("Location")):
                url = urljoin(url, location)
                continue
            if answer.status != 200:
                raise ImageError(place, f"the server answered {answer.status}", "an image", SEND_IT)
            return _read(answer, connection, place, max_bytes, end)
        except (
            OSError,
            HTTPException,
            ValueError,
        ) as exc:  # ValueError: a path that is no ASCII, a header of many lines
            if isinstance(exc, ImageError):
                raise
            raise ImageError(place, f"cannot be fetched ({type(exc).__name__})", "an image", SEND_IT) from exc
        finally:
            connection.close()
    raise ImageError(place, f"more than {MAX_REDIRECTS} redirects", "fewer", SEND_IT)


def is_public(address: str) -> bool:
    """Return whether an address is one of the internet's, and not of a network of one's own, inside another or not."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address):
        inner = parsed.ipv4_mapped or parsed.sixtofour or (parsed.teredo or (None, None))[1]
        if any(parsed in network for network in NAT64):
            inner = ipaddress.IPv4Address(int(parsed) & 0xFFFF_FFFF)
        if inner is not None and not is_public(str(inner)):
            return False
    is_special = parsed.is_multicast or any(parsed in network for network in SPECIAL)
    return parsed.is_global and not is_special


def _split(url: str, place: str) -> SplitResult:
    """Return the parts of a URL of HTTP. Raises: ImageError for another scheme, a user in it, and for no host."""
    try:
        parts = urlsplit(url)
        has_port = parts.port != 0
    except ValueError as exc:
        raise ImageError(place, f"found {quote(url)}", "a URL", SEND_IT) from exc
    if parts.scheme not in ("http", "https") or not parts.hostname or not has_port or len(url) > MAX_URL:
        raise ImageError(place, f"found {quote(url)}", "a URL of http or https", SEND_IT)
    if parts.username is not None or parts.password is not None or not url.isprintable() or " " in url:
        raise ImageError(place, f"found {quote(url)}", "a URL without a user and without spaces", SEND_IT)
    return parts


def _connect(parts: SplitResult, place: str, end: float, allowed: Callable[[str], bool]) -> HTTPConnection:
    """Return a connection to the address that was checked. Raises: ImageError."""
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as exc:
        raise ImageError(place, f"{quote(host)} cannot be found", PUBLIC, SEND_IT) from exc
    addresses = [str(entry[4][0]) for entry in found]
    if not addresses or not all(allowed(address) for address in addresses):
        raise ImageError(place, f"{quote(host)} is not public", PUBLIC, SEND_IT)
    left = end - time.monotonic()
    if left <= 0:
        raise ImageError(place, "took too long", "an answer in time", SEND_IT)
    try:
        dialled = socket.create_connection((addresses[0], port), left)
        if parts.scheme == "https":
            dialled = ssl.create_default_context().wrap_socket(dialled, server_hostname=host)
    except (OSError, ValueError) as exc:
        raise ImageError(place, f"{quote(host)} cannot be reached ({type(exc).__name__})", PUBLIC, SEND_IT) from exc
    kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    connection = kind(host, port)
    connection.sock = dialled
    return connection


def _read(answer: HTTPResponse, connection: HTTPConnection, place: str, max_bytes: int, end: float) -> bytes:
    """Return a body. Raises: ImageError where it is too long or takes too long."""
    body = bytearray()
    while True:
        left = end - time.monotonic()
        if left <= 0:
            raise ImageError(place, "took too long", "an answer in time", SEND_IT)
        if connection.sock is not None:
            connection.sock.settimeout(left)
        piece = answer.read1(PIECE_BYTES)
        if not piece:
            return bytes(body)
        body += piece
        if len(body) > max_bytes:
            raise ImageError(place, f"more than {max_bytes:,} bytes", "fewer", SEND_IT)
