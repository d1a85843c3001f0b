"""How far a run is, told on stderr: a bar, plain lines or JSON. Knows nothing about how a run gets on."""

from __future__ import annotations

import json
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal

import click

if TYPE_CHECKING:
    from clip.jobs import Progress

Style = Literal["auto", "plain", "json", "none"]
INTERVALS_S = {"plain": 5.0, "json": 1.0}  # between lines
MINUTE_S, HOUR_S, DAY_S = 60, 3600, 86_400


def say(message: str) -> None:
    """A line on stderr. Who closed it, or let its disk fill up, does not want to know; that ends no run."""
    with suppress(OSError):
        click.echo(message, err=True)


class Reporter:
    """A bar with images/s and time left on a terminal, elsewhere a line every few seconds; or what a style says."""

    def __init__(self, style: Style = "auto") -> None:
        is_terminal = sys.stderr is not None and sys.stderr.isatty()  # None where a process has no stderr
        self._style = ("bar" if is_terminal else "plain") if style == "auto" else style
        self._bar: Any = None
        self._counting = False  # pictures, after they were listed
        self._spoken = time.monotonic()
        self._started: float | None = None  # when the first picture came

    def update(self, progress: Progress) -> None:
        """Take note of how far a run is."""
        now = time.monotonic()
        if progress.total != 0 and self._started is None:
            self._started = self._spoken = now
        if self._style == "bar":
            with suppress(OSError):  # as in `say`
                self._draw(progress)
        elif self._style != "none" and now - self._spoken >= INTERVALS_S[self._style]:
            self._spoken = now
            told = _told(progress, now - self._started if self._started is not None else 0.0)
            say(json.dumps(told) if self._style == "json" else _line(told))

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            with suppress(OSError):
                self._bar.close()

    def _draw(self, progress: Progress) -> None:
        from tqdm import tqdm  # here, because only a run on a terminal needs it

        if progress.total == 0:
            self._bar = self._bar if self._bar is not None else tqdm(unit=" pictures listed", dynamic_ncols=True)
            self._bar.update(progress.listed - self._bar.n)
            return
        if not self._counting:
            self.close()
            self._counting = True
            self._bar = tqdm(total=progress.total, initial=progress.resumed, unit=" images", dynamic_ncols=True)
        self._bar.set_postfix(failed=progress.failed, refresh=False)
        self._bar.update(progress.read - self._bar.n)


def _told(progress: Progress, seconds: float) -> dict[str, Any]:
    if progress.total == 0:
        return {"event": "listing", "listed": progress.listed}
    rate = (progress.read - progress.resumed) / seconds if seconds else None
    left = None if progress.total is None else progress.total - progress.read
    return {
        "event": "progress",
        "read": progress.read,
        "total": progress.total,
        "failed": progress.failed,
        "shard": progress.shard,
        "shards": progress.shards,
        "images_per_s": None if rate is None else round(rate, 1),
        "seconds_left": None if not rate or left is None else round(left / rate),
    }


def _line(told: dict[str, Any]) -> str:
    if told["event"] == "listing":
        return f"{told['listed']:,} pictures listed"
    total = "" if told["total"] is None else f" of {told['total']:,}"
    shards = "" if told["total"] is not None else f" in {told['shard']:,} of {told['shards']:,} shards"
    done = f"{told['read']:,}{total} images{shards}, failed {told['failed']:,}"
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
