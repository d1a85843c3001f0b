"""What a terminal can do beyond letters: links, pictures, and letters that are two columns wide.

Sources: OSC 8, https://gist.github.com/egmontkob/eb114294efbcd5adb1944c9f3cb5feda;
         kitty, https://sw.kovidgoyal.net/kitty/graphics-protocol/; iTerm2, https://iterm2.com/documentation-images.html
"""

from __future__ import annotations

import base64
import os
import sys
from typing import TYPE_CHECKING, Literal, TextIO

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Protocol = Literal["kitty", "iterm2"]
KITTY_CHUNK = 4096  # letters of base64 in one escape sequence, the most that kitty takes
ELLIPSIS = "…"


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a stream is a terminal; a process may have none."""
    return stream is not None and stream.isatty()


def has_links(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether stdout is a terminal that takes escape sequences; those that know no links leave them out."""
    return is_terminal(sys.stdout) and environment.get("TERM", "") not in ("", "dumb", "linux")


def find_protocol(environment: Mapping[str, str] = os.environ) -> Protocol | None:
    """Return how a terminal is shown pictures, by the variables that it sets; None where it shows none.

    Under tmux and screen, which do not pass the sequences on, there is none.
    """
    program, term = environment.get("TERM_PROGRAM", ""), environment.get("TERM", "")
    if not is_terminal(sys.stdout) or environment.get("TMUX") or term.startswith(("screen", "tmux")):
        return None
    if environment.get("KITTY_WINDOW_ID") or term == "xterm-kitty" or program == "ghostty":
        return "kitty"
    is_iterm2 = program in ("iTerm.app", "WezTerm", "mintty") or environment.get("LC_TERMINAL") == "iTerm2"
    return "iterm2" if is_iterm2 else None


def encode_picture(png: bytes, protocol: Protocol) -> str:
    """Return the sequence that has a terminal draw a PNG."""
    text = base64.b64encode(png).decode()
    if protocol == "iterm2":
        return f"\x1b]1337;File=inline=1;size={len(png)};preserveAspectRatio=1:{text}\a\n"
    chunks = [text[start : start + KITTY_CHUNK] for start in range(0, len(text), KITTY_CHUNK)]
    lines: list[str] = []
    for number, chunk in enumerate(chunks):
        first = "f=100,a=T," if number == 0 else ""
        lines.append(f"\x1b_G{first}m={int(number < len(chunks) - 1)};{chunk}\x1b\\")
    return "".join(lines) + "\n"


def link(text: str, address: str) -> str:
    """Return a text that leads to an address when it is clicked."""
    return f"\x1b]8;;{address}\x1b\\{text}\x1b]8;;\x1b\\"


def measure(text: str) -> int:
    """Return how many columns a text takes, about: letters that the terminal does not know may take others."""
    from wcwidth import wcswidth  # here, because few commands make a table

    width = wcswidth(text)
    return len(text) if width < 0 else width


def pad(text: str, width: int, *, right: bool = False) -> str:
    """Return a text with spaces up to a width; with `right` it stands at the right."""
    spaces = " " * (width - measure(text))
    return f"{spaces}{text}" if right else f"{text}{spaces}"


def cut(text: str, width: int, *, keep_end: bool = False) -> str:
    """Return a text at most so many columns wide: a longer one loses its end, or its beginning."""
    if measure(text) <= width:
        return text
    letters = list(text)
    while letters and measure("".join(letters)) > width - 1:
        letters.pop(0 if keep_end else -1)
    return f"{ELLIPSIS}{''.join(letters)}" if keep_end else f"{''.join(letters)}{ELLIPSIS}"


def make_table(rows: Sequence[Sequence[str]], right: Sequence[int] = (), most: int = 60) -> str:
    """Return rows as aligned lines, two spaces between columns; those in `right` stand at the right, the last is free.

    A cell of more than `most` columns moves the rest of its line.
    """
    widths = [min(most, max(map(measure, cells))) for cells in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell if place == len(row) - 1 and place not in right else pad(cell, widths[place], right=place in right)
            for place, cell in enumerate(row)
        ).rstrip()
        for row in rows
    ]
    return "".join(f"{line}\n" for line in lines)
