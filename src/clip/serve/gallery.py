"""The outputs of `clip embed` that are searched, and the small images of their rows."""

from __future__ import annotations

import io
import threading
from bisect import bisect_right
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..batch.replay import open_run_source, replay_entries
from ..errors import ClipError, InputError
from ..network.records import PreprocessSettings
from ..object_paths import ObjectPath, open_place
from ..records import Failure, Item, Member, Pixels
from ..retrieval.search import Index
from ..store.parts import shard_number
from ..store.plan import read_plan
from .decoders import DecoderError, Decoders
from .duplicates import DuplicateSearches

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..jobs.serve import ServeJob
    from .models import Models, ServedModel

TILE_PX = 224
QUALITY = 82  # of a JPEG; tiles of photos take some 10 kB
CACHE_BYTES = 64_000_000
READERS = 2  # threads that read images for tiles: they wait for the disk, the decoders do the work
MAX_PENDING = 2_000  # tiles
MAX_CELL = 400  # letters of a column's value in an answer
HIDDEN = ("path", "sha256", "embedding", "text_embedding")  # columns that no answer shows


class Gallery:
    """An output that is searched."""

    def __init__(self, name: str, output: Path, model: ServedModel, job: ServeJob) -> None:
        """Open the index of an output. Raises: as Index."""
        self.name, self.model = name, model
        self.index = Index(output, root=job.root)
        self.tiles = Tiles(self.index, job)
        shown = [column for column in self.index.rows.column_names if column not in HIDDEN]
        self._shown = self.index.rows.select(shown)

    def describe(self) -> dict[str, Any]:
        """Return what a page has to know of it."""
        manifest = self.index.store.manifest
        columns = [name for name in self._shown.column_names if name != "id"]
        return {
            "name": self.name,
            "rows": len(self.index),
            "kind": manifest.kind,
            "model": self.model.name,
            "columns": columns,
            "untrained": manifest.untrained is not None,
        }

    def describe_row(self, place: int, score: float) -> dict[str, Any]:
        """Return a hit: the row's id, number, score and columns."""
        columns = {name: _cut(self._shown.column(name)[place].as_py()) for name in self._shown.column_names}
        own_id = columns.pop("id")
        return {"id": own_id, "row": place, "score": score, "columns": columns}

    def find_row(self, value: object) -> int:
        """Return the row of a number or an id. Raises: InputError where there is none."""
        place = -1
        if isinstance(value, int) and not isinstance(value, bool):
            place = value
        elif isinstance(value, str):
            place = self.index.rows.column("id").index(value).as_py()
        if not 0 <= place < len(self.index):
            raise InputError("like", f"found {value!r}"[:120], f"an id of {self.name}", "Pass a hit's id.")
        return place


class Galleries:
    """All outputs that are searched, by their names: the last part of their paths."""

    def __init__(self, job: ServeJob, models: Models) -> None:
        self._job, self._models = job, models
        self.duplicates = DuplicateSearches(job.root)
        self.all: dict[str, Gallery] = {}
        self.is_open = not job.index

    def open(self) -> None:
        """Open all. Raises: as Index."""
        for output, model in zip(self._job.index, self._models.of_index, strict=True):
            place = open_place(output)
            stem = name = (place if isinstance(place, ObjectPath) else place.resolve()).name or "index"
            number = 1
            while name in self.all:
                number += 1
                name = f"{stem}-{number}"
            self.all[name] = Gallery(name, place, model, self._job)
        self.is_open = True

    def find(self, name: object) -> Gallery:
        """Return the output that a request names; the first where it names none. Raises: InputError."""
        if not self.all:
            raise InputError("index", "this server has none", remedy="Start it with one: clip serve --index OUT.")
        if name is None or name == "":
            return next(iter(self.all.values()))
        if not isinstance(name, str) or name not in self.all:
            raise InputError("index", f"found {name!r}"[:120], f"one of {', '.join(self.all)}", "Pass one of them.")
        return self.all[name]

    def close(self) -> None:
        """End what makes tiles, and what looks for duplicates."""
        self.duplicates.close()
        for gallery in self.all.values():
            gallery.tiles.close()


