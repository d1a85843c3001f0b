"""Download a file that is known by its sha256, so that under its name it is whole or absent.

The bytes go to a hidden file beside the target. A later run resumes what an interrupted one left there. The file gets
its name only when its hash is right. One process downloads, the others wait for it.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import TYPE_CHECKING, Any, BinaryIO

from filelock import FileLock
from tqdm import tqdm

from ..errors import DownloadError
from ..retry import RETRIED_STATUS, Patience

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CHUNK_BYTES = 1 << 20
MAX_RESTARTS = 1  # of a file whose hash turned out wrong; after a second wrong one the server is at fault
NOT_KNOWN = "the name of its host is not known here, as where there is no network"
PARTIAL_CONTENT, RANGE_NOT_SATISFIABLE = 206, 416


def knows_host(url: str) -> bool:
    """Return whether the name of a URL's host is known, where it is asked directly; with a proxy that is not known."""
    parts = urllib.parse.urlsplit(url)
    if urllib.request.getproxies().get(parts.scheme) or not parts.hostname:
        return True
    try:
        return bool(socket.getaddrinfo(parts.hostname, None))
    except OSError:
        return False


class _RetryError(Exception):
    """A failure that may pass. Its message says what the server did."""


def fetch(
    url: str,
    target: Path,
    *,
    sha256: str,
    is_whole: Callable[[], bool],
    size_bytes: int | None = None,
    patience: Patience = Patience(),  # noqa: B008  frozen
) -> None:
    """Download a URL to `target`, replacing what is there.

    `is_whole` returns whether another process did so while this one waited for the lock. Proxies come from the
    environment. Without `size_bytes` the length is what the server says.

    Raises:  DownloadError (a RuntimeError) that says what the server did, or what the disk lacks.
    """
    part = target.with_name(f".{target.name}.{sha256[:8]}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f".{target.name}.lock")):
            if is_whole():
                return
            with part.open("a+b") as file:
                _Download(url, file, sha256, size_bytes, patience).run()
                file.flush()
                os.fsync(file.fileno())
            part.replace(target)
    except OSError as exc:
        found = f"cannot be written ({exc.strerror or exc})"
        remedy = "Make room, or pass another folder as `download_root`."
        raise DownloadError(target, found, "a folder with space and permission", remedy) from exc


class _Download:
    """A download in progress: the bytes on the disk, their hash, and the restarts so far."""

    def __init__(self, url: str, file: BinaryIO, sha256: str, size_bytes: int | None, patience: Patience) -> None:
        self.url = url
        self.file = file
        self.sha256 = sha256
        self.total = size_bytes  # None where it is not known
        self.patience = patience
        self.digest = hashlib.sha256()
        self.done = 0
        self.restarts = 0

    def run(self) -> None:
        """Download until the hash is right. Raises DownloadError after too many attempts."""
        self._resume()
        if self.digest.hexdigest() == self.sha256:
            return  # an earlier run ended between the last byte and the renaming
        idle = 0  # attempts in a row that brought no byte
        with tqdm(
            total=self.total, initial=self.done, unit="iB", unit_scale=True, unit_divisor=1024, ncols=80, disable=None
        ) as bar:
            while True:
                before = self.done
                try:
                    self._transfer(bar)
                    if self.digest.hexdigest() == self.sha256:
                        return
                    self._start_over()
                    problem = f"gave {before:,} bytes with another sha256"
                except _RetryError as exc:
                    problem = str(exc)
                idle = 0 if self.done > before else idle + 1
                if idle >= self.patience.attempts or self.restarts > MAX_RESTARTS:
                    found = f"the server {problem}"
                    remedy = "Try again later; the download will be resumed."
                    raise DownloadError(self.url, found, f"the file with sha256 {self.sha256}", remedy)
                bar.reset(self.total)
                bar.update(self.done)
                time.sleep(self.patience.wait_s(idle + 1))

    def _resume(self) -> None:
        """Hash the bytes that an earlier run left; what comes is written after them."""
        self.file.seek(0)
        while chunk := self.file.read(CHUNK_BYTES):
            self._count(chunk)

    def _count(self, chunk: bytes) -> None:
        self.digest.update(chunk)
        self.done += len(chunk)

    def _start_over(self) -> None:
        self.file.seek(0)
        self.file.truncate()
        self.digest = hashlib.sha256()
        self.restarts += self.done > 0
        self.done = 0

    def _transfer(self, bar: tqdm[Any]) -> None:
        """Request the missing bytes and append them. Raises _RetryError unless all of them came."""
        if self.done == self.total:
            return
        with self._request() as response:
            if self.done and not self._continues(response):
                self._start_over()
                if response.status == PARTIAL_CONTENT:
                    raise _RetryError("sends another part than was requested")
            length = response.headers.get("Content-Length", "")
            total = self.total if self.total is not None else self.done + int(length) if length.isdigit() else None
            while chunk := self._read(response):
                self.file.write(chunk)
                self._count(chunk)
                bar.update(len(chunk))
                if total is not None and self.done > total:
                    self._start_over()
                    raise _RetryError(f"sends more than {total:,} bytes")
        if total is not None and self.done < total:
            raise _RetryError(f"closed the connection after {self.done:,} of {total:,} bytes")

    def _request(self) -> http.client.HTTPResponse:
        request = urllib.request.Request(self.url, headers={"User-Agent": "clip-turbo"})
        if self.done:
            request.add_header("Range", f"bytes={self.done}-")
        try:
            # Not urlopen, which keeps the proxies that the environment named at its first use.
            return urllib.request.build_opener().open(request, timeout=self.patience.timeout_s)
        except urllib.error.HTTPError as exc:
            exc.close()
            if exc.code == RANGE_NOT_SATISFIABLE:
                self._start_over()
            elif exc.code not in RETRIED_STATUS:
                found = f"the server answered {exc.code} {exc.reason}"
                remedy = "Get it from elsewhere, or pass the path of a copy."
                raise DownloadError(self.url, found, "the file", remedy) from exc
            raise _RetryError(f"answered {exc.code} {exc.reason}") from exc
        except (OSError, http.client.HTTPException) as exc:
            reason = getattr(exc, "reason", None) or exc
            if isinstance(reason, socket.gaierror):  # another try asks the same name server
                raise DownloadError(self.url, NOT_KNOWN, "the file", "Check the network.") from exc
            raise _RetryError(f"cannot be reached ({reason})") from exc

    def _continues(self, response: http.client.HTTPResponse) -> bool:
        wanted = f"bytes {self.done}-"
        return response.status == PARTIAL_CONTENT and response.headers.get("Content-Range", "").startswith(wanted)

    def _read(self, response: http.client.HTTPResponse) -> bytes:
        try:
            return response.read(CHUNK_BYTES)
        except (OSError, http.client.HTTPException) as exc:
            raise _RetryError(f"went silent after {self.done:,} bytes ({exc})") from exc
