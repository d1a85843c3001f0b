"""The command `clip verify`. Knows nothing about how an output is verified."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import click

from ..jobs.verify import VerifyJob
from .exit_codes import EXIT_FAILED
from .progress import say
from .signals import undisturbed


@click.command()
@click.argument("output", metavar="OUT")
@click.option("--sample", metavar="N", type=int, default=0, help="Also embed N images again and compare.")
@click.option("-m", "--model", metavar="MODEL", help="The run's weights, for --sample.  [default: as in the manifest]")
@click.option("--device", default="auto", show_default=True, help="To embed the sample on.")
@click.option("--seed", metavar="N", type=int, default=0, show_default=True, help="Which images the sample takes.")
@click.option("--json", "as_json", is_flag=True, help="The report as one JSON object.")
def verify(*, as_json: bool, **options: Any) -> int:
    """Read what `clip embed` wrote back, and compare it with the listing, the manifest, and with some of the images.

    Every part is read; each listed id must stand once, as a row or as a failure row; vectors must be finite and of the
    length that the manifest says. Exit code 0: all is as it should be; 1: it is not, a line a problem on stdout.
    """
    job = VerifyJob(**options)
    with undisturbed():
        from ..batch import verify as verification

    report = verification.verify(job)
    if as_json:
        click.echo(json.dumps(asdict(report), default=str))
    else:
        for problem in report.problems:
            click.echo(f"{problem.where}: {problem.what}")
    cosine = "" if report.min_cosine is None else f", least cosine {report.min_cosine:.6f}"
    sampled = f"; {report.sampled:,} embedded again{cosine}" if job.sample else ""
    found = f"{len(report.problems):,} problems" if report.problems else "no problem"
    counts = f"read {report.read:,} = written {report.written:,}, failed {report.failed:,}"
    say(f"{counts}{sampled}; {found}; {report.output}")
    return EXIT_FAILED if report.problems else 0
