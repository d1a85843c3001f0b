"""What an actor does: hold a model, and write the shards of a run that it is told. Knows nothing of Ray."""

from __future__ import annotations

import os
import time
import warnings
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING

from ..batch.embed import begin_run, join_run
from ..batch.encoders import load_encoder
from ..batch.opening import open_source
from ..engine.devices import limit_threads
from ..errors import InputError
from ..jobs.embed import EmbedJob, Progress
from ..memory import set_aside_objects

if TYPE_CHECKING:
    from ..batch.embed import OpenedRun
    from ..encoder import Encoder
    from ..store.lock import Holding


@dataclass(frozen=True)
class Begun:
    """What the first actor found, or listed."""

    missing: list[int]  # shards
    shards: int
    total: int | None  # entries; None where an archive does not say how many it holds
    resumed: int  # entries that earlier runs have written
    done: int  # of these, in shards that are done
    failed: int  # likewise
    removed: int
    renamed: int


@dataclass(frozen=True)
class Written:
    """What some shards have become."""

    shards: int = 0
    read: int = 0
    failed: int = 0
    bytes: int = 0  # of images that were read now
    warned: int = 0
    stored_turned: int = 0
    unread: Counter[str] = field(default_factory=Counter[str])  # failures that are HEIC, RAW or videos, by kind
    seconds: float = 0.0

    def __add__(self, other: Written) -> Written:
        """Return what both together have become."""
        return Written(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(Written)))


@dataclass(frozen=True)
class Finished:
    """What the whole run has become."""

    counts: dict[str, int]
    ignored: dict[str, int]
    empty: list[str]  # copied columns without any value


class StoppedError(Exception):
    """The driver wants no more; what was done is saved."""


class Worker:
    """Writes shards. One call at a time does work; `look` and `stop` may come beside it, from another thread."""

    def __init__(self, job: EmbedJob, folder: str, lock: Holding, threads: int) -> None:
        """Do nothing yet: an error at this point would lose its reason. `folder` is where relative paths start."""
        self._job = job
        self._folder = folder
        self._lock = lock
        self._threads = threads
        self._encoder: Encoder | None = None
        self._opened: OpenedRun | None = None
        self._progress = Progress(0, 0, 0, loading=job.model_options.name)
        self._is_stopping = False
        self._open = ExitStack()

    def load(self) -> None:
        """Load the model. Raises: as Encoder; InputError where this node has no such folder."""
        try:
            os.chdir(self._folder)
        except OSError as exc:
            remedy = "Start the run in a folder that all nodes see, or name inputs and output from the root."
            raise InputError(self._folder, f"cannot be opened on {os.uname().nodename} ({exc})", "", remedy) from exc
        warnings.filterwarnings("ignore", module=r"PIL\.")  # what Pillow warns of is in the image's row
        self._open.enter_context(limit_threads(self._threads))
        self._encoder = load_encoder(self._job.model_options, self._job.decode.pixels)

    def begin(self) -> Begun:
        """Load the model, list the input, and say what is missing. Raises: as `embed`."""
        self.load()
        opened = self._opened = begin_run(
            self._job, self._get_encoder(), open_source(self._job), None, self._lock, self._note
        )
        run = opened.make_run(self._lock, None)
        if run.find_missing():
            opened.store.reopen()
        run.close()
        missing = set(run.missing)
        rows, failed = opened.store.counts(index for index in range(opened.plan.shards) if index not in missing)
        return Begun(
            list(run.missing),
            opened.plan.shards,
            opened.plan.total,
            run.resumed,
            rows + failed,
            failed,
            opened.removed,
            opened.renamed,
        )

    def write(self, shards: tuple[int, ...], *, isolated: bool) -> Written:
        """Write these shards, but those that are there. Raises: as `embed`; StoppedError after `stop`."""
        started = time.monotonic()
        opened = self._join()
        if isolated:
            opened = replace(opened, job=replace(opened.job, isolate=True, decoders="auto"))
        run = opened.make_run(self._lock, self._note, shards)
        run.find_missing()
        with set_aside_objects():
            run.write()
        rows, failed = opened.store.counts(shards)
        notes = run.notes
        read_bytes, self._progress = self._progress.bytes, Progress(0, None, 0)
        return Written(
            len(shards),
            rows + failed,
            failed,
            read_bytes,
            notes.warned,
            notes.stored_turned,
            notes.unread,
            time.monotonic() - started,
        )

    def finish(self) -> Finished:
        """Count all shards, and write the counts into the manifest. Raises: StoreError where an entry is missing."""
        opened = self._join()
        opened.store.remove_temporaries(range(opened.plan.shards))
        counts, ignored = opened.count(range(opened.plan.shards))
        self._lock.check()
        _, empty = opened.finish(counts | {"ignored": ignored})
        return Finished(counts, ignored, empty)

    def look(self) -> Progress:
        """Return how far the call is that does work."""
        return self._progress

    def stop(self) -> None:
        """Have the call that does work save what it has, and end."""
        self._is_stopping = True

    def _join(self) -> OpenedRun:
        if self._opened is None:
            self._opened = join_run(self._job, self._get_encoder(), open_source(self._job))
        return self._opened

    def _get_encoder(self) -> Encoder:
        if self._encoder is None:
            raise AssertionError("the model is loaded first")
        return self._encoder

    def _note(self, progress: Progress) -> None:
        self._progress = progress
        if self._is_stopping:
            raise StoppedError
