"""The command `clip classify`: flags in, rows out. Knows nothing about vectors."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from ..jobs.classify import TEMPLATE, ClassifyJob
from ..jobs.embed import EmbedJob
from .exit_codes import EXIT_WITH_FAILURES
from .progress import Reporter, say
from .signals import undisturbed

if TYPE_CHECKING:
    from ..jobs.classify import Classified, ClassifyReport

MATRIX_LABELS = 12  # that a confusion table has room for beside each other
MOST_CONFUSED = 20  # lines of it where there are more
DIGITS = 7  # of a probability

LABELS_HELP = "A file with a label a line, or labels with commas between."
TEMPLATE_HELP = f"A sentence with {{}} for the label. May be repeated: they are averaged.  [default: {TEMPLATE}]"
SET_HELP = "A set of them: openai7, or a file with one a line."
TRUTH_HELP = "What images are, to count how often that is found: a column, or folder-names."
CLASSIFY_MODEL_HELP = "A name or file; of OUT, the run's weights.  [default: ViT-B/32; as in the manifest]"


@click.command()
@click.argument("source", metavar="OUT|IMAGES")
@click.option("--labels", metavar="FILE|A,B", required=True, help=LABELS_HELP)
@click.option("--template", metavar="TEXT", multiple=True, help=TEMPLATE_HELP)
@click.option("--templates", metavar="SET", help=SET_HELP)
@click.option("-k", metavar="N", type=int, default=ClassifyJob.k, show_default=True, help="Labels to tell of each.")
@click.option("--truth", metavar="COLUMN", help=TRUTH_HELP)
@click.option("-m", "--model", metavar="MODEL", help=CLASSIFY_MODEL_HELP)
@click.option("--untrained", metavar="SEED", type=int, help="Of images: draw the named model's weights at random.")
@click.option("--device", default="auto", show_default=True, help="Of the model.")
@click.option("--json", "as_json", is_flag=True, help="The summary on stderr as one JSON object.")
def classify(*, as_json: bool, **options: Any) -> int:
    """Tell which of some labels images show, with probabilities, as NDJSON.

    The vectors of OUT, as `clip embed` wrote it, are used; IMAGES, anything that `clip embed` takes, are embedded
    first. Each image is a line: id, path, top (label and probability, the most probable first), truth where it is
    asked for; or, where it cannot be read, id, path, stage, error, message. Exit code 0: all were classified; 3: some
    could not be read; 1: the run failed; 2: it did not begin.
    """
    job = ClassifyJob(**options)
    with undisturbed():
        from ..retrieval import classify as classify_module

    if job.untrained is not None:
        model = job.model or EmbedJob.model
        say(f"{model} is untrained (random weights of seed {job.untrained}): probabilities mean nothing yet")
    reporter = Reporter()

    def tell(row: Classified) -> None:
        reporter.close()  # all is embedded by now: its bar gives way to the rows
        click.echo(json.dumps(_row(row)))

    try:
        report = classify_module.classify(job, tell, reporter.update)
    finally:
        reporter.close()
    told = {name: value for name, value in asdict(report).items() if name != "rows"}
    say(json.dumps({**told, "accuracy": report.accuracy}) if as_json else _summary(job, report))
    return EXIT_WITH_FAILURES if report.failed else 0


def _row(row: Classified) -> dict[str, Any]:
    if row.error is not None:
        told = {"stage": row.stage, "error": row.error, "message": row.message}
        return {"id": row.id, "path": row.path, **told}
    top = [{"label": label, "probability": round(probability, DIGITS)} for label, probability in row.top]
    truth = {} if row.truth is None else {"truth": row.truth}
    return {"id": row.id, "path": row.path, "top": top, **truth}


def _summary(job: ClassifyJob, report: ClassifyReport) -> str:
    lines = [f"read {report.read:,} = classified {report.classified:,}, failed {report.failed:,}"]
    if job.truth is not None:
        if report.unknown:
            some = ", ".join(map(repr, report.unknown))
            lines.append(f"of {report.classified:,}, {report.evaluated:,} have a truth that is a label; others: {some}")
        if report.accuracy is not None:
            lines += [*_confusion(report), f"right {report.correct:,} of {report.evaluated:,}: {report.accuracy:.2%}"]
    return "\n".join(lines)


def _confusion(report: ClassifyReport) -> list[str]:
    """A line a truth and a column a label; where there are many labels, what was most often taken for another."""
    if len(report.labels) > MATRIX_LABELS:
        wrong = sorted((found for found in report.confusion if found[0] != found[1]), key=lambda found: -found[2])
        return [f"{count:>7,}  {truth} taken for {taken}" for truth, taken, count in wrong[:MOST_CONFUSED]]
    counts = {(truth, taken): count for truth, taken, count in report.confusion}
    widths = [max(len(label), 6) + 2 for label in report.labels]
    first = max(map(len, ("truth", *report.labels)))
    head = "".join(f"{label:>{width}}" for label, width in zip(report.labels, widths, strict=True))
    body = [
        f"{truth:<{first}}"
        + "".join(f"{counts.get((truth, label), 0):>{w},}" for label, w in zip(report.labels, widths, strict=True))
        for truth in report.labels
    ]
    return [f"{'truth':<{first}}{head}", *body]
