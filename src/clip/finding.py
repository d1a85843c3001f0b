"""The commands `clip search`, `clip index` and `clip classify`: flags in, rows out. Knows nothing about vectors."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from clip.find_jobs import TEMPLATE, ClassifyJob, IndexJob, SearchJob
from clip.interrupts import undisturbed
from clip.jobs import EmbedJob
from clip.reporter import Reporter, say

if TYPE_CHECKING:
    from clip.find_jobs import Classified, ClassifyReport, Hit

EXIT_WITH_FAILURES = 3
WIDEST_ID = 60  # letters that the table makes room for
MATRIX_LABELS = 12  # that a confusion table has room for beside each other
MOST_CONFUSED = 20  # lines of it where there are more
DIGITS = 7  # of a probability

TEXT_HELP = "What to look for, in words. May be repeated: all texts, pictures and the vector are averaged."
IMAGE_HELP = "A picture to look for, - for stdin. May be repeated."
VECTOR_HELP = "A vector to look for, as a JSON list or .npy, - for stdin."
NOT_HELP = "What not to look for, in words: its vector is subtracted. May be repeated."
WHERE_HELP = "Only rows for which this is true, as in SQL: \"width > 1000 AND format = 'JPEG'\"."
SHEET_HELP = "Also write a picture of the hits."
RUN_MODEL_HELP = "The run's weights.  [default: as in the manifest]"
LABELS_HELP = "A file with a label a line, or labels with commas between."
TEMPLATE_HELP = f"A sentence with {{}} for the label. May be repeated: they are averaged.  [default: {TEMPLATE}]"
SET_HELP = "A set of them: openai7, or a file with one a line."
TRUTH_HELP = "What pictures are, to count how often that is found: a column, or folder-names."
CLASSIFY_MODEL_HELP = "A name or file; of OUT, the run's weights.  [default: ViT-B/32; as in the manifest]"


@click.command()
@click.argument("output", metavar="OUT")
@click.option("-t", "--text", "texts", metavar="TEXT", multiple=True, help=TEXT_HELP)
@click.option("-i", "--image", "images", metavar="FILE", multiple=True, help=IMAGE_HELP)
@click.option("--vector", metavar="FILE", help=VECTOR_HELP)
@click.option("--not", "without", metavar="TEXT", multiple=True, help=NOT_HELP)
@click.option("-n", "k", metavar="N", type=int, default=SearchJob.k, show_default=True, help="Hits.")
@click.option("--min-score", metavar="S", type=float, help="Only hits of at least this cosine.")
@click.option("--where", metavar="SQL", help=WHERE_HELP)
@click.option("--contact-sheet", metavar="FILE.png", help=SHEET_HELP)
@click.option("-m", "--model", metavar="MODEL", help=RUN_MODEL_HELP)
@click.option("--device", default="auto", show_default=True, help="Of the model.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.option("--csv", "as_csv", is_flag=True, help="CSV with a head.")
@click.option("--plain", is_flag=True, help="Only the paths, a line each.")
def search(*, as_json: bool, as_csv: bool, plain: bool, **options: Any) -> None:
    """Find the rows of OUT, as `clip embed` wrote it, that are nearest to texts, pictures or a vector.

    Each hit is an id, a path and a score, the cosine to the query. The search is exact. Exit code 0: done, whether
    there are hits or not; 1: the search failed; 2: it did not begin.
    """
    if as_json + as_csv + plain > 1:
        raise click.UsageError("found several of --json, --csv and --plain, expected one. Pass one.")
    job = SearchJob(**options)
    with undisturbed():
        from clip import search as searching

    report = searching.search(job, say)
    form = _ndjson if as_json else _csv if as_csv else _plain if plain else _table
    click.echo(form(report.hits), nl=False)
    if len(report.hits) < job.k:
        limits = {"min_score": "--min-score", "where": "--where"}
        asked = " and ".join(flag for name, flag in limits.items() if getattr(job, name) is not None)
        say(f"{len(report.hits):,} hits of {job.k:,} asked for: {report.rows:,} rows{asked and f', fewer by {asked}'}")
    if job.contact_sheet is not None:
        unread = f", {report.unreadable:,} of them cannot be read any more" if report.unreadable else ""
        say(f"{job.contact_sheet}: {len(report.hits):,} hits{unread}")


def _table(hits: tuple[Hit, ...]) -> str:
    rows = [("score", "id", "path"), *((f"{hit.score:.4f}", _shown(hit.id), _shown(hit.path)) for hit in hits)]
    width = min(WIDEST_ID, max(len(own_id) for _, own_id, _ in rows))
    return "".join(f"{score:<9}{own_id:<{width}}  {path}\n" for score, own_id, path in rows)


def _shown(text: str) -> str:
    """A name that does nothing to a terminal."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def _ndjson(hits: tuple[Hit, ...]) -> str:
    return "".join(json.dumps(asdict(hit)) + "\n" for hit in hits)


