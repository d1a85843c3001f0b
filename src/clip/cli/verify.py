"""The command `clip verify`: read an output back, and print its problems."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from ..jobs.verify import VerifyJob
from .exit_codes import EXIT_FAILED
from .flags import ROOT_HELP, GroupedCommand
from .json_lines import to_json
from .progress import say

SEED_HELP = "Seed that draws the sample; another one draws other images."
EXAMPLES = ("clip verify out/ --sample 100",)


@click.command(cls=GroupedCommand, short_help="Read vectors back, and check them.", examples=EXAMPLES)
@click.argument("output", metavar="OUT...", nargs=-1, required=True)
@click.option(
    "--sample", metavar="N", type=int, default=0, show_default=True, help="Also embed N images again and compare."
)
@click.option(
    "-m", "--model", metavar="MODEL", help="The run's weights, for the sample.  [default: as in the manifest]"
)
@click.option("--device", metavar="DEVICE", default="auto", show_default=True, help="Device for the sample.")
@click.option("--seed", metavar="N", type=int, default=0, show_default=True, help=SEED_HELP)
@click.option("--root", metavar="DIR", help=ROOT_HELP)
@click.option("--fetch", is_flag=True, help="Ask servers for images of the sample that are there.")
@click.option("--json", "as_json", is_flag=True, help="Write the report as one JSON object to stdout.")
def verify(*, output: tuple[str, ...], as_json: bool, **options: Any) -> int:
    """Read OUT back, and compare it with its listing, its manifest, and with some of the images.

    OUT is a folder that `clip embed` wrote. Every file is read, and compared with its checksums. Each listed id must
    occur once, as a row or as a failure row; vectors must be finite and of the length that the manifest says. Exit code
    0: no problem; 1: there are problems, each a line on stdout. Several outputs are verified one after another.
    """
    jobs = [VerifyJob(output=one, **options) for one in output]
    return max(_verify(job, as_json=as_json, several=len(jobs) > 1) for job in jobs)


def _verify(job: VerifyJob, *, as_json: bool, several: bool) -> int:
    from ..batch import verify as verify_module

    report = verify_module.verify(job)
    if as_json:
        click.echo(to_json(asdict(report)))
    else:
        for problem in report.problems:
            click.echo(f"{f'{report.output}/' if several else ''}{problem.where}: {problem.what}")
    for note in report.notes:
        say(note)
    cosine = "" if report.min_cosine is None else f", min cosine {report.min_cosine:.6f}"
    sampled = f"; {report.sampled:,} embedded again{cosine}" if job.sample else ""
    problems = f"{len(report.problems):,} problems" if report.problems else "no problem"
    counts = f"read {report.read:,} = written {report.written:,}, failed {report.failed:,}"
    say(f"{counts}{sampled}; {problems}; {report.output}")
    return EXIT_FAILED if report.problems else 0
