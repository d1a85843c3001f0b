"""The contact sheet: the hits of a search as one image.

Each tile is the centre crop of an image, read again as the run read it, from a folder, an archive or a table. It is
always upright, also where the run embedded the image as it is stored. The tile of an image that cannot be read any more
is grey, and says why.
"""

from __future__ import annotations

import io
from dataclasses import replace
from math import isqrt
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from ..atomic_files import atomic_write, translate_os_errors
from ..batch.replay import open_run_source, replay_entries
from ..errors import ClipError
from ..network.records import PreprocessSettings
from ..own_files import mark_contact_sheet
from ..records import Failure
from ..store.parts import shard_number
from ..store.plan import read_plan

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ..jobs.search import Hit
    from ..store.reader import Store

TILE_PX, GAP_PX, CAPTION_PX, TITLE_PX = 224, 16, 46, 48
COLUMNS = 5  # at least, if there are as many hits
WHITE, GREY, INK, FAINT = (255, 255, 255), (225, 225, 225), (30, 30, 30), (120, 120, 120)
FONT_PX, TITLE_FONT_PX = 15, 19
MESSAGE_LINES = 6  # on a grey tile
MAX_LETTERS = 2_000  # of a text whose width is measured; no sheet has room for more


def write_sheet(path: Path, store: Store, hits: Sequence[Hit], title: str, *, fetch: bool = False) -> int:
    """Write a PNG of the hits, in their order, with rank, score and id; return how many images could not be read.

    Servers are asked for images only with `fetch`.

    Raises:  StoreError if it cannot be written.
    """
    tiles = _load_tiles(store, {hit.id for hit in hits}, fetch=fetch)
    columns = max(1, min(len(hits), max(COLUMNS, isqrt(len(hits)))))
    lines = -(-len(hits) // columns)
    column_px, line_px = TILE_PX + GAP_PX, TILE_PX + CAPTION_PX + GAP_PX
    sheet = Image.new("RGB", (GAP_PX + max(columns, 2) * column_px, TITLE_PX + max(lines, 1) * line_px), WHITE)
    draw = ImageDraw.Draw(sheet)
    font, large = ImageFont.load_default(FONT_PX), ImageFont.load_default(TITLE_FONT_PX)
    width = sheet.width - 2 * GAP_PX
    draw.text((GAP_PX, TITLE_PX // 2), _shorten(title, width, large), INK, large, anchor="lm")
    if not hits:
        draw.text((GAP_PX, TITLE_PX + TILE_PX // 2), "no hits", FAINT, large, anchor="lm")
    unreadable = 0
    for rank, hit in enumerate(hits):
        left, top = GAP_PX + rank % columns * column_px, TITLE_PX + rank // columns * line_px
        tile = tiles.get(hit.id, "it is not there any more")
        if isinstance(tile, str):
            unreadable += 1
            tile = _draw_grey_tile(tile, font)
        sheet.paste(tile, (left, top))
        caption = top + TILE_PX + CAPTION_PX // 4 + 2
        draw.text((left, caption), f"{rank + 1}", FAINT, font, anchor="lm")
        draw.text((left + TILE_PX, caption), f"{hit.score:.4f}", INK, font, anchor="rm")
        name = _shorten(hit.id, TILE_PX, font, keep_end=True)
        draw.text((left, caption + CAPTION_PX // 2 - 2), name, INK, font, anchor="lm")
    png = io.BytesIO()
    sheet.save(png, "PNG")
    with translate_os_errors(path), atomic_write(path) as file:
        file.write(mark_contact_sheet(png.getvalue()))
    return unreadable


def _load_tiles(store: Store, wanted: set[str], *, fetch: bool) -> dict[str, Image.Image | str]:
    """Return the tiles of these ids, or the reason why there is none."""
    tiles: dict[str, Image.Image | str] = {}
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


def _draw_grey_tile(message: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> Image.Image:
    tile = Image.new("RGB", (TILE_PX, TILE_PX), GREY)
    width = TILE_PX - 2 * GAP_PX
    lines = [""]
    for word in _make_printable(message).split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) > width and lines[-1]:
            lines.append(word)
        else:
            lines[-1] = longer
    shown = [_shorten(line, width, font) for line in ["cannot be read:", *lines[:MESSAGE_LINES]]]
    draw = ImageDraw.Draw(tile)
    draw.multiline_text((TILE_PX // 2, TILE_PX // 2), "\n".join(shown), FAINT, font, anchor="mm", align="center")
    return tile


def _shorten(
    text: str, width: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, *, keep_end: bool = False
) -> str:
    """Return a text at most `width` pixels wide: a longer one loses its end, or its beginning, for three dots."""
    text = _make_printable(text[-MAX_LETTERS:] if keep_end else text[:MAX_LETTERS])
    if font.getlength(text) <= width:
        return text
    for length in range(len(text) - 1, 0, -1):
        short = f"...{text[-length:]}" if keep_end else f"{text[:length]}..."
        if font.getlength(short) <= width:
            return short
    return "..."


def _make_printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)