def _csv(hits: tuple[Hit, ...]) -> str:
    lines = io.StringIO(newline="")
    csv.writer(lines, lineterminator="\n").writerows([("id", "path", "score"), *(asdict(h).values() for h in hits)])
    return lines.getvalue()


def _plain(hits: tuple[Hit, ...]) -> str:
    return "".join(f"{hit.path}\n" for hit in hits)


@click.command()
@click.argument("output", metavar="OUT")
@click.option("--json", "as_json", is_flag=True, help="The report as one JSON object.")
def index(*, as_json: bool, **options: Any) -> None:
    """Make the index that `clip search` uses, OUT/_index/exact.index, unless one stands that is whole and up to date.

    A search makes it too where there is none. Exit code 0: it stands; 1: it cannot be made.
    """
    job = IndexJob(**options)
    with undisturbed():
        from clip import search as searching

    report = searching.index(job)
    if as_json:
        click.echo(json.dumps(asdict(report), default=str))
    what = f"made in {report.seconds:.1f} s" if report.made else "whole and up to date"
    say(f"{report.path}: {report.rows:,} rows, {report.size_bytes / 1e6:,.1f} MB, {what}")


@click.command()
@click.argument("source", metavar="OUT|PICTURES")
@click.option("--labels", metavar="FILE|A,B", required=True, help=LABELS_HELP)
@click.option("--template", metavar="TEXT", multiple=True, help=TEMPLATE_HELP)
@click.option("--templates", metavar="SET", help=SET_HELP)
@click.option("-k", metavar="N", type=int, default=ClassifyJob.k, show_default=True, help="Labels to tell of each.")
@click.option("--truth", metavar="COLUMN", help=TRUTH_HELP)
@click.option("-m", "--model", metavar="MODEL", help=CLASSIFY_MODEL_HELP)
@click.option("--untrained", metavar="SEED", type=int, help="Of pictures: draw the named model's weights at random.")
@click.option("--device", default="auto", show_default=True, help="Of the model.")
@click.option("--json", "as_json", is_flag=True, help="The summary on stderr as one JSON object.")
def classify(*, as_json: bool, **options: Any) -> int:
    """Tell which of some labels pictures show, with probabilities, as NDJSON.

    The vectors of OUT, as `clip embed` wrote it, are used; PICTURES, anything that `clip embed` takes, are embedded
    first. Each picture is a line: id, path, top (label and probability, the most probable first), truth where it is
    asked for; or, where it cannot be read, id, path, stage, error, message. Exit code 0: all were classified; 3: some
    could not be read; 1: the run failed; 2: it did not begin.
    """
    job = ClassifyJob(**options)
    with undisturbed():
        from clip import zero_shot

    if job.untrained is not None:
        model = job.model or EmbedJob.model
        say(f"{model} is untrained (random weights of seed {job.untrained}): probabilities mean nothing yet")
    reporter = Reporter()

    def tell(row: Classified) -> None:
        reporter.close()  # all is embedded by now: its bar gives way to the rows
        click.echo(json.dumps(_row(row)))

    try:
        report = zero_shot.classify(job, tell, reporter.update)
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
            lines.append(f"of {report.classified:,}, {report.judged:,} have a truth that is a label; others: {some}")
        if report.accuracy is not None:
            lines += [*_confusion(report), f"right {report.right:,} of {report.judged:,}: {report.accuracy:.2%}"]
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
