"""Thumbnails of hits: the centre crop of each image, read again as the run read it, from a folder, archive or table.

It is always upright, also where the run embedded the image as it is stored.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from PIL import Image

from ..batch.replay import open_run_source, replay_entries
from ..errors import ClipError
from ..network.records import PreprocessSettings
from ..records import Failure
from ..store.parts import shard_number
from ..store.plan import read_plan

if TYPE_CHECKING:
    from ..store.reader import Store

Tile = Image.Image | str  # a thumbnail, or the reason why there is none
TILE_PX = 224  # width and height
GONE = "it is not there any more"


def load_tiles(store: Store, wanted: set[str], *, fetch: bool = False) -> dict[str, Tile]:
    """Return the tiles of these ids, or the reason why there is none. Servers are asked only with `fetch`."""
    tiles: dict[str, Tile] = {}
    try:
        plan = read_plan(store.path)
        if plan is None:
            return dict.fromkeys(wanted, "the run's listing is not there any more")
        decoding = open_run_source(store, PreprocessSettings(TILE_PX))
        decoding = replace(decoding, options=replace(decoding.options, orient="exif"))
        for path in store.parts():
            ids = store.files.read(path, ["id"]).column("id")
            ids_here = (wanted & set(ids.to_pylist())) - tiles.keys()
            if not ids_here:
                continue
            shard = plan.shard(shard_number(path))
            for outcome in replay_entries(shard, ids_here, decoding, decoding, fetch=fetch):
                if isinstance(outcome, Failure):
                    tiles[outcome.id] = outcome.message
                else:
                    tiles[outcome.row.id] = Image.fromarray(outcome.array)
    except ClipError as exc:  # the input is gone, or a job is writing parts: the hits are valid all the same
        return dict.fromkeys(wanted, str(exc)) | tiles
    return tiles
