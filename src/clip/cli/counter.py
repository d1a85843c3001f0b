"""Show on stderr how far the stages of a long verb are: as a bar on a terminal, else as a line now and then."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from typing import Any

from .progress import say

INTERVAL_S = 5.0  # between lines; a stage that is shorter has none


class Counter:
    """How far a verb is in its stages, which it names itself: "rows encoded"."""

    def __init__(self) -> None:
        self._what, self._began, self._shown = "", 0.0, 0.0
        self._bar: Any = None

    def update(self, what: str, done: int, total: int) -> None:
        """Show that so many are done of a stage."""
        now = time.monotonic()
        if what != self._what:
            self.close()
            self._what, self._began, self._shown = what, now, now
        if sys.stderr.isatty():
            self._draw(what, done, total)
        elif now - self._shown >= INTERVAL_S:
            self._shown = now
            # Rows are compared with those after them: the first ones with the most.
            share = 1 - (1 - done / total) ** 2 if what == "rows compared" else done / total
            left = (now - self._began) * (1 - share) / max(share, 1e-9)
            say(f"{done:,} of {total:,} {what}, {left:,.0f} s left")

    def close(self) -> None:
        """Take the bar away."""
        bar, self._bar = self._bar, None
        if bar is not None:
            with suppress(OSError):
                bar.close()

    def _draw(self, what: str, done: int, total: int) -> None:
        from tqdm import tqdm  # here, because only a terminal needs it

        with suppress(OSError):
            if self._bar is None:
                self._bar = tqdm(total=total, unit=f" {what}", leave=False, dynamic_ncols=True, file=sys.stderr)
            self._bar.update(done - self._bar.n)
