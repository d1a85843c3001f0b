"""An image of a search's hits, for people who would rather look than read. Knows nothing about queries.

Each tile is the middle of an image, as a model sees it, read again as the run read it: from a folder, an archive or a
table. One that cannot be read any more is grey, and says so.
"""

from __future__ import annotations

from math import isqrt
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from ..atomic_files import atomic_write, translate_os_errors
from ..batch.replay import open_run_source, replay_entries
from ..errors import ClipError
from ..network.records import PreprocessSettings
from ..records import Failure
from ..store.parts import read_part, shard_number
from ..store.plan import read_plan

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ..jobs.search import Hit
    from ..store.reader import Store

TILE_PX, GAP_PX, CAPTION_PX, TITLE_PX = 224, 16, 46, 48
COLUMNS = 5  # at least, where there are as many hits
WHITE, GREY, INK, FAINT = (255, 255, 255), (225, 225, 225), (30, 30, 30), (120, 120, 120)
FONT_PX, TITLE_FONT_PX = 15, 19
MESSAGE_LINES = 6  # on a grey tile
LONGEST = 2_000  # letters that are tried for their width; no sheet has room for more


def write_sheet(path: Path, store: Store, hits: Sequence[Hit], title: str) -> int:
    """Write a PNG of the hits, in their order, with rank, score and id; tells how many images could not be read.

    Raises:  StoreError where it cannot be written.
    """
    images = _images(store, {hit.id for hit in hits})
    columns = max(1, min(len(hits), max(COLUMNS, isqrt(len(hits)))))
    lines = -(-len(hits) // columns)
    step, down = TILE_PX + GAP_PX, TILE_PX + CAPTION_PX + GAP_PX
    sheet = Image.new("RGB", (GAP_PX + max(columns, 2) * step, TITLE_PX + max(lines, 1) * down), WHITE)
    draw = ImageDraw.Draw(sheet)
    font, large = ImageFont.load_default(FONT_PX), ImageFont.load_default(TITLE_FONT_PX)
    width = sheet.width - 2 * GAP_PX
    draw.text((GAP_PX, TITLE_PX // 2), _shortened(title, width, large), INK, large, anchor="lm")
    if not hits:
        draw.text((GAP_PX, TITLE_PX + TILE_PX // 2), "no hits", FAINT, large, anchor="lm")
    unreadable = 0
    for rank, hit in enumerate(hits):
        left, top = GAP_PX + rank % columns * step, TITLE_PX + rank // columns * down
        image = images.get(hit.id, "it is not there any more")
        if isinstance(image, str):
            unreadable += 1
            image = _grey_tile(image, font)
        sheet.paste(image, (left, top))
        below = top + TILE_PX + CAPTION_PX // 4 + 2
        draw.text((left, below), f"{rank + 1}", FAINT, font, anchor="lm")
        draw.text((left + TILE_PX, below), f"{hit.score:.4f}", INK, font, anchor="rm")
        name = _shortened(hit.id, TILE_PX, font, from_the_end=True)
        draw.text((left, below + CAPTION_PX // 2 - 2), name, INK, font, anchor="lm")
    with translate_os_errors(path), atomic_write(path) as file:
        sheet.save(file, "PNG")
    return unreadable


def _images(store: Store, wanted: set[str]) -> dict[str, Image.Image | str]:
    """The tiles of these ids, or why there is none."""
    found: dict[str, Image.Image | str] = {}
    try:
        plan = read_plan(store.path)
        if plan is None:
            return dict.fromkeys(wanted, "the run's listing is not there any more")
        decoding = open_run_source(store, PreprocessSettings(TILE_PX))
        for path in store.parts():
            ids = read_part(path, ["id"]).column("id")
            here = (wanted & set(ids.to_pylist())) - found.keys()
            if not here:
                continue
            for outcome in replay_entries(plan.shard(shard_number(path)), here, decoding, decoding):
                if isinstance(outcome, Failure):
                    found[outcome.id] = outcome.message.removeprefix("image: ")
                else:
                    found[outcome.row.id] = Image.fromarray(outcome.array)
    except ClipError as exc:  # the input is gone, or a job is atomic_write parts: the hits stand all the same
        return dict.fromkeys(wanted, str(exc)) | found
    return found


def _grey_tile(message: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> Image.Image:
    tile = Image.new("RGB", (TILE_PX, TILE_PX), GREY)
    width = TILE_PX - 2 * GAP_PX
    lines = [""]
    for word in _printable(message).split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) > width and lines[-1]:
            lines.append(word)
        else:
            lines[-1] = longer
    shown = [_shortened(line, width, font) for line in ["cannot be read:", *lines[:MESSAGE_LINES]]]
    draw = ImageDraw.Draw(tile)
    draw.multiline_text((TILE_PX // 2, TILE_PX // 2), "\n".join(shown), FAINT, font, anchor="mm", align="center")
    return tile


def _shortened(
    text: str, width: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, *, from_the_end: bool = False
) -> str:
    """A text in so many pixels; of a longer one the beginning, or the end, with dots for the rest."""
    text = _printable(text[-LONGEST:] if from_the_end else text[:LONGEST])
    if font.getlength(text) <= width:
        return text
    for kept in range(len(text) - 1, 0, -1):
        short = f"...{text[-kept:]}" if from_the_end else f"{text[:kept]}..."
        if font.getlength(short) <= width:
            return short
    return "..."


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)
