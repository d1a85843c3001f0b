"""The hits of a search as one HTML file: thumbnails, links to the images, captions in any script; light or dark."""

from __future__ import annotations

import base64
import html
import io
from typing import TYPE_CHECKING

from ..atomic_files import atomic_write, translate_os_errors
from ..records import link_to
from .tiles import GONE, TILE_PX

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from ..jobs.search import Hit
    from .tiles import Tile

JPEG_QUALITY = 80  # some 12 KB for each thumbnail
STYLE = f"""
:root {{ color-scheme: light dark; }}
body {{ font-family: system-ui, sans-serif; margin: 1.5rem; }}
ol {{ display: flex; flex-wrap: wrap; gap: 1rem; list-style: none; padding: 0; }}
li {{ width: {TILE_PX}px; }}
img, .gone {{ width: {TILE_PX}px; height: {TILE_PX}px; border-radius: 4px; display: block; }}
.gone {{ background: #8884; box-sizing: border-box; padding: 1rem; overflow: hidden; }}
.caption {{ display: flex; justify-content: space-between; margin-top: .4rem; font-variant-numeric: tabular-nums; }}
.name {{ overflow-wrap: anywhere; font-size: .9rem; }}
.rank {{ opacity: .6; }}
"""


def write_page(path: Path, tiles: Mapping[str, Tile], hits: Sequence[Hit], title: str) -> None:
    """Write the page of the hits, in their order. Raises: StoreError if it cannot be written."""
    name = html.escape(title)
    items = "".join(_make_item(rank, hit, tiles.get(hit.id, GONE)) for rank, hit in enumerate(hits, 1))
    content = (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="generator" content="clip-turbo">\n'
        f"<title>{name}</title>\n<style>{STYLE}</style>\n<h1>{name}</h1>\n"
        f"{f'<ol>{items}</ol>' if items else '<p>no hits</p>'}\n</html>\n"
    )
    with translate_os_errors(path), atomic_write(path) as file:
        file.write(content.encode("utf-8", "backslashreplace"))


def _make_item(rank: int, hit: Hit, tile: Tile) -> str:
    name, link = html.escape(hit.id), html.escape(link_to(hit.path))
    if isinstance(tile, str):
        shown = f'<span class="gone">cannot be read: {html.escape(tile)}</span>'
    else:
        data = io.BytesIO()
        tile.save(data, "JPEG", quality=JPEG_QUALITY)
        shown = f'<img alt="{name}" src="data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}">'
    caption = f'<span class="rank">{rank}</span><span>{hit.score:.4f}</span>'
    return (
        f'<li><a href="{link}" title="{html.escape(hit.path)}">{shown}</a>'
        f'<div class="caption">{caption}</div><div class="name">{name}</div></li>\n'
    )
