"""The contact sheet: the hits of a search as one image.

The tile of an image that cannot be read any more is grey, and says why. Names are drawn in the system's fonts, so that
every script is readable for which there is one.
"""

from __future__ import annotations

import io
from math import isqrt
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

from ..atomic_files import atomic_write, translate_os_errors
from ..own_files import mark_contact_sheet
from .fonts import Fonts
from .tiles import GONE, TILE_PX

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from ..jobs.search import Hit
    from .tiles import Tile

GAP_PX, CAPTION_PX, TITLE_PX = 16, 46, 48
COLUMNS = 5  # at least, if there are as many hits
WHITE, GREY, INK, FAINT = (255, 255, 255), (225, 225, 225), (30, 30, 30), (120, 120, 120)
FONT_PX, TITLE_FONT_PX, LINE_PX = 15, 19, 19
MESSAGE_LINES = 6  # on a grey tile
MAX_LETTERS = 2_000  # of a text whose width is measured; no sheet has room for more


def write_sheet(path: Path, tiles: Mapping[str, Tile], hits: Sequence[Hit], title: str) -> str:
    """Write a PNG of the hits, in their order, with rank, score and id; return the letters that no font here has.

    Raises:  StoreError if it cannot be written.
    """
    columns = max(1, min(len(hits), max(COLUMNS, isqrt(len(hits)))))
    lines = -(-len(hits) // columns)
    column_px, line_px = TILE_PX + GAP_PX, TILE_PX + CAPTION_PX + GAP_PX
    sheet = Image.new("RGB", (GAP_PX + max(columns, 2) * column_px, TITLE_PX + max(lines, 1) * line_px), WHITE)
    draw = ImageDraw.Draw(sheet)
    font, large = Fonts(FONT_PX), Fonts(TITLE_FONT_PX)
    width = sheet.width - 2 * GAP_PX
    large.draw(draw, (GAP_PX, TITLE_PX // 2), _shorten(title, width, large), INK)
    if not hits:
        large.draw(draw, (GAP_PX, TITLE_PX + TILE_PX // 2), "no hits", FAINT)
    for rank, hit in enumerate(hits):
        left, top = GAP_PX + rank % columns * column_px, TITLE_PX + rank // columns * line_px
        tile = tiles.get(hit.id, GONE)
        sheet.paste(_draw_grey_tile(tile, font) if isinstance(tile, str) else tile, (left, top))
        caption = top + TILE_PX + CAPTION_PX // 4 + 2
        font.draw(draw, (left, caption), f"{rank + 1}", FAINT)
        score = f"{hit.score:.4f}"
        font.draw(draw, (left + TILE_PX - font.measure(score), caption), score, INK)
        name = _shorten(hit.id, TILE_PX, font, keep_end=True)
        font.draw(draw, (left, caption + CAPTION_PX // 2 - 2), name, INK)
    png = io.BytesIO()
    sheet.save(png, "PNG")
    with translate_os_errors(path), atomic_write(path) as file:
        file.write(mark_contact_sheet(png.getvalue()))
    return "".join(sorted(font.missing | large.missing))


def _draw_grey_tile(message: str, font: Fonts) -> Image.Image:
    tile = Image.new("RGB", (TILE_PX, TILE_PX), GREY)
    width = TILE_PX - 2 * GAP_PX
    lines = [""]
    for word in _make_printable(message).split():
        longer = f"{lines[-1]} {word}".strip()
        if font.measure(longer) > width and lines[-1]:
            lines.append(word)
        else:
            lines[-1] = longer
    shown = [_shorten(line, width, font) for line in ["cannot be read:", *lines[:MESSAGE_LINES]]]
    draw = ImageDraw.Draw(tile)
    for number, line in enumerate(shown):
        place = ((TILE_PX - font.measure(line)) // 2, TILE_PX // 2 + (2 * number - len(shown) + 1) * LINE_PX // 2)
        font.draw(draw, place, line, FAINT)
    return tile


def _shorten(text: str, width: int, font: Fonts, *, keep_end: bool = False) -> str:
    """Return a text at most `width` pixels wide: a longer one loses its end, or its beginning, for three dots."""
    text = _make_printable(text[-MAX_LETTERS:] if keep_end else text[:MAX_LETTERS])
    if font.measure(text) <= width:
        return text
    for length in range(len(text) - 1, 0, -1):
        short = f"...{text[-length:]}" if keep_end else f"{text[:length]}..."
        if font.measure(short) <= width:
            return short
    return "..."


def _make_printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)
