"""How far a run is, told on stderr: a bar, plain lines or JSON. Knows nothing about how a run gets on."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any, Literal

import click

if TYPE_CHECKING:
    from clip.jobs import Progress

Style = Literal["auto", "plain", "json", "none"]
INTERVALS_S = {"plain": 5.0, "json": 1.0}  # between lines
MINUTE_S, HOUR_S, DAY_S = 60, 3600, 86_400


class Reporter:
    """A bar with images/s and time left on a terminal, elsewhere a line every few seconds; or what a style says."""

    def __init__(self, style: Style = "auto") -> None:
        self._style = ("bar" if sys.stderr.isatty() else "plain") if style == "auto" else style
        self._bar: Any = None
        self._spoken = time.monotonic()
        self._started: float | None = None  # when the first picture came

    def update(self, progress: Progress) -> None:
        """Take note of how far a run is."""
        now = time.monotonic()
        if progress.total and self._started is None:
            self._started = self._spoken = now
        if self._style == "bar":
            self._draw(progress)
        elif self._style != "none" and now - self._spoken >= INTERVALS_S[self._style]:
            self._spoken = now
            told = _told(progress, now - self._started if self._started is not None else 0.0)
            click.echo(json.dumps(told) if self._style == "json" else _line(told), err=True)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.close()

    def _draw(self, progress: Progress) -> None:
        from tqdm import tqdm  # here, because only a run on a terminal needs it

        if not progress.total:
            self._bar = self._bar if self._bar is not None else tqdm(unit=" pictures listed", dynamic_ncols=True)
            self._bar.update(progress.listed - self._bar.n)
            return
        if self._bar is None or self._bar.total != progress.total:
            self.close()
            self._bar = tqdm(total=progress.total, initial=progress.resumed, unit=" images", dynamic_ncols=True)
        self._bar.set_postfix(failed=progress.failed, refresh=False)
        self._bar.update(progress.read - self._bar.n)


def _told(progress: Progress, seconds: float) -> dict[str, Any]:
    if not progress.total:
        return {"event": "listing", "listed": progress.listed}
    rate = (progress.read - progress.resumed) / seconds if seconds else None
    return {
        "event": "progress",
        "read": progress.read,
        "total": progress.total,
        "failed": progress.failed,
        "images_per_s": None if rate is None else round(rate, 1),
        "seconds_left": None if not rate else round((progress.total - progress.read) / rate),
    }


def _line(told: dict[str, Any]) -> str:
    if told["event"] == "listing":
        return f"{told['listed']:,} pictures listed"
    done = f"{told['read']:,} of {told['total']:,} images, failed {told['failed']:,}"
    left = told["seconds_left"]
    return f"{done}, {told['images_per_s']} images/s" + ("" if left is None else f", {_duration(left)} left")


def _duration(seconds: int) -> str:
    if seconds < 2 * MINUTE_S:
        return f"{seconds} s"
    if seconds < 2 * HOUR_S:
        return f"{seconds // MINUTE_S} min"
    if seconds < 2 * DAY_S:
        return f"{seconds // HOUR_S} h {seconds % HOUR_S // MINUTE_S} min"
    return f"{seconds // DAY_S} days {seconds % DAY_S // HOUR_S} h"
