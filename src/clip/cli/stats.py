"""The command `clip stats`: percentiles of the cosines in an output."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from ..jobs.stats import PERCENTS, StatsJob
from .flags import GroupedCommand, job_option
from .json_lines import to_json
from .progress import escape, say
from .search import MODEL_HELP

NAME_WIDTH = 20  # letters


EXAMPLES = ("clip stats out/", 'clip stats out/ -t "a red boat"')


@click.command(cls=GroupedCommand, short_help="Show which cosines are usual.", examples=EXAMPLES)
@click.argument("output", metavar="OUT")
@job_option(StatsJob, "texts", "-t", "--text", metavar="TEXT", multiple=True)
@click.option("-m", "--model", metavar="MODEL", help=MODEL_HELP)
@job_option(StatsJob, "device", "--device", metavar="DEVICE")
@click.option("--json", "as_json", is_flag=True, help="Write the report as one JSON object.")
def stats(output: str, *, as_json: bool, **options: Any) -> None:
    """Print percentiles of the cosines in OUT: of pairs of its images, and of texts to all of them.

    OUT is a folder that `clip embed` wrote. A score is high if it is high among these. Exit code 0: done; 1: it failed.
    """
    from .outputs import choose_output

    job = StatsJob(output=choose_output(output), **options)
    from ..retrieval.stats import stats as compute_stats

    report = compute_stats(job, say)
    if as_json:
        click.echo(to_json({**asdict(report), "percents": PERCENTS}))
        return
    click.echo(f"{'cosines of':<{NAME_WIDTH}}{'pairs':>9}" + "".join(f"{f'{percent:g} %':>9}" for percent in PERCENTS))
    for row in report.cosines:
        name = escape(row.of)
        name = name if len(name) < NAME_WIDTH else f"{name[: NAME_WIDTH - 4]}..."
        click.echo(f"{name:<{NAME_WIDTH}}{row.pairs:>9,}" + "".join(f"{value:>9.4f}" for value in row.percentiles))
