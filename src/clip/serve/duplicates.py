"""Duplicates of an index, found in a process of its own, whose groups wait in a file until somebody turns to them.

It reads thousands of images for minutes: a damaged one ends that process and not the server, which comes first, too,
where both want the processor.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, get_args

from ..errors import ClipError, InputError
from ..jobs.duplicates import DuplicatesJob, Level
from ..parallel import start_thread

if TYPE_CHECKING:
    from pathlib import Path

    from ..jobs.duplicates import DuplicateGroup

LEVELS: tuple[Level, ...] = get_args(Level)
MAX_GROUPS = 200  # of an answer
PATIENCE = 10  # less of the processor than the server: man 2 nice
WORK = f"import sys; from {__name__} import work; work(*sys.argv[1:])"
HIDDEN = ("path", "removable")  # of an image; where files are is nobody's business


def parse_level(text: str) -> Level:
    """Return the level of this name. Raises: InputError."""
    for level in LEVELS:
        if level == text:
            return level
    raise InputError("level", f"found {text!r}"[:80], f"one of {', '.join(LEVELS)}", "Pass one of them.")


class DuplicateSearch:
    """One search, from its start to its last group."""

    def __init__(self, output: Path, level: Level, root: str | Path | None) -> None:
        """Start it. Raises: OSError where no process can be started."""
        self.error: str | None = None
        self.report: dict[str, Any] | None = None  # once it is over
        self.progress = ("rows compared", 0, 0)  # what is counted, how many are done, and of how many
        self._file = tempfile.TemporaryFile(prefix="clip-groups-")  # noqa: SIM115  closed with the search
        self._starts: list[int] = []  # of each group's line
        self._lock = threading.Lock()
        path = os.pathsep.join(entry or "." for entry in sys.path)
        command = [sys.executable, "-P", "-c", WORK, str(output), level, "" if root is None else str(root)]
        self._process = subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            process_group=0,  # Ctrl-C goes to the server, which ends it
        )
        self._reader = start_thread(self._read, "clip-duplicates")

    @property
    def is_running(self) -> bool:
        """Whether more groups may come."""
        return self.report is None and self.error is None

    def read(self, start: int, count: int) -> list[dict[str, Any]]:
        """Return some of the groups."""
        groups: list[dict[str, Any]] = []
        with self._lock:
            for place in self._starts[start : start + count]:
                self._file.seek(place)
                groups.append(json.loads(self._file.readline()))
        return groups

    def close(self) -> None:
        """End the process, and let the groups go."""
        self._process.kill()
        self._reader.join()
        self._file.close()

    def _read(self) -> None:
        with self._process as process:
            for line in process.stdout or ():
                self._take(line)
        if self.report is None and self.error is None:
            self.error = f"the process that looked for duplicates ended with code {self._process.returncode}"

    def _take(self, line: bytes) -> None:
        kind, value = json.loads(line)
        if kind == "group":
            with self._lock:
                self._starts.append(self._file.seek(0, os.SEEK_END))
                self._file.write(json.dumps(value).encode() + b"\n")
        elif kind == "progress":
            self.progress = tuple(value)
        elif kind == "report":
            self.report = value
        else:
            self.error = value


class DuplicateSearches:
    """The searches of a server: one runs at a time, and each is kept, as what is served does not change."""

    def __init__(self, root: str | Path | None) -> None:
        self._root = root
        self._all: dict[tuple[str, Level], DuplicateSearch] = {}
        self._lock = threading.Lock()

    def find(self, name: str, output: Path, level: Level) -> DuplicateSearch | None:
        """Return the search of an index at a level, begun if need be; None while another one runs.

        Raises:  OSError where no process can be started.
        """
        with self._lock:
            search = self._all.get((name, level))
            if search is None and not any(other.is_running for other in self._all.values()):
                search = self._all[name, level] = DuplicateSearch(output, level, self._root)
            return search

    def forget(self, name: str, level: Level) -> None:
        """Drop a search that failed: the next request tries again."""
        with self._lock:
            search = self._all.pop((name, level), None)
        if search is not None:
            search.close()

    def close(self) -> None:
        """End all."""
        with self._lock:
            for search in self._all.values():
                search.close()
            self._all.clear()


def work(output: str, level: Level, root: str) -> None:
    """Run in a separate process: write what `find_duplicates` finds to stdout, a JSON line each."""
    from ..retrieval.duplicates import find_duplicates

    with suppress(OSError):
        os.nice(PATIENCE)

    def write(kind: str, value: object) -> None:
        sys.stdout.write(json.dumps([kind, value]) + "\n")  # escaped: an id may hold half a letter
        sys.stdout.flush()  # where the server is gone this fails, and ends the process

    def write_group(group: DuplicateGroup) -> None:
        images = [{k: v for k, v in asdict(image).items() if k not in HIDDEN} for image in group.images]
        write("group", {"number": group.number, "images": images})

    def write_progress(what: str, done: int, total: int) -> None:
        write("progress", (what, done, total))

    try:
        job = DuplicatesJob(output=output, level=level, root=root or None)
        report = find_duplicates(job, write_group, progress=write_progress)
    except (ClipError, OSError) as exc:
        write("error", str(exc))
        return
    write("report", {name: value for name, value in asdict(report).items() if name != "groups"})
