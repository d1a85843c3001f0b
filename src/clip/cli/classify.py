"""The command `clip classify`: classify images, write a JSON line for each."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import click

from ..jobs.classify import TEMPLATE, Classified, ClassifyJob, ClassifyReport
from ..jobs.embed import EmbedJob
from ..records import shorten
from .exit_codes import EXIT_WITH_FAILURES
from .flags import GroupedCommand
from .json_lines import to_json
from .progress import Reporter, say

MATRIX_LABELS = 12  # columns that a confusion table has room for
MOST_CONFUSED = 20  # lines of the list that replaces it where there are more labels
DIGITS = 7  # of a probability, after the point

LABELS_HELP = "A file with one label per line, or labels separated by commas; at least two."
TEMPLATE_HELP = f"Sentence with {{}} for the label. May be repeated: all are averaged.  [default: {TEMPLATE}]"
SET_HELP = "A set of templates instead: openai7, the seven of OpenAI's notebook, or a file with one per line."
TRUTH_HELP = "Compare with the correct labels: those in a column of OUT, or the folder-names of the images."
K_HELP = "Number of labels to return per image, the most probable first."
ARCHITECTURE_HELP = "For IMAGES: the network of weights that do not show theirs, as of embed."
MODEL_HELP = "A model's name or path; for OUT the run's weights.  [default: ViT-B/32; for OUT as in the manifest]"
EXAMPLES = (
    "clip classify out/ --labels cat,dog,bird",
    "clip classify photos/ --labels labels.txt -k 1 --truth folder-names",
)


@click.command(cls=GroupedCommand, short_help="Classify images into your labels.", examples=EXAMPLES)
@click.argument("source", metavar="OUT|IMAGES")
@click.option("--labels", metavar="FILE|A,B", required=True, help=LABELS_HELP)
@click.option("--template", metavar="TEXT", multiple=True, help=TEMPLATE_HELP)
@click.option("--templates", metavar="SET", help=SET_HELP)
@click.option("-k", metavar="N", type=int, default=ClassifyJob.k, show_default=True, help=K_HELP)
@click.option("--truth", metavar="COLUMN", help=TRUTH_HELP)
@click.option("-m", "--model", metavar="MODEL", help=MODEL_HELP)
@click.option("--untrained", metavar="SEED", type=int, help="For IMAGES: draw the weights at random from this seed.")
@click.option("--architecture", metavar="NAME|FILE", help=ARCHITECTURE_HELP)
@click.option("--device", metavar="DEVICE", default="auto", show_default=True, help="Device of the model.")
@click.option("--json", "as_json", is_flag=True, help="Write the summary, the last line on stderr, as one JSON object.")
def classify(*, as_json: bool, **options: Any) -> int:
    """Classify images into labels that you name; write a JSON line for each image.

    OUT is a folder that `clip embed` wrote; its vectors are used. IMAGES is any input of `clip embed`; it is embedded
    first. A line has id, path, top (labels and their probabilities, the most probable first), and truth with --truth;
    for an image that cannot be read it has id, path, stage, error, message. Exit code 0: all images are classified; 3:
    some could not be read; 1: the command failed; 2: it did not begin.
    """
    job = ClassifyJob(**options)
    from ..retrieval import classify as classify_module

    if job.untrained is not None:
        model = job.model or EmbedJob.model
        say(f"{model} is untrained (random weights of seed {job.untrained}): probabilities mean nothing yet")
    reporter = Reporter()

    def write(row: Classified) -> None:
        reporter.close()  # everything is embedded by now, so the bar makes room for the rows
        click.echo(to_json(_to_json(replace(row, path=shorten(row.path)))))

    try:
        report = classify_module.classify(job, write, reporter.update)
    finally:
        reporter.close()
    summary = {name: value for name, value in asdict(report).items() if name != "rows"}
    say(to_json({**summary, "accuracy": report.accuracy}) if as_json else _summarise(job, report))
    return EXIT_WITH_FAILURES if report.failed else 0


def _to_json(row: Classified) -> dict[str, Any]:
    if row.error is not None:
        return {name: getattr(row, name) for name in ("id", "path", "stage", "error", "message")}
    top = [{"label": label, "probability": round(probability, DIGITS)} for label, probability in row.top]
    truth = {} if row.truth is None else {"truth": row.truth}
    return {"id": row.id, "path": row.path, "top": top, **truth}


def _summarise(job: ClassifyJob, report: ClassifyReport) -> str:
    lines = [f"read {report.read:,} = classified {report.classified:,}, failed {report.failed:,}"]
    if job.truth is not None:
        if report.unknown:
            examples = ", ".join(map(repr, report.unknown))
            lines.append(
                f"of {report.classified:,}, {report.evaluated:,} have a truth that is a label; others: {examples}"
            )
        if report.accuracy is not None:
            lines += _tabulate_confusion(report)
            lines.append(f"correct {report.correct:,} of {report.evaluated:,}: {report.accuracy:.2%}")
    return "\n".join(lines)


def _tabulate_confusion(report: ClassifyReport) -> list[str]:
    """Return a line for each truth with a column for each label; of many labels the most frequent confusions."""
    if len(report.labels) > MATRIX_LABELS:
        wrong = sorted((cell for cell in report.confusion if cell[0] != cell[1]), key=lambda cell: -cell[2])
        return [f"{count:>7,}  {truth} predicted as {label}" for truth, label, count in wrong[:MOST_CONFUSED]]
    counts = {(truth, label): count for truth, label, count in report.confusion}
    widths = [max(len(label), 6) + 2 for label in report.labels]
    first = max(map(len, ("truth", *report.labels)))
    head = "".join(f"{label:>{width}}" for label, width in zip(report.labels, widths, strict=True))
    body = [
        f"{truth:<{first}}"
        + "".join(f"{counts.get((truth, label), 0):>{w},}" for label, w in zip(report.labels, widths, strict=True))
        for truth in report.labels
    ]
    return [f"{'truth':<{first}}{head}", *body]
