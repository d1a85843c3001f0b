"""Report on stderr how far a run is: as a bar, plain lines or JSON."""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

import click

from ..jobs.embed import Listing, Progress
from ..parallel import start_thread
from .json_lines import to_json

if TYPE_CHECKING:
    from ..jobs.embed import Phase
    from ..records import Kind

Style = Literal["auto", "plain", "json", "none"]
INTERVALS_S = {"plain": 5.0, "json": 1.0}  # between lines
TICK_S = 1.0  # between two looks at the clock
RATE_OVER_S = 10.0
BAR = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"
COUNT = "{n_fmt}{unit} [{elapsed}{postfix}]"
MINUTE_S, HOUR_S, DAY_S = 60, 3600, 86_400


def say(message: str) -> None:
    """Write a line to stderr. A stderr that is closed, or on a full disk, ends no run."""
    with suppress(OSError):
        click.echo(message, err=True)


def escape(text: str) -> str:
    """Return a name or a message without characters that control a terminal."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


class Reporter:
    """Shows a bar with images/s and time left on a terminal, elsewhere a line every few seconds; or another style.

    The rate is that of the last ten seconds. On a terminal a thread moves the clock each second, whatever the run does.
    """

    def __init__(self, style: Style = "auto", kind: Kind = "images") -> None:
        is_terminal = sys.stderr is not None and sys.stderr.isatty()  # None where a process has no stderr
        self._style = ("bar" if is_terminal else "plain") if style == "auto" else style
        self._kind: Kind = kind
        self._bar: Any = None
        self._began = self._spoken = time.monotonic()
        self._speed = Speed()
        self._drawing = threading.Lock()
        self._over = threading.Event()
        self._failed = 0
        self.kept: str | None = None  # in words, how many images are on the disk; None before the first one is read
        if self._style == "bar":
            start_thread(self._tick, "clip-progress")

    def update(self, progress: Progress) -> None:
        """Show how far a run is, if it is time to."""
        now = time.monotonic()
        if progress.message:
            self._tell(progress.message, now)
            return
        if progress.phase == "running":
            total = "" if progress.total is None else f" of {progress.total:,}"
            self.kept = f"{progress.kept:,}{total} {self._kind}"
            if not self._speed:
                self._spoken = now
            self._speed.add(now, progress)
        if progress.listing is not None and progress.listing.example:
            self._end_listing(progress.listing, now)
        elif self._style == "bar":
            with self._drawing, suppress(OSError):  # as in `say`
                self._draw(progress)
        elif self._style == "json" and progress.loading:
            self._say_json({"event": "loading", "model": progress.loading}, progress.phase, now)
        elif self._style != "none" and not progress.loading and now - self._spoken >= INTERVALS_S[self._style]:
            self._spoken = now
            event = _make_event(progress, self._kind, self._speed)
            if self._style == "json":
                self._say_json(event, progress.phase, now)
            else:
                say(_format_event(event, self._kind))

    def _tell(self, message: str, now: float) -> None:
        if self._style == "json":
            self._say_json({"event": "told", "message": message}, "running" if self._speed else "listing", now)
        elif self._style != "none":
            with self._drawing, suppress(OSError):
                if self._bar is not None:
                    self._bar.clear()
            say(message)

    def _say_json(self, event: dict[str, Any], phase: Phase, now: float) -> None:
        when = datetime.now(UTC).isoformat(timespec="milliseconds")
        say(to_json({**event, "phase": phase, "elapsed_s": round(now - self._began, 1), "time": when}))

    def _end_listing(self, listing: Listing, now: float) -> None:
        self._close_bar()
        if self._style == "json":
            self._say_json({"event": "listed", **asdict(listing)}, "listing", now)
        elif self._style != "none":
            say(describe_listing(listing, self._kind))

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._over.set()
        self._close_bar()

    def _close_bar(self) -> None:
        with self._drawing, suppress(OSError):
            bar, self._bar = self._bar, None
            if bar is not None:
                bar.close()

    def _tick(self) -> None:
        while not self._over.wait(TICK_S):
            with self._drawing, suppress(OSError):
                if self._bar is not None:
                    self._show_rate()
                    self._bar.refresh()

    def _draw(self, progress: Progress) -> None:
        if progress.loading:
            self._open_bar(f"loading {progress.loading}", bar_format="{unit} {elapsed}", leave=False)
            return
        if progress.listing is not None:
            bar = self._open_bar(f" {self._kind} listed")
            bar.update(progress.listing.images - bar.n)
            return
        bar = self._open_bar(
            f" {self._kind}",
            total=progress.total,
            initial=progress.resumed,
            bar_format=BAR if progress.total else COUNT,
        )
        self._failed = progress.failed
        self._show_rate()
        bar.update(progress.read - bar.n)

    def _open_bar(self, unit: str, **settings: Any) -> Any:
        """Return the bar of a phase; the one of another phase is taken away."""
        from tqdm import tqdm  # here, because only a run on a terminal needs it

        if self._bar is None or self._bar.unit != unit:
            if self._bar is not None:
                self._bar.close()
            self._failed = 0
            self._bar = tqdm(unit=unit, dynamic_ncols=True, file=sys.stderr, **settings)
        return self._bar

    def _show_rate(self) -> None:
        if self._speed and self._bar.bar_format in (BAR, COUNT):
            rate, left = self._speed.rate(time.monotonic()), self._speed.seconds_left(time.monotonic())
            words = [f"{rate:.1f} {self._kind}/s", *([f"{format_duration(left)} left"] if left is not None else [])]
            self._bar.set_postfix_str(", ".join([*words, f"failed={self._failed}"]), refresh=False)


class Speed:
    """How fast a run is: by what was done in the last ten seconds."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int, int]] = deque()  # moment, entries, bytes
        self._total: int | None = None

    def __bool__(self) -> bool:
        """Whether the run has begun."""
        return bool(self._seen)

    def add(self, now: float, progress: Progress) -> None:
        """Take how far a run is."""
        if not self._seen:
            self._seen.append((now, progress.resumed, 0))
        self._seen.append((now, progress.read, progress.bytes))
        while len(self._seen) > 2 and self._seen[1][0] <= now - RATE_OVER_S:
            self._seen.popleft()
        self._total = progress.total

    def rate(self, now: float) -> float:
        """Return entries per second; it falls while nothing comes."""
        return self._measure(now, 1)

    def bytes_rate(self, now: float) -> float:
        """Return encoded bytes per second."""
        return self._measure(now, 2)

    def seconds_left(self, now: float) -> int | None:
        """Return how long the rest takes at this rate; None where it cannot be said."""
        rate = self.rate(now)
        if self._total is None or not rate:
            return None
        return round((self._total - self._seen[-1][1]) / rate)

    def _measure(self, now: float, place: int) -> float:
        first, last = self._seen[0], self._seen[-1]
        return (last[place] - first[place]) / (now - first[0]) if now > first[0] else 0.0


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


