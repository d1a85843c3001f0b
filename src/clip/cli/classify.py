"""The command `clip classify`: classify images, write a JSON line for each."""

from __future__ import annotations

import csv
import sys
from dataclasses import asdict, replace
from functools import partial
from typing import Any, Literal, get_args

import click

from ..jobs.classify import OTHER, TEMPLATE, Classified, ClassifyJob, ClassifyReport
from ..jobs.embed import EmbedJob
from ..records import link_to, shorten
from .exit_codes import EXIT_WITH_FAILURES
from .flags import GroupedCommand, grouped
from .json_lines import to_json
from .progress import Reporter, escape, say
from .terminal import has_links, is_terminal, link, make_table, measure, pad

MATRIX_LABELS = 12  # columns that a confusion table has room for
MOST_CONFUSED = 20  # lines of the list that replaces it where there are more labels
DIGITS = 7  # of a probability, after the point

LABELS_HELP = "A file with one label per line, or labels with commas between; at least two. May be repeated."
TEMPLATE_HELP = f"Sentence with {{}} for the label. May be repeated: all are averaged.  [default: {TEMPLATE}]"
SET_HELP = "A set of templates instead: openai7, the seven of OpenAI's notebook, or a file with one per line."
TRUTH_HELP = "Compare with the correct labels: those in a column of OUT, or the folder-names of the images."
K_HELP = "Number of labels to return per image in JSON lines, the most probable first."
OTHER_HELP = "Label an image other where its most probable label has less than this probability."
FORMAT_HELP = "A table on a terminal and JSON lines elsewhere (auto), or one of them, or CSV."
CSV_COLUMNS = ("id", "path", "label", "probability", "truth", "error", "message")
ARCHITECTURE_HELP = "For IMAGES: the network of weights that do not show theirs, as of embed."
MODEL_HELP = "A model's name or path; for OUT the run's weights.  [default: ViT-B/32; for OUT as in the manifest]"
EXAMPLES = (
    "clip classify out/ --labels cat,dog,bird",
    "clip classify photos/ --labels labels.txt -k 1 --truth folder-names",
)


Format = Literal["auto", "table", "json", "csv"]
WHAT, MODEL, HOW = (partial(grouped, name) for name in ("Labels", "Model", "How to answer"))


@click.command(cls=GroupedCommand, short_help="Classify images into your labels.", examples=EXAMPLES)
@click.argument("source", metavar="OUT...|IMAGES...", nargs=-1, required=True)
@WHAT("--labels", metavar="FILE|A,B", multiple=True, required=True, help=LABELS_HELP)
@WHAT("--template", metavar="TEXT", multiple=True, help=TEMPLATE_HELP)
@WHAT("--templates", metavar="SET", help=SET_HELP)
@WHAT("--other", metavar="P", type=float, help=OTHER_HELP)
@WHAT("--truth", metavar="COLUMN", help=TRUTH_HELP)
@MODEL("-m", "--model", metavar="MODEL", help=MODEL_HELP)
@MODEL("--untrained", metavar="SEED", type=int, help="For IMAGES: draw the weights at random from this seed.")
@MODEL("--architecture", metavar="NAME|FILE", help=ARCHITECTURE_HELP)
@MODEL("--device", metavar="DEVICE", default="auto", show_default=True, help="Device of the model.")
@HOW("-k", metavar="N", type=int, default=ClassifyJob.k, show_default=True, help=K_HELP)
@HOW("--format", type=click.Choice(get_args(Format)), default="auto", show_default=True, help=FORMAT_HELP)
@HOW("--json", "as_json", is_flag=True, help="Write the summary, the last line on stderr, as one JSON object.")
def classify(*, format: Format, as_json: bool, labels: tuple[str, ...], **options: Any) -> int:
    """Classify images into labels that you name; write a line for each image.

    Labels exclude each other: of an image that shows two of them one wins. For all images that show something, `clip
    find` it.

    OUT is a folder that `clip embed` wrote; its vectors are used. IMAGES is any input of `clip embed`; it is embedded
    first. There may be several of one kind. On a terminal a line has the probability, the label and the path, and the
    end has the counts of each label. Elsewhere it is a JSON object with id, path, top (labels and their probabilities,
    the most probable first), label with --other, and truth with --truth; for an image that cannot be read it has id,
    path, stage, error, message. Exit code 0: all images are classified; 3: some could not be read; 1: the command
    failed; 2: it did not begin.
    """
    from ..retrieval.prompts import read_labels, split_labels

    names = read_labels(labels[0] if len(labels) == 1 else split_labels(labels))
    job = ClassifyJob(labels=names, **options)
    from ..retrieval import classify as classify_module
    from .sketch import warn_of_words

    if job.untrained is not None:
        model = job.model or EmbedJob.model
        say(f"{model} is untrained (random weights of seed {job.untrained}): probabilities mean nothing yet")
    warn_of_words(job.model, names)
    reporter = Reporter()
    form = ("table" if is_terminal(sys.stdout) else "json") if format == "auto" else format
    rows = csv.writer(sys.stdout, lineterminator="\n") if form == "csv" else None
    if rows:
        rows.writerow(CSV_COLUMNS)
    width = max(map(measure, (*names, OTHER)))

    def write(row: Classified) -> None:
        reporter.close()  # everything is embedded by now, so the bar makes room for the rows
        row = replace(row, path=shorten(row.path))
        if rows:
            rows.writerow(_make_cells(row))
        else:
            click.echo(_format_line(row, width) if form == "table" else to_json(_to_json(row, job)))

    try:
        report = classify_module.classify(job, write, reporter.update)
    finally:
        reporter.close()
    summary = {name: value for name, value in asdict(report).items() if name != "rows"}
    if form == "table" and not as_json:
        say("\n" + make_table([(f"{count:,}", label) for label, count in report.counts], right=(0,)).rstrip("\n"))
    say(to_json({**summary, "accuracy": report.accuracy}) if as_json else _summarise(job, report))
    return EXIT_WITH_FAILURES if report.failed else 0


def _to_json(row: Classified, job: ClassifyJob) -> dict[str, Any]:
    if row.error is not None:
        return {name: getattr(row, name) for name in ("id", "path", "stage", "error", "message")}
    top = [{"label": label, "probability": round(probability, DIGITS)} for label, probability in row.top]
    label = {} if job.other is None else {"label": row.label}
    truth = {} if row.truth is None else {"truth": row.truth}
    return {"id": row.id, "path": row.path, "top": top, **label, **truth}


def _format_line(row: Classified, width: int) -> str:
    path = link(escape(row.path), link_to(row.path)) if has_links() else escape(row.path)
    if row.label is None:
        return f"{'failed':>7}  {pad('', width)}  {path}  ({escape(row.message or '')})"
    return f"{row.top[0][1]:>7.1%}  {pad(escape(row.label), width)}  {path}"


def _make_cells(row: Classified) -> tuple[object, ...]:
    probability = "" if row.label is None else round(row.top[0][1], DIGITS)
    return (row.id, row.path, row.label, probability, row.truth, row.error, row.message)


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
    more = [OTHER] if any(label == OTHER for _, label, _ in report.confusion) else []
    columns = list(dict.fromkeys([*report.labels, *more]))
    head = ["truth", *(pad(label, 6, right=True) for label in columns)]
    cells = [[truth, *(f"{counts.get((truth, label), 0):,}" for label in columns)] for truth in report.labels]
    return make_table([head, *cells], range(1, len(head))).splitlines()
