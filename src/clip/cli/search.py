"""The command `clip search`: find the rows of an output that are nearest to a query, and print them."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, replace
from typing import Any

import click

from ..jobs.search import Hit, SearchJob
from ..records import shorten
from .json_lines import to_json
from .progress import escape, say

MAX_ID_WIDTH = 60  # letters of an id's column in the table

TEXT_HELP = "Text to find images of. May be repeated: all texts, images and the vector are averaged."
IMAGE_HELP = "Image file to find similar images to; - is stdin. May be repeated."
VECTOR_HELP = "File with a vector to find, as a JSON list or .npy; - is stdin. Needs no model."
NOT_HELP = "Text to avoid: its vector is subtracted. May be repeated."
WHERE_HELP = (
    "Condition on the columns of OUT but the vectors, in SQL: \"width > 1000 AND format = 'JPEG'\". Needs DuckDB."
)
PLAIN_HELP = "Write only the paths, one per line; for a member of an archive, the archive's."
SHEET_HELP = "Also write the hits, at most 1,000, as one image."
ROOT_HELP = "Folder where the images are now, if they have moved since.  [default: as in the manifest]"
FETCH_HELP = "Ask servers for images of the contact sheet that are there."
MODEL_HELP = "Where the run's weights are.  [default: as in the manifest]"


@click.command(short_help="Find images by texts, images or a vector.")
@click.argument("output", metavar="OUT")
@click.option("-t", "--text", "texts", metavar="TEXT", multiple=True, help=TEXT_HELP)
@click.option("-i", "--image", "images", metavar="FILE", multiple=True, help=IMAGE_HELP)
@click.option("--vector", metavar="FILE", help=VECTOR_HELP)
@click.option("--not", "negative", metavar="TEXT", multiple=True, help=NOT_HELP)
@click.option(
    "-n", "k", metavar="N", type=int, default=SearchJob.k, show_default=True, help="Number of hits to return."
)
@click.option("--min-score", metavar="S", type=float, help="Lowest cosine that a hit may have.")
@click.option("--where", metavar="SQL", help=WHERE_HELP)
@click.option("--contact-sheet", metavar="FILE.png", help=SHEET_HELP)
@click.option("--root", metavar="DIR", help=ROOT_HELP)
@click.option("--fetch", is_flag=True, help=FETCH_HELP)
@click.option("-m", "--model", metavar="MODEL", help=MODEL_HELP)
@click.option("--device", metavar="DEVICE", default="auto", show_default=True, help="Device of the model.")
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object per hit: id, path, score.")
@click.option("--csv", "as_csv", is_flag=True, help="Write CSV with a header: id, path, score.")
@click.option("--plain", is_flag=True, help=PLAIN_HELP)
def search(*, as_json: bool, as_csv: bool, plain: bool, **options: Any) -> None:
    """Find the images of OUT that are nearest to texts, images or a vector.

    OUT is a folder that `clip embed` wrote. Each hit has an id, a path and a score, which is the cosine to the query.
    The search is exact. Exit code 0: done, with or without hits; 1: the search failed; 2: it did not begin.
    """
    if as_json + as_csv + plain > 1:
        raise click.UsageError("found several of --json, --csv and --plain, expected one. Leave the others out.")
    job = SearchJob(**options)
    from ..retrieval import search as search_module

    report = search_module.search(job, say)
    render = _format_ndjson if as_json else _format_csv if as_csv else _format_plain if plain else _format_table
    hits = tuple(replace(hit, path=shorten(hit.path)) for hit in report.hits)
    click.echo(render(hits), nl=False)
    if len(report.hits) < job.k:
        filters = {"min_score": "--min-score", "where": "--where"}
        flags = " and ".join(flag for name, flag in filters.items() if getattr(job, name) is not None)
        say(f"{len(report.hits):,} hits of {job.k:,} asked for: {report.rows:,} rows{flags and f', fewer by {flags}'}")
    if job.contact_sheet is not None:
        unread = f", {report.unreadable:,} of them cannot be read any more" if report.unreadable else ""
        say(f"{job.contact_sheet}: {len(report.hits):,} hits{unread}")


def _format_table(hits: tuple[Hit, ...]) -> str:
    rows = [("score", "id", "path"), *((f"{hit.score:.4f}", escape(hit.id), escape(hit.path)) for hit in hits)]
    width = min(MAX_ID_WIDTH, max(len(own_id) for _, own_id, _ in rows))
    return "".join(f"{score:<9}{own_id:<{width}}  {path}\n" for score, own_id, path in rows)


def _format_ndjson(hits: tuple[Hit, ...]) -> str:
    return "".join(to_json(asdict(hit)) + "\n" for hit in hits)


def _format_csv(hits: tuple[Hit, ...]) -> str:
    lines = io.StringIO(newline="")
    csv.writer(lines, lineterminator="\n").writerows([("id", "path", "score"), *(asdict(h).values() for h in hits)])
    return lines.getvalue()


def _format_plain(hits: tuple[Hit, ...]) -> str:
    return "".join(f"{hit.path}\n" for hit in hits)
