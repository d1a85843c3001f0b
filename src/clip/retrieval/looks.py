"""What an image file is compared by, beside its vector: its bytes, its pixels, and a sketch of it."""

from __future__ import annotations

import hashlib
import tempfile
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..atomic_files import translate_os_errors
from ..batch.replay import open_run_source, replay_entries
from ..errors import StoreError
from ..images.adjust import adjust
from ..images.bomb_check import is_above_limit, unchecked
from ..images.decode import replace_raw, seek_frames
from ..images.edits import SIDE_PX, make_sketch
from ..images.fast import shrink_on_load
from ..images.open import make_size_error, read_encoded
from ..network.records import PreprocessSettings
from ..parallel import available_cores, map_ahead
from ..records import ContainerPart, Failure, Item, Member, Row
from ..store.parts import shard_number
from ..store.plan import read_plan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from PIL import Image

    from ..batch.decode import Decoding
    from ..records import Shard
    from ..store.reader import Store

DIGEST_BYTES = 16
LOOK = np.dtype(
    [
        ("bytes", np.uint8, DIGEST_BYTES),  # of the file
        ("pixels", np.uint8, DIGEST_BYTES),  # of all pixels; zeros where they were not asked for
        ("modified_ns", np.int64),  # when the input was listed
        ("seen", np.bool_),  # whether it could be read
        ("own", np.bool_),  # whether it is a file of its own on this machine, and no member or frame
    ]
)
SKETCH = (3, SIDE_PX, SIDE_PX)  # uint8, 12 KB
IDS_AT_ONCE = 32  # that a thread reads of a shard of files


@dataclass(frozen=True)
class Looks:
    """What some rows are compared by."""

    table: np.ndarray  # LOOK (N,)
    sketches: np.ndarray  # uint8 (N, 3, 64, 64), in a temporary file


@dataclass(frozen=True)
class Look:
    """What an image is compared by."""

    row: Row
    content: bytes  # hash of the file's bytes
    pixels: bytes  # hash of all pixels; zeros where it was not asked for
    sketch: np.ndarray  # uint8 (3, 64, 64)


@dataclass(frozen=True)
class Looker:
    """Reads images as the run did, and makes their looks."""

    decoding: Decoding
    exact: frozenset[str]  # ids of those whose pixels are hashed

    def __call__(self, entry: Item | Member) -> list[Look | Failure]:
        """Return the look of an entry, or of each of its frames; or the reason why there is none."""
        item = entry.item if isinstance(entry, Member) else entry
        decoding = self.decoding
        try:
            data = entry.data if isinstance(entry, Member) else decoding.source.read(item, decoding.limits.max_bytes)
            encoded = replace_raw(data)[0] if decoding.options.raw_previews else data
            content = hashlib.sha256(data).digest()[:DIGEST_BYTES]
            views = read_encoded(encoded, lambda image: self._view(image, item.id), decoding.options)[0]
        except Exception as exc:  # noqa: BLE001  as of every image: a damaged file may raise any type
            return [Failure.of(item, "read", exc)]
        ids = [item.id] if len(views) == 1 else [f"{item.id}#{number}" for number in range(len(views))]
        return [
            Look(Row(own_id, item.path, 0, 0, "", len(data)), content, pixels, sketch)
            for own_id, (pixels, sketch) in zip(ids, views, strict=True)
        ]

    def _view(self, image: Image.Image, own_id: str) -> list[tuple[bytes, np.ndarray]]:
        """Return the hash and the sketch of each frame."""
        options, limits = self.decoding.options, self.decoding.limits
        views: list[tuple[bytes, np.ndarray]] = []
        with unchecked() if is_above_limit(image.size) else nullcontext():
            for _ in seek_frames(image, limits.max_frames) if options.frames == "all" else (0,):
                if image.width * image.height > limits.max_pixels:
                    raise make_size_error(*image.size, limits.max_pixels)
                exact = own_id in self.exact or f"{own_id}#0" in self.exact
                if not exact:
                    shrink_on_load(image, SIDE_PX, options)
                shown = adjust(image, options).convert("RGB")
                pixels = hashlib.blake2b(repr(shown.size).encode(), digest_size=DIGEST_BYTES)
                if exact:
                    pixels.update(np.asarray(shown).data)
                views.append((pixels.digest() if exact else bytes(DIGEST_BYTES), make_sketch(shown)))
        return views


