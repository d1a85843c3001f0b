"""The command `clip index`: build the index of an output."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict
from typing import Any, get_args

import click

from ..jobs.index import IndexJob, IndexType
from .counter import Counter
from .flags import GroupedCommand, job_option
from .json_lines import to_json
from .progress import say

EXAMPLES = ("clip index out/", "clip index out/ --type ivf --recall 0.99")
MODEL_HELP = "The run's weights, for the recall of text queries.  [default: as in the manifest]"


@click.command(cls=GroupedCommand, short_help="Build the index that `clip search` uses.", examples=EXAMPLES)
@click.argument("output", metavar="OUT...", nargs=-1, required=True)
@job_option(IndexJob, "type", "--type", type=click.Choice(get_args(IndexType)))
@job_option(IndexJob, "codes", "--codes")
@job_option(IndexJob, "recall", "--recall", metavar="R")
@job_option(IndexJob, "memory", "--memory", metavar="BYTES")
@job_option(IndexJob, "rebuild", "--rebuild")
@click.option("-m", "--model", metavar="MODEL", help=MODEL_HELP)
@click.option("--device", metavar="DEVICE", default="auto", show_default=True, help="Device of the model.")
@click.option("--json", "as_json", is_flag=True, help="Write the report as one JSON object to stdout.")
def index(*, output: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Build the index of OUT that `clip search` uses, unless it is complete and up to date.

    OUT is a folder that `clip embed` wrote; the index lies in OUT/_index. A search builds it too where there is none.
    The exact index is scanned whole. With --type ivf a search reads a few lists of near rows, which is meant for
    millions of rows and finds nearly all: how much is measured on the output's own vectors, for queries like its rows
    and for texts apart. An ivf that was interrupted goes on where it was. Exit code 0: the index is there; 1: it cannot
    be built.
    """
    jobs = [IndexJob(output=one, **options) for one in output]
    from ..retrieval import indexing

    for job in jobs:
        with closing(Counter()) as counter:
            report = indexing.index(job, counter.update)
        if as_json:
            click.echo(to_json(asdict(report)))
        state = f"made in {report.seconds:.1f} s" if report.made else "whole and up to date"
        kind = f", {report.lists:,} lists, {report.codes}" if report.type == "ivf" else ""
        say(f"{report.path}: {report.rows:,} rows, {report.size_bytes / 1e6:,.1f} MB{kind}, {state}")
        for recall in report.recall:
            say(indexing.describe(recall, report.lists))
        if report.advice:
            say(report.advice)
