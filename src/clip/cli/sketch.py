"""Say what the sketch model cannot do, once a run: it knows drawn shapes, no photographs, and few words."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ..demo.scenes import COLOURS, SHAPES, list_words
from ..weights.locate import SKETCH
from .progress import say

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..store.reader import Store

# Of files that cameras and phones write; drawings are PNG, as the demo's.
PHOTOGRAPHS = frozenset({"JPEG", "MPO", "HEIF", "HEIC", "AVIF"})
MOST_NAMED = 5  # words


def warn_of_words(model: str | None, texts: Iterable[str]) -> None:
    """Name the words of a query that the sketch model has never seen."""
    if model != SKETCH:
        return
    known = list_words()
    words = dict.fromkeys(word for text in texts for word in re.findall(r"\w+", text.lower()))
    unknown = [word for word in words if word not in known]
    if unknown:
        named = ", ".join(map(repr, unknown[:MOST_NAMED])) + (", ..." if len(unknown) > MOST_NAMED else "")
        say(f"{SKETCH} has never seen {named}: it knows {', '.join(SHAPES)} in {', '.join(COLOURS)} alone")


def warn_of_photographs(store: Store) -> None:
    """Say that the sketch model does not know photographs, where an output of it has some."""
    if store.manifest.model != SKETCH or store.manifest.kind == "texts":
        return
    for _, part in store.read_parts(["format"]):
        if PHOTOGRAPHS & set(part["format"].to_pylist()):
            say(f"{SKETCH} knows drawn shapes alone; photographs it cannot tell apart: take -m ViT-B/32, say")
            return
