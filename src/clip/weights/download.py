"""A URL and a sha256 -> that file, whole, in its place, or nothing there. Knows nothing about models.

The bytes go to a hidden file beside the target; what an interrupted run left in it is continued, not fetched again.
Only when the hash is right does the file get its name. One process fetches, the others wait for it.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from filelock import FileLock
from tqdm import tqdm

from ..errors import DownloadError
from ..retry import RETRIED_STATUS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CHUNK_BYTES = 1 << 20
MAX_WAIT_S = 30.0
MAX_RESTARTS = 1  # of a file whose hash turned out wrong; a second wrong one is the server's
PARTIAL_CONTENT, RANGE_NOT_SATISFIABLE = 206, 416


@dataclass(frozen=True)
class Patience:
    """How long to bear with a server."""

    attempts: int = 4  # in a row that bring no byte
    timeout_s: float = 30.0  # for a connection, and between two reads
    first_wait_s: float = 1.0  # before the second attempt; doubled each time, up to MAX_WAIT_S


DEFAULT_PATIENCE = Patience()


class _RetryError(Exception):
    """The server did something that may go better the next time."""


def fetch(
    url: str,
    target: Path,
    *,
    sha256: str,
    is_whole: Callable[[], bool],
    size_bytes: int | None = None,
    patience: Patience = DEFAULT_PATIENCE,
) -> None:
    """Make `target` the file of this URL, in the place of whatever stands there.

    `is_whole` tells whether another process did so while this one waited for it. Proxies come from the environment.
    Without `size_bytes` the server's word is taken for the length.

    Raises:  DownloadError (a RuntimeError), saying what the server did, or what the disk lacks.
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
        raise DownloadError(
            target,
            f"cannot be written ({exc.strerror or exc})",
            "a folder with space and permission",
            "Make room, or pass another folder as download_root.",
        ) from exc


class _Download:
    """One file on its way: what is on the disk, its hash so far, and the attempts made."""

    def __init__(self, url: str, file: BinaryIO, sha256: str, size_bytes: int | None, patience: Patience) -> None:
        self.url = url
        self.file = file
        self.sha256 = sha256
        self.total = size_bytes  # None until the server has told
        self.patience = patience
        self.digest = hashlib.sha256()
        self.done = 0
        self.restarts = 0

    def run(self) -> None:
        """Fetch until the hash is right. Raises DownloadError when patience is at an end."""
        self._take_up()
        if self.digest.hexdigest() == self.sha256:
            return  # an earlier run was ended between the last byte and the renaming
        idle = 0
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
                    raise DownloadError(
                        self.url,
                        f"the server {problem}",
                        f"the file with sha256 {self.sha256}",
                        "Try again later; what came of it is kept and continued.",
                    )
                bar.reset(self.total)
                bar.update(self.done)
                time.sleep(min(self.patience.first_wait_s * 2 ** max(0, idle - 1), MAX_WAIT_S))

    def _take_up(self) -> None:
        """Hash what an earlier run left, and stand behind its last byte."""
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
        """Ask for what is missing and append what comes. Returns when nothing is missing; raises _RetryError else."""
        if self.done == self.total:
            return
        with self._ask() as response:
            if self.done and not self._continues(response):
                self._start_over()
                if response.status == PARTIAL_CONTENT:
                    raise _RetryError("sends another part than the one asked for")
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

    def _ask(self) -> http.client.HTTPResponse:
        request = urllib.request.Request(self.url, headers={"User-Agent": "clip-turbo"})
        if self.done:
            request.add_header("Range", f"bytes={self.done}-")
        try:
            # An opener of its own, because urlopen's keeps the proxies that the environment named at its first use.
            return urllib.request.build_opener().open(request, timeout=self.patience.timeout_s)
        except urllib.error.HTTPError as exc:
            exc.close()
            if exc.code == RANGE_NOT_SATISFIABLE:
                self._start_over()
            elif exc.code not in RETRIED_STATUS:
                raise DownloadError(
                    self.url,
                    f"the server answered {exc.code} {exc.reason}",
                    "the file",
                    "Take it from elsewhere, or pass the path of a copy.",
                ) from exc
            raise _RetryError(f"answered {exc.code} {exc.reason}") from exc
        except (OSError, http.client.HTTPException) as exc:
            raise _RetryError(f"cannot be reached ({getattr(exc, 'reason', None) or exc})") from exc

    def _continues(self, response: http.client.HTTPResponse) -> bool:
        wanted = f"bytes {self.done}-"
        return response.status == PARTIAL_CONTENT and response.headers.get("Content-Range", "").startswith(wanted)

    def _read(self, response: http.client.HTTPResponse) -> bytes:
        try:
            return response.read(CHUNK_BYTES)
        except (OSError, http.client.HTTPException) as exc:
            raise _RetryError(f"went silent after {self.done:,} bytes ({exc})") from exc
