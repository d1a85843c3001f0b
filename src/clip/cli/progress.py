"""Report on stderr how far a run is: as a bar, plain lines or JSON."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

import click

from ..jobs.embed import Listing, Progress
from .json_lines import to_json

if TYPE_CHECKING:
    from ..records import Kind

Style = Literal["auto", "plain", "json", "none"]
INTERVALS_S = {"plain": 5.0, "json": 1.0}  # between lines
MINUTE_S, HOUR_S, DAY_S = 60, 3600, 86_400


def say(message: str) -> None:
    """Write a line to stderr. A stderr that is closed, or on a full disk, ends no run."""
    with suppress(OSError):
        click.echo(message, err=True)


def escape(text: str) -> str:
    """Return a name or a message without characters that control a terminal."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


class Reporter:
    """Shows a bar with images/s and time left on a terminal, elsewhere a line every few seconds; or another style."""

    def __init__(self, style: Style = "auto", kind: Kind = "images") -> None:
        is_terminal = sys.stderr is not None and sys.stderr.isatty()  # None where a process has no stderr
        self._style = ("bar" if is_terminal else "plain") if style == "auto" else style
        self._kind: Kind = kind
        self._bar: Any = None
        self._spoken = time.monotonic()
        self._started: float | None = None  # when the first image came
        self.kept: str | None = None  # in words, how many images are on the disk; None before the first one is read

    def update(self, progress: Progress) -> None:
        """Show how far a run is, if it is time to."""
        if progress.message:
            as_json = to_json({"event": "told", "message": progress.message})
            if self._style != "none":
                say(as_json if self._style == "json" else progress.message)
            return
        if progress.listing is None:
            total = "" if progress.total is None else f" of {progress.total:,}"
            self.kept = f"{progress.kept:,}{total} {self._kind}"
        now = time.monotonic()
        if progress.listing is None and self._started is None:
            self._started = self._spoken = now
        if progress.listing is not None and progress.listing.example:
            self._end_listing(progress.listing)
        elif self._style == "bar":
            with suppress(OSError):  # as in `say`
                self._draw(progress)
        elif self._style != "none" and now - self._spoken >= INTERVALS_S[self._style]:
            self._spoken = now
            event = _make_event(progress, self._kind, now - self._started if self._started is not None else 0.0)
            say(to_json(event) if self._style == "json" else _format_event(event, self._kind))

    def _end_listing(self, listing: Listing) -> None:
        self.close()
        self._bar = None
        if self._style == "json":
            say(to_json({"event": "listed", **asdict(listing)}))
        elif self._style != "none":
            say(describe_listing(listing, self._kind))

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            with suppress(OSError):
                self._bar.close()

    def _draw(self, progress: Progress) -> None:
        from tqdm import tqdm  # here, because only a run on a terminal needs it

        if progress.listing is not None:
            self._bar = self._bar if self._bar is not None else tqdm(unit=f" {self._kind} listed", dynamic_ncols=True)
            self._bar.update(progress.listing.images - self._bar.n)
            return
        unit = f" {self._kind}"
        if self._bar is None or self._bar.unit != unit:
            self.close()
            self._bar = tqdm(total=progress.total, initial=progress.resumed, unit=unit, dynamic_ncols=True)
        self._bar.set_postfix(failed=progress.failed, refresh=False)
        self._bar.update(progress.read - self._bar.n)


def describe_listing(listing: Listing, kind: Kind = "images") -> str:
    """Return in words what an input holds."""
    counts = [(listing.images, kind.removesuffix("s")), (listing.archives, "archive")]
    content = " and ".join(f"{count:,} {name}{'s' * (count != 1)}" for count, name in counts if count)
    example = f", the first {listing.example}" if listing.example else ""
    return f"listed {content or 'nothing'}{example}{describe_ignored(listing.ignored)}"


def describe_ignored(ignored: dict[str, int]) -> str:
    """Return the end of a line that says what was ignored; empty where nothing was."""
    if not ignored:
        return ""
    return "; ignored: " + ", ".join(f"{count:,} {reason}" for reason, count in sorted(ignored.items()))


def _make_event(progress: Progress, kind: Kind, seconds: float) -> dict[str, Any]:
    if progress.listing is not None:
        return {"event": "listing", "images": progress.listing.images, "archives": progress.listing.archives}
    rate = (progress.read - progress.resumed) / seconds if seconds else None
    left = None if progress.total is None else progress.total - progress.read
    return {
        "event": "progress",
        "read": progress.read,
        "total": progress.total,
        "failed": progress.failed,
        "shard": progress.shard,
        "shards": progress.shards,
        f"{kind}_per_s": None if rate is None else round(rate, 1),
        "seconds_left": None if not rate or left is None else round(left / rate),
    }


def _format_event(event: dict[str, Any], kind: Kind) -> str:
    if event["event"] == "listing":
        return describe_listing(Listing(event["images"], event["archives"]), kind)
    total = "" if event["total"] is None else f" of {event['total']:,}"
    shards = "" if event["total"] is not None else f" in {event['shard']:,} of {event['shards']:,} shards"
    done = f"{event['read']:,}{total} {kind}{shards}, failed {event['failed']:,}"
    left = event["seconds_left"]
    return f"{done}, {event[f'{kind}_per_s']} {kind}/s" + ("" if left is None else f", {_format_duration(left)} left")


def _format_duration(seconds: int) -> str:
    if seconds < 2 * MINUTE_S:
        return f"{seconds} s"
    if seconds < 2 * HOUR_S:
        return f"{seconds // MINUTE_S} min"
    if seconds < 2 * DAY_S:
        return f"{seconds // HOUR_S} h {seconds % HOUR_S // MINUTE_S} min"
    return f"{seconds // DAY_S} days {seconds % DAY_S // HOUR_S} h"


def summarise(summary: str | dict[str, Any]) -> None:
    """Write the last line to stderr; a record for programs to stdout too, unless both are the same terminal."""
    line = summary if isinstance(summary, str) else to_json(summary)
    if not isinstance(summary, str) and not (sys.stdout.isatty() and sys.stderr.isatty()):
        click.echo(line)
    say(line)
