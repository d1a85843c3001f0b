"""The command `clip index`. Knows nothing about vectors."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import click

from ..jobs.index import IndexJob
from .progress import say
from .signals import undisturbed


@click.command()
@click.argument("output", metavar="OUT")
@click.option("--json", "as_json", is_flag=True, help="The report as one JSON object.")
def index(*, as_json: bool, **options: Any) -> None:
    """Make the index that `clip search` uses, OUT/_index/exact.index, unless one stands that is whole and up to date.

    A search makes it too where there is none. Exit code 0: it stands; 1: it cannot be made.
    """
    job = IndexJob(**options)
    with undisturbed():
        from ..retrieval import search as searching

    report = searching.index(job)
    if as_json:
        click.echo(json.dumps(asdict(report), default=str))
    what = f"made in {report.seconds:.1f} s" if report.made else "whole and up to date"
    say(f"{report.path}: {report.rows:,} rows, {report.size_bytes / 1e6:,.1f} MB, {what}")
