"""Other spellings of the released names: open_clip's, Immich's, those of file names and of the Hub."""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

# What other programs add to say that the weights are OpenAI's: open_clip's tag, Immich's, that of the activation.
TAGS = re.compile(r"(?:(?:-quickgelu)?(?:__|/|:)openai|-quickgelu)+$")
HUB_NAME = re.compile(r"^(?:hf-hub:)?openai/clip-")
NEAR = 0.6  # of difflib's ratio, from which a name is suggested


def find_spelled(name: str, known: Iterable[str]) -> str | None:
    """Return the released name that is spelt otherwise here, as in `ViT-B-32__openai` or `openai/clip-rn50`."""
    return {_fold(one): one for one in known}.get(_fold(name))


def suggest(name: str, known: Iterable[str]) -> str | None:
    """Return the released name that is nearest to one that does not exist, if one is near."""
    folded = {_fold(one): one for one in known}
    near = difflib.get_close_matches(_fold(name), list(folded), n=1, cutoff=NEAR)
    return folded[near[0]] if near else None


def _fold(name: str) -> str:
    """Return what is left of a name without case, signs between its parts, and what only says whose it is."""
    plain = TAGS.sub("", name.lower())
    plain = HUB_NAME.sub("", plain).replace("-patch", "-").replace("base", "b").replace("large", "l")
    return re.sub(r"[-_/@\s]|px$", "", plain)
