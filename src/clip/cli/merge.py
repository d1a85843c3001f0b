"""The command `clip merge`: make one output of several."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from ..jobs.merge import MergeJob
from .flags import GroupedCommand
from .progress import summarise

EXAMPLES = ("clip merge january/ february/ -o both/",)


@click.command(cls=GroupedCommand, short_help="Make one folder of vectors of several.", examples=EXAMPLES)
@click.argument("source", metavar="OUT...", nargs=-1, required=True)
@click.option("-o", "--output", metavar="MERGED", required=True, help="Folder to write.")
@click.option("--json", "as_json", is_flag=True, help="Write the summary as one JSON object, also to stdout.")
def merge(*, as_json: bool, **options: Any) -> None:
    """Make one output of several that `clip embed` wrote, without embedding anything.

    The outputs are parts of one run, or runs of the same weights, precision and preprocessing. MERGED has the rows and
    the listing of one run over all inputs; ids and paths start at the folder that holds all images. Parts that stay as
    they are become hard links. Exit code 0: done; 1: an output is damaged or not finished; 2: they do not fit.
    """
    job = MergeJob(**options)
    from ..store import merge as merge_module

    report = merge_module.merge(job)
    counts = f"read {report.read:,} = written {report.written:,}, failed {report.failed:,}"
    parts = f"{report.linked:,} parts linked, {report.copied:,} written"
    summarise(asdict(report) if as_json else f"{counts}; {parts}; {report.output}")