def read_looks(
    store: Store,
    ids: np.ndarray,
    exact: np.ndarray,
    parts: list[tuple[int, int]],
    *,
    fetch: bool,
    tell: Callable[[int], None],
) -> Looks:
    """Return the looks of rows; those that cannot be read are not `seen`.

    `ids` are those of the rows, in ascending order of their places; `parts` the number of each shard that has some, and
    how many of them; `exact` tells whose pixels are hashed. `tell` is called with the number of rows that are read.

    Raises:  StoreError where the run's listing is damaged; InputError where the folder of the images is gone.
    """
    looks = Looks(np.zeros(len(ids), LOOK), _make_scratch(len(ids)))
    plan = read_plan(store.path)
    decoding = open_run_source(store, PreprocessSettings(SIDE_PX))
    if plan is None:
        raise StoreError(store.path, "has no listing of the run any more", "it as it was written", "Run it again.")
    looker = Looker(decoding, frozenset(ids[exact].tolist()))
    start = 0
    for number, count in parts:
        shard = plan.shard(number)
        places = dict(zip(ids[start : start + count].tolist(), range(start, start + count), strict=True))
        entries = {entry.id: entry for entry in shard.entries if isinstance(entry, Item)}
        archive = next((entry for entry in shard.entries if isinstance(entry, ContainerPart)), None)
        for look in _look_at(shard, list(places), looker, archive is not None, fetch=fetch):
            if isinstance(look, Failure):
                continue
            entry = archive or entries.get(look.row.id) or entries.get(look.row.id.rpartition("#")[0])
            own = archive is None and look.row.id in entries and "://" not in look.row.path
            content, pixels = (np.frombuffer(digest, np.uint8) for digest in (look.content, look.pixels))
            modified_ns = entry.modified_ns if entry else 0
            place = places[look.row.id]
            looks.table[place] = (content, pixels, modified_ns, True, own)
            looks.sketches[place] = look.sketch
        start += count
        tell(start)
    return looks


def _make_scratch(count: int) -> np.ndarray:
    """Return room for sketches in a temporary file, which goes with it. Raises: StoreError where there is none."""
    folder = Path(tempfile.gettempdir())
    with translate_os_errors(folder), tempfile.TemporaryFile(prefix="clip-sketches-") as file:
        file.truncate(max(1, count) * SIDE_PX * SIDE_PX * 3)
        return np.memmap(file, np.uint8, "r+", 0, (max(1, count), *SKETCH))


def _look_at(shard: Shard, ids: list[str], looker: Looker, in_order: bool, *, fetch: bool) -> Iterator[Look | Failure]:
    """Yield the looks of some rows of a shard; threads read files, one reads an archive."""
    if in_order:
        yield from replay_entries(shard, set(ids), looker.decoding, looker, fetch=fetch)
        return
    workers = available_cores()
    groups = [set(ids[at : at + IDS_AT_ONCE]) for at in range(0, len(ids), IDS_AT_ONCE)]

    def look(group: set[str]) -> list[Look | Failure]:
        return list(replay_entries(shard, group, looker.decoding, looker, fetch=fetch))

    for found in map_ahead(look, groups, workers=workers, ahead=2 * workers):
        yield from found


def number_parts(store: Store) -> list[tuple[int, int]]:
    """Return the number of each part's shard and of its rows, in the order of the rows."""
    return [(shard_number(path), store.files.summarise(path).rows) for path in store.parts()]
