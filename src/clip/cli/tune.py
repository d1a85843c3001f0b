"""The command `clip tune`: measure settings, and print a table of them."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Any

import click

from ..jobs.fields import nest
from ..jobs.tune import SettingRow, TuneJob, TuneReport
from .flags import GroupedCommand, job_option
from .json_lines import to_json
from .progress import say

HEAD = (
    f"{'precision':<11}{'pixels':<8}{'images/s':>9}{'faster':>8}  cosine: {'min':>9}{'1 %':>10}{'mean':>10}"
    f"{'angle':>8}{'top 10':>8}"
)
EXAMPLES = ("clip tune photos/ --min-cosine 0.999",)
MEASURE = partial(job_option, TuneJob, group="What to measure")
READ = partial(job_option, TuneJob, group="What to read")


@click.command(cls=GroupedCommand, short_help="Measure the fastest setting of this machine.", examples=EXAMPLES)
@click.argument("source", metavar="INPUT...", nargs=-1, required=True)
@MEASURE("model.name", "-m", "--model", metavar="MODEL")
@MEASURE("min_cosine", "--min-cosine", metavar="X")
@MEASURE("images", "--pictures", "--images", metavar="N")
@MEASURE("seed", "--seed", metavar="N")
@MEASURE("model.device", "--device", metavar="DEVICE")
@MEASURE("model.untrained", "--untrained", metavar="SEED")
@MEASURE("model.architecture", "--architecture", metavar="NAME|FILE")
@MEASURE("calibration", "--calibration", metavar="DIR")
@MEASURE("workers", "--workers", metavar="N")
@MEASURE("model.threads", "--threads", metavar="N")
@READ("globs", "--glob", "--globs", metavar="PATTERN", multiple=True)
@READ("columns.entry", "--column", metavar="NAME")
@READ("columns.delimiter", "--delimiter", metavar="C")
@READ("columns.quoting", "--quoting")
@READ("root", "--root", metavar="DIR")
@click.option("--json", "as_json", is_flag=True, help="Write the report as one JSON object to stdout.")
def tune(*, as_json: bool, **options: Any) -> None:
    """Measure on some of your images how fast each setting of this machine is, and how exact its vectors are.

    INPUT is any input of `clip embed`. Each precision is measured with exact and with fast pixels, from files to
    vectors; cosines are to the exact vectors, those of --precision reference and exact pixels. The last line names the
    fastest setting whose cosines are all within the bound. `clip embed --min-cosine X` measures first and takes that
    setting.
    """
    job = TuneJob(**nest(TuneJob, options))
    from ..batch import tune as tune_module

    report = tune_module.tune(job, say)
    if as_json:
        click.echo(to_json(asdict(report)))
        return
    click.echo(HEAD)
    for row in report.rows:
        click.echo(_format_row(row, report))
    click.echo(tune_module.summarise(report))
    if report.quantised_by:
        say(f"{report.quantised_by:,} of the images also quantised int8: for other images it may be less exact")


def _format_row(row: SettingRow, report: TuneReport) -> str:
    faster = f"{row.images_per_s / report.rows[0].images_per_s:.2f}x"
    cosines = f"{row.min_cosine:>17.6f}{row.p1_cosine:>10.6f}{row.mean_cosine:>10.6f}"
    rest = f"{row.max_angle_degrees:>7.2f}°{row.neighbours:>8.1%}{'' if row.within else '  below the bound'}"
    return f"{row.precision:<11}{row.decode:<8}{row.images_per_s:>9.1f}{faster:>8}  {cosines}{rest}"
