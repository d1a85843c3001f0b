"""The command `clip doctor`: say what the vectors of this machine depend on, and what is missing."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from .exit_codes import EXIT_FAILED
from .flags import GroupedCommand
from .json_lines import to_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..jobs.health import Health

JSON_HELP = "Write one JSON object."
ROOT_HELP = "Folder with cached weights.  [default: ~/.cache/clip]"
EXAMPLES = ("clip doctor", "clip doctor --json")
WIDTH = 20  # of the first column


@click.command(
    cls=GroupedCommand, short_help="Say what vectors depend on here, and what is missing.", examples=EXAMPLES
)
@click.option("--json", "as_json", is_flag=True, help=JSON_HELP)
@click.option("--download-root", metavar="DIR", help=ROOT_HELP)
def doctor(*, as_json: bool, download_root: str | None) -> int:
    """Say what the vectors of this machine depend on, and what is missing on it; put it into a bug report.

    Versions, devices and their precisions, extras and what does not work without them, the cache, threads. No weights
    are loaded and no server is asked. Exit code 0: nothing has to be put right; 1: the last lines say what.
    """
    from ..health.doctor import examine

    report = examine(download_root)
    if as_json:
        click.echo(to_json(asdict(report)))
    else:
        for line in _format(report):
            click.echo(line)
    return EXIT_FAILED if report.problems else 0


def _format(report: Health) -> Iterator[str]:
    for title, values in (("versions", report.versions), ("system", report.system)):
        yield title
        yield from (_line(name, value or "not installed") for name, value in values.items())
    yield "devices"
    for device in report.devices:
        yield _line(device.device, f"{device.name}; {device.backend}; {', '.join(device.precisions)}")
    yield "extras"
    for extra in report.extras:
        found = ", ".join(f"{name} {version or '-'}" for name, version in extra.versions.items())
        yield _line(extra.name, f"{found}{f'; without it: {extra.lacks}' if extra.lacks else ''}")
    yield "weights"
    yield _line("cache", report.cache.get("folder", "not readable"))
    yield from (_line(name, path) for name, path in report.cache.get("released", {}).items())
    yield _line("network", "forbidden" if report.cache.get("offline") else "allowed")
    yield from (_line(name, value) for name, value in report.cache.get("environment", {}).items())
    yield "threads"
    yield from (_line(name, value) for name, value in report.threads.items() if value is not None)
    yield "problems" if report.problems else "problems: none"
    yield from (f"  {problem}" for problem in report.problems)


def _line(name: str, value: str) -> str:
    return f"  {name:<{WIDTH}}{value}"
