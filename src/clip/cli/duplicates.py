"""The command `clip duplicates`: which images of an output are there several times, and which of each to keep."""

from __future__ import annotations

import csv
import html
import sys
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..atomic_files import atomic_write, translate_os_errors
from ..jobs.duplicates import DuplicateGroup, DuplicatesJob, DuplicatesReport
from ..records import shorten
from .counter import Counter
from .flags import GroupedCommand, job_option
from .json_lines import to_json
from .progress import escape, say
from .search import FETCH_HELP, ROOT_HELP

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import BinaryIO

COLUMNS = ("group", "keep", "like", "cosine", "id", "path", "width", "height", "size_bytes")
JSON_HELP = "Write one JSON object per group, then the report as the last."
CSV_HELP = "Write CSV with a header, a line per image."
HTML_HELP = "Also write a page that shows the groups."
NOT_KEPT_HELP = "Write only the paths of files that are not to be kept, one per line."
PRINT0_HELP = "End each path by a zero byte, for xargs -0, instead of a line feed."
HEAD = (
    '<!doctype html><meta charset="utf-8"><title>Duplicates</title><style>body{font:14px sans-serif;margin:2em}'
    "section{border-top:1px solid #ccc;padding:1em 0;display:flex;flex-wrap:wrap;gap:1em}figure{margin:0;width:220px}"
    "img{max-width:220px;max-height:220px}figcaption{overflow-wrap:anywhere}"
    ".keep figcaption{font-weight:bold}</style>\n"
)


EXAMPLES = (
    "clip duplicates out/",
    "clip duplicates out/ --level same --csv > same.csv",
    "clip duplicates out/ --not-kept --print0 | xargs -0 ls -l",
)


@click.command(cls=GroupedCommand, short_help="Find images that are there several times.", examples=EXAMPLES)
@click.argument("output", metavar="OUT")
@job_option(DuplicatesJob, "level", "--level")
@job_option(DuplicatesJob, "min_cosine", "--min-cosine", metavar="C")
@click.option("--json", "as_json", is_flag=True, help=JSON_HELP)
@click.option("--csv", "as_csv", is_flag=True, help=CSV_HELP)
@click.option("--html", "page", metavar="FILE.html", help=HTML_HELP)
@click.option("--not-kept", is_flag=True, help=NOT_KEPT_HELP)
@click.option("--print0", is_flag=True, help=PRINT0_HELP)
@click.option("--root", metavar="DIR", help=ROOT_HELP)
@click.option("--fetch", is_flag=True, help=FETCH_HELP.replace("contact sheet", "output"))
def duplicates(
    *, as_json: bool, as_csv: bool, page: str | None, not_kept: bool, print0: bool, output: str, **options: Any
) -> None:
    """Find the images of OUT that are there several times. Nothing is ever removed.

    OUT is a folder that `clip embed` wrote, or a folder of images that `clip find` has searched. The vectors propose
    pairs; the files and their pixels decide, but at level similar. Of each group one image is to be kept: that of the
    most pixels, then of the most bytes, then the oldest, then the first by its id. Exit code 0: done, with or without
    duplicates; 1: it failed; 2: it did not begin.
    """
    if as_json + as_csv + not_kept > 1:
        raise click.UsageError("found several of --json, --csv and --not-kept, expected one. Leave the others out.")
    if print0 and not not_kept:
        raise click.UsageError("--print0 is of --not-kept. Pass both, or neither.")
    from .outputs import choose_output

    job = DuplicatesJob(output=choose_output(output), **options)
    if not_kept and job.level == "similar":
        raise click.UsageError("--not-kept is of images whose pixels were compared. Leave out --level similar.")
    from ..retrieval.duplicates import find_duplicates

    left_out = 0
    write = _choose_format(as_json=as_json, as_csv=as_csv, end=("\0" if print0 else "\n") if not_kept else None)
    with ExitStack() as files:
        file: BinaryIO | None = None
        if page is not None:
            files.enter_context(translate_os_errors(Path(page)))
            file = files.enter_context(atomic_write(Path(page)))
            file.write(HEAD.encode())

        def each(group: DuplicateGroup) -> None:
            nonlocal left_out
            left_out += sum(not image.removable for image in group.images if not image.keep)
            write(group)
            if file is not None:
                file.write(_format_section(group).encode())

        counter = Counter()
        files.callback(counter.close)
        report = find_duplicates(job, each, say, counter.update)
    if as_json:
        click.echo(to_json({name: value for name, value in asdict(report).items() if name != "groups"}))
    say(describe(report, job))
    if not_kept and left_out:
        say(f"{left_out:,} are not listed: members of archives, frames, names of a kept file, or files that are gone")


def describe(report: DuplicatesReport, job: DuplicatesJob) -> str:
    """Return the result in words."""
    found = f"{_count(report.duplicates, 'duplicate')} in {_count(report.group_count, 'group')}"
    found += f" of {_count(report.rows, 'image')}"
    share = f"cosine {report.min_cosine:g}, which {report.percentile:.3f} % of all pairs are below"
    proposed = f"{_count(report.proposed, 'pair')} of at least {share}"
    more = f"; {report.unreadable:,} images cannot be read any more" if report.unreadable else ""
    more += f"; {report.crowded:,} images have more neighbours than were compared" if report.crowded else ""
    return f"{found} ({job.level}); {proposed}{more}; {report.seconds:.1f} s"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _choose_format(*, as_json: bool, as_csv: bool, end: str | None) -> Callable[[DuplicateGroup], None]:
    if as_json:
        return lambda group: click.echo(to_json(_shorten(group)))
    if end is not None:
        return partial(_write_paths, end=end)
    if as_csv:
        lines = csv.writer(sys.stdout, lineterminator="\n")
        lines.writerow(COLUMNS)
        return partial(_write_lines, lines)
    return lambda group: click.echo(_format_group(group))


def _shorten(group: DuplicateGroup) -> dict[str, Any]:
    record = asdict(group)
    return record | {"images": [image | {"path": shorten(image["path"])} for image in record["images"]]}


def _write_paths(group: DuplicateGroup, end: str) -> None:
    for image in group.images:
        if image.removable:
            click.echo(image.path + end, nl=False)


def _write_lines(lines: Any, group: DuplicateGroup) -> None:
    for image in _shorten(group)["images"]:
        lines.writerow([group.number, *(int(image[name]) if name == "keep" else image[name] for name in COLUMNS[1:])])


def _format_group(group: DuplicateGroup) -> str:
    lines = [f"group {group.number:,}: {len(group.images):,} images"]
    for image in group.images:
        what = "keep" if image.keep else image.like
        size = f"{image.width} x {image.height}"
        path = escape(shorten(image.path))
        lines.append(f"  {what:<8}{image.cosine:.4f}  {size:<12}{image.size_bytes:>12,}  {path}")
    return "\n".join(lines)


def _format_section(group: DuplicateGroup) -> str:
    figures: list[str] = []
    for image in group.images:
        source = image.path if "://" in image.path else Path(image.path).absolute().as_uri()
        what = "keep" if image.keep else f"{image.like} {image.cosine:.4f}"
        caption = f"{what}, {image.width} x {image.height}, {image.size_bytes:,} bytes<br>{html.escape(image.path)}"
        figures.append(
            f'<figure{" class=keep" if image.keep else ""}><img loading="lazy" src="{html.escape(source)}" alt="">'
            f"<figcaption>{caption}</figcaption></figure>"
        )
    return f"<section>{''.join(figures)}</section>\n"
