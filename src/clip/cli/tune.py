"""The command `clip tune`: flags in, a table out. Knows nothing about how settings are measured."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from ..jobs.tune import TuneJob
from .progress import say
from .signals import undisturbed

if TYPE_CHECKING:
    from ..jobs.tune import SettingRow, TuneReport

HEAD = (
    f"{'precision':<11}{'pixels':<8}{'images/s':>9}{'faster':>8}  cosine: {'least':>9}{'1 %':>10}{'mean':>10}"
    f"{'angle':>8}{'top 10':>8}"
)


@click.command()
@click.argument("source", metavar="INPUT...", nargs=-1, required=True)
@click.option("-m", "--model", metavar="MODEL", default=TuneJob.model, show_default=True, help="A name or a file.")
@click.option("--untrained", metavar="SEED", type=int, help="Draw the named model's weights at random.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1 or mps.")
@click.option("--min-cosine", metavar="X", type=float, default=TuneJob.min_cosine, show_default=True, help="The bound.")
@click.option(
    "--pictures", "images", metavar="N", type=int, default=TuneJob.images, show_default=True, help="To measure on."
)
@click.option("--seed", metavar="N", type=int, default=0, show_default=True, help="Which images these are.")
@click.option("--calibration", metavar="DIR", help="Images for int8 to quantise by.  [default: the first of INPUT]")
@click.option("--glob", "globs", metavar="PATTERN", multiple=True, help="As of clip embed.")
@click.option("--column", metavar="NAME", help="Of lists and tables: images, or their paths.")
@click.option("--root", metavar="DIR", default="", help="Where relative paths in lists start.")
@click.option("--workers", metavar="N", type=int, help="Threads that decode.  [default: one a core]")
@click.option("--threads", metavar="N", type=int, help="Threads of the model on a CPU, likewise.")
@click.option("--json", "as_json", is_flag=True, help="The report as one JSON object.")
def tune(*, as_json: bool, **options: Any) -> None:
    """Measure how fast each setting of this machine is on some of your images, and how near its vectors stay.

    INPUT is what clip embed takes. Each precision is tried with exact and with fast pixels, in turns, from files to
    vectors; cosines are to the exact vectors, those of --precision reference and exact pixels. The last line names the
    fastest setting of which no image of the sample is below the bound; clip embed --min-cosine X measures and takes
    it.
    """
    job = TuneJob(**options)
    with undisturbed():
        from ..batch import tune as tune_module

    report = tune_module.tune(job, say)
    if as_json:
        click.echo(json.dumps(asdict(report)))
        return
    click.echo(HEAD)
    for row in report.rows:
        click.echo(_line(row, report))
    click.echo(tune_module.summary(report))
    if report.quantised_by:
        say(f"{report.quantised_by:,} of the images also served to quantise int8: others may be further off")


def _line(row: SettingRow, report: TuneReport) -> str:
    faster = f"{row.images_per_s / report.rows[0].images_per_s:.2f}x"
    cosines = f"{row.min_cosine:>17.6f}{row.p1_cosine:>10.6f}{row.mean_cosine:>10.6f}"
    told = f"{row.max_angle_degrees:>7.2f}°{row.neighbours:>8.1%}{'' if row.within else '  below the bound'}"
    return f"{row.precision:<11}{row.decode:<8}{row.images_per_s:>9.1f}{faster:>8}  {cosines}{told}"