class Tiles:
    """Small square images of an output's rows, as JPEG, made when they are asked for and kept for a while.

    Rows of one part are read in one go, as an archive is read from its beginning.
    """

    def __init__(self, index: Index, job: ServeJob) -> None:
        self._index, store = index, index.store
        self._parts = store.parts()
        self._stops = list(accumulate(store.files.summarise(path).rows for path in self._parts))
        self._cache: OrderedDict[int, Future[bytes]] = OrderedDict()
        self._cached_bytes = 0
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(READERS, thread_name_prefix="clip-tiles")
        self._decoders: Decoders | None = None
        self.reason: str | None = None  # why there are none
        try:
            self._plan = read_plan(store.path)
            self._decoding = open_run_source(store, PreprocessSettings(TILE_PX))
        except ClipError as exc:
            self.reason = str(exc)
            return
        self._decoding = replace(self._decoding, options=replace(self._decoding.options, orient="exif", pixels="fast"))
        self._decoders = Decoders(job, self._decoding)

    def begin(self, rows: Sequence[int]) -> None:
        """Begin to make the tiles of rows, unless they are there."""
        by_part: dict[int, list[int]] = {}
        with self._lock:
            if self._decoders is None or sum(not each.done() for each in self._cache.values()) > MAX_PENDING:
                return
            for row in rows:
                if row in self._cache:
                    self._cache.move_to_end(row)
                    continue
                self._cache[row] = Future()
                by_part.setdefault(bisect_right(self._stops, row), []).append(row)
        for part, wanted in by_part.items():
            self._pool.submit(self._make, part, wanted)

    def find(self, row: int) -> Future[bytes] | None:
        """Return the future tile of a row; None where too many are being made, or none can be."""
        self.begin([row])
        with self._lock:
            return self._cache.get(row)

    def close(self) -> None:
        """Make no more."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        if self._decoders is not None:
            self._decoders.close()

    def _make(self, part: int, rows: list[int]) -> None:
        ids = self._index.rows.column("id")
        wanted: dict[str, list[int]] = {}
        for row in rows:
            wanted.setdefault(ids[row].as_py(), []).append(row)
        try:
            for own_id, tile in self._replay(part, set(wanted)):
                for row in wanted.pop(own_id, ()):
                    self._put(row, tile)
            reason: Exception = LookupError("it is not there any more")
        except Exception as exc:  # noqa: BLE001  the tiles of this part have it as their reason
            reason = exc
        for row in (row for rows in wanted.values() for row in rows):
            self._put(row, reason)

    def _replay(self, part: int, ids: set[str]) -> Any:
        if self._plan is None or self._decoders is None:
            raise LookupError("the run's listing is not there any more")
        decoders = self._decoders

        def prepare(entry: Item | Member) -> list[Pixels | Failure]:
            return decoders.submit(entry).result()

        shard = self._plan.shard(shard_number(self._parts[part]))
        for outcome in replay_entries(shard, ids, self._decoding, prepare, fetch=False):
            if isinstance(outcome, Failure):
                yield outcome.id, LookupError(outcome.message)
            else:
                yield outcome.row.id, _encode(outcome.array)

    def _put(self, row: int, tile: bytes | Exception) -> None:
        with self._lock:
            future = self._cache.get(row)
            if future is None or future.done():
                return
            if isinstance(tile, Exception):
                del self._cache[row]  # it may be there the next time
            else:
                self._cached_bytes += len(tile)
            self._drop_oldest()
        if isinstance(tile, Exception):
            future.set_exception(tile if isinstance(tile, (LookupError, DecoderError)) else LookupError(str(tile)))
        else:
            future.set_result(tile)

    def _drop_oldest(self) -> None:
        for row in list(self._cache):
            if self._cached_bytes <= CACHE_BYTES:
                return
            if self._cache[row].done():
                self._cached_bytes -= len(self._cache.pop(row).result())


def _encode(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def _cut(value: Any) -> Any:
    """Return a column's value as JSON has it, long texts cut."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    text = str(value)
    return text if len(text) <= MAX_CELL else text[:MAX_CELL] + "..."
