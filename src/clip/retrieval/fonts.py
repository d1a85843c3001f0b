"""Draw text in any script for which the system has a font: a text in one that has all of it, else letter by letter.

Pillow's own font has Latin letters without accents only. Without a font that has a letter, its box is drawn.
"""

from __future__ import annotations

import os
import sys
from functools import cache, cached_property
from itertools import groupby
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
FOLDERS = {
    "darwin": ("/System/Library/Fonts", "/Library/Fonts", "~/Library/Fonts"),
    "win32": ("${WINDIR}/Fonts", "${LOCALAPPDATA}/Microsoft/Windows/Fonts"),
}
UNIX_FOLDERS = ("~/.local/share/fonts", "~/.fonts", "/usr/local/share/fonts", "/usr/share/fonts")
ENDINGS = (".ttf", ".otf", ".ttc", ".otc")
# What names of fonts with many letters begin with, the plainest first; others come after them.
FIRST = ("dejavusans.", "notosans-regular", "arial.", "helvetica", "notosanscjk", "arialuni", "unifont", "notosans")
MAX_FONTS = 400  # that are tried for a letter
LOOKED_AT_PX = 24  # a third of the square in which a letter is drawn to see whether a font has it
NO_LETTER = "\U0010ffff"  # which no font has, so that it is drawn as the box of all that are missing


class Fonts:
    """The system's fonts at one size."""

    def __init__(self, size_px: int) -> None:
        self._size_px = size_px
        self._opened: list[Font] = []
        self._of: dict[str, Font] = {}
        self._known: dict[tuple[int, str], bool] = {}  # whether a font has a letter
        self.missing: set[str] = set()
        """Letters that were drawn as boxes."""

    @cached_property
    def _own(self) -> Font:
        return ImageFont.load_default(self._size_px)

    @cached_property
    def _paths(self) -> list[Path]:
        return list(find_fonts())

    def draw(self, draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, fill: tuple[int, int, int]) -> None:
        """Draw a text to the right of a place, which is at half its height."""
        left, middle = place
        for font, run in self._split(text):
            draw.text(
                (left, middle), run, fill, font, anchor="lm" if isinstance(font, ImageFont.FreeTypeFont) else None
            )
            left += round(font.getlength(run))

    def measure(self, text: str) -> int:
        """Return the width of a text [Unit: px]."""
        return sum(round(font.getlength(run)) for font, run in self._split(text))

    def _split(self, text: str) -> list[tuple[Font, str]]:
        """Return runs of one font: one run where a font has all letters, as fonts side by side look ragged."""
        others = {letter for letter in text if not letter.isascii()}
        fonts = [self._choose(letter) for letter in sorted(others)]
        for font in dict.fromkeys(fonts):
            if isinstance(font, ImageFont.FreeTypeFont) and all(self._has(font, letter) for letter in {*others, *text}):
                return [(font, text)]
        return [(font, "".join(letters)) for font, letters in groupby(text, self._choose)]

    def _has(self, font: Font, letter: str) -> bool:
        key = (id(font), letter)
        if key not in self._known:
            self._known[key] = letter.isspace() or _has(font, letter)
        return self._known[key]

    def _choose(self, letter: str) -> Font:
        """Return the first font that has a letter, else Pillow's own."""
        if letter not in self._of:
            self._of[letter] = self._find(letter)
        return self._of[letter]

    def _find(self, letter: str) -> Font:
        own = self._own
        if letter.isascii():
            return own
        for number in range(min(len(self._paths), MAX_FONTS)):
            font = self._open(number)
            if font is not None and self._has(font, letter):
                return font
        if not _has(own, letter):
            self.missing.add(letter)
        return own

    def _open(self, number: int) -> Font | None:
        while len(self._opened) <= number:
            try:
                self._opened.append(ImageFont.truetype(self._paths[len(self._opened)], self._size_px))
            except OSError:  # a damaged one, or of a kind that FreeType does not read
                self._paths.pop(len(self._opened))
                if number >= len(self._paths):
                    return None
        return self._opened[number]


@cache
def find_fonts(folders: tuple[str, ...] | None = None) -> tuple[Path, ...]:
    """Return the font files of these folders (default: the system's), those with many letters first."""
    found: list[Path] = []
    for name in FOLDERS.get(sys.platform, UNIX_FOLDERS) if folders is None else folders:
        for folder, _, files in os.walk(Path(os.path.expandvars(name)).expanduser()):
            found += [Path(folder, file) for file in files if file.lower().endswith(ENDINGS)]
    return tuple(sorted(found, key=_rank))


def _rank(path: Path) -> tuple[int, str]:
    name = path.name.lower()
    return next((number for number, first in enumerate(FIRST) if name.startswith(first)), len(FIRST)), name


def _has(font: Font, letter: str) -> bool:
    """Whether a font has a letter: what it draws is not the box of a missing one."""
    return _draw_letter(font, letter) != _draw_letter(font, NO_LETTER)


def _draw_letter(font: Font, letter: str) -> bytes:
    image = Image.new("L", (3 * LOOKED_AT_PX, 3 * LOOKED_AT_PX))
    ImageDraw.Draw(image).text((LOOKED_AT_PX, LOOKED_AT_PX), letter, "white", font)
    return image.tobytes()