def _make_event(progress: Progress, kind: Kind, speed: Speed) -> dict[str, Any]:
    if progress.listing is not None:
        return {"event": "listing", "images": progress.listing.images, "archives": progress.listing.archives}
    now = time.monotonic()
    return {
        "event": "progress",
        "read": progress.read,
        "total": progress.total,
        "failed": progress.failed,
        "shard": progress.shard,
        "shards": progress.shards,
        f"{kind}_per_s": round(speed.rate(now), 1),
        "bytes_per_s": round(speed.bytes_rate(now)),
        "seconds_left": speed.seconds_left(now),
    }


def _format_event(event: dict[str, Any], kind: Kind) -> str:
    if event["event"] == "listing":
        return describe_listing(Listing(event["images"], event["archives"]), kind)
    total = "" if event["total"] is None else f" of {event['total']:,}"
    shards = "" if event["total"] is not None else f" in {event['shard']:,} of {event['shards']:,} shards"
    done = f"{event['read']:,}{total} {kind}{shards}, failed {event['failed']:,}"
    left = event["seconds_left"]
    return f"{done}, {event[f'{kind}_per_s']} {kind}/s" + ("" if left is None else f", {format_duration(left)} left")


def format_duration(seconds: int) -> str:
    """Return a duration in the largest units that it has two of."""
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
