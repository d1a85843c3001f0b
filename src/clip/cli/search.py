"""The command `clip search`: flags in, hits out. Knows nothing about vectors."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from ..jobs.search import SearchJob
from .progress import say
from .signals import undisturbed

if TYPE_CHECKING:
    from ..jobs.search import Hit

WIDEST_ID = 60  # letters that the table makes room for

TEXT_HELP = "What to look for, in words. May be repeated: all texts, images and the vector are averaged."
IMAGE_HELP = "An image to look for, - for stdin. May be repeated."
VECTOR_HELP = "A vector to look for, as a JSON list or .npy, - for stdin."
NOT_HELP = "What not to look for, in words: its vector is subtracted. May be repeated."
WHERE_HELP = "Only rows for which this is true, as in SQL: \"width > 1000 AND format = 'JPEG'\"."
SHEET_HELP = "Also write an image of the hits."
RUN_MODEL_HELP = "The run's weights.  [default: as in the manifest]"


@click.command()
@click.argument("output", metavar="OUT")
@click.option("-t", "--text", "texts", metavar="TEXT", multiple=True, help=TEXT_HELP)
@click.option("-i", "--image", "images", metavar="FILE", multiple=True, help=IMAGE_HELP)
@click.option("--vector", metavar="FILE", help=VECTOR_HELP)
@click.option("--not", "negative", metavar="TEXT", multiple=True, help=NOT_HELP)
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
    """Find the rows of OUT, as `clip embed` wrote it, that are nearest to texts, images or a vector.

    Each hit is an id, a path and a score, the cosine to the query. The search is exact. Exit code 0: done, whether
    there are hits or not; 1: the search failed; 2: it did not begin.
    """
    if as_json + as_csv + plain > 1:
        raise click.UsageError("found several of --json, --csv and --plain, expected one. Pass one.")
    job = SearchJob(**options)
    with undisturbed():
        from ..retrieval import search as searching

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
