"""The command `clip failures`: what has no vector, and why."""

from __future__ import annotations

import csv
import sys
from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING, Any

import click

from .flags import ROOT_HELP, GroupedCommand
from .json_lines import to_json
from .progress import escape, say

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ..store.reader import Store

FIRST = 5  # of a run's failures, shown at its end
COLUMNS = ("id", "path", "stage", "error", "message")
EXAMPLES = ("clip failures out/", "clip failures out/ --paths > to-repair.txt")


@click.command(cls=GroupedCommand, short_help="List what failed, and why.", examples=EXAMPLES)
@click.argument("output", metavar="OUT")
@click.option("--root", metavar="DIR", help=ROOT_HELP)
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object per failure.")
@click.option("--csv", "as_csv", is_flag=True, help="Write CSV with a header.")
@click.option("--paths", is_flag=True, help="Write paths only, for other programs.")
def failures(output: str, *, root: str | None, as_json: bool, as_csv: bool, paths: bool) -> None:
    """List the images of OUT that have no vector, in the order of the input, and why.

    OUT is a folder that `clip embed` wrote. Each failure has an id, a path, the stage that failed (read, open, decode,
    encode), the error, and a message that says what to do. Exit code 0, also where nothing failed.
    """
    if as_json + as_csv + paths > 1:
        raise click.UsageError("found several of --json, --csv and --paths, expected one. Leave the others out.")
    from ..batch.place import find_output
    from ..store.reader import Store

    store = Store(find_output(output), root)
    lines = csv.writer(sys.stdout, lineterminator="\n") if as_csv else None
    if lines:
        lines.writerow(COLUMNS)
    stages: Counter[str] = Counter()
    for row in read_failures(store):
        stages[row["stage"]] += 1
        if lines:
            lines.writerow([row[name] for name in COLUMNS])
        else:
            click.echo(to_json(row) if as_json else row["path"] if paths else describe_failure(row))
    counts = ", ".join(f"{count:,} {stage}" for stage, count in stages.items())
    say(f"{stages.total():,} failed{f': {counts}' if counts else ''}; {output}")


def read_failures(store: Store) -> Iterator[dict[str, Any]]:
    """Yield the failures of an output, part by part, with whole paths. Raises: StoreError for a part that changed."""
    for table in store.read_failures():
        yield from table.to_pylist()


def describe_failure(row: dict[str, Any]) -> str:
    """Return a failure in words, on one line."""
    return f"{escape(row['path'])}: {escape(row['message'])} ({row['stage']}: {row['error']})"


def list_first(output: Path, failed: int) -> list[str]:
    """Return the first failures of a run in words, and how the others are read."""
    from ..store.reader import Store

    lines = [f"failed: {describe_failure(row)}" for row in islice(read_failures(Store(output)), FIRST)]
    if failed > len(lines):
        lines.append(f"and {failed - len(lines):,} more: clip failures {output}")
    return lines
