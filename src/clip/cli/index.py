"""The command `clip index`: build the index of an output."""

from __future__ import annotations

from dataclasses import asdict

import click

from ..jobs.index import IndexJob
from .flags import GroupedCommand
from .json_lines import to_json
from .progress import say

EXAMPLES = ("clip index out/",)


@click.command(cls=GroupedCommand, short_help="Build the index that `clip search` uses.", examples=EXAMPLES)
@click.argument("output", metavar="OUT...", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Write the report as one JSON object to stdout.")
def index(*, output: tuple[str, ...], as_json: bool) -> None:
    """Build the index of OUT that `clip search` uses, unless it is complete and up to date.

    OUT is a folder that `clip embed` wrote; the index is OUT/_index/exact.index. A search builds it too where there is
    none. Exit code 0: the index is there; 1: it cannot be built.
    """
    jobs = [IndexJob(output=one) for one in output]
    from ..retrieval import search as search_module

    for job in jobs:
        report = search_module.index(job)
        if as_json:
            click.echo(to_json(asdict(report)))
        state = f"made in {report.seconds:.1f} s" if report.made else "whole and up to date"
        say(f"{report.path}: {report.rows:,} rows, {report.size_bytes / 1e6:,.1f} MB, {state}")
