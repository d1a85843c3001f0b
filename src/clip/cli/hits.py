"""Write the hits of a search: as a table with links, and pictures where the terminal has them; or for programs."""

from __future__ import annotations

import csv
import io
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal

import click

from ..records import decode_path, link_to, shorten
from .json_lines import to_json
from .progress import escape, say
from .terminal import encode_picture, find_protocol, has_links, is_terminal, link, make_table

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..jobs.search import Hit, SearchJob, SearchReport

Form = Literal["table", "json", "csv", "plain", "print0"]
MAX_LETTERS = 20  # of those without a font, in a message
MAX_PREVIEWS = 20  # hits that are shown as pictures in a terminal


def choose_form(*, as_json: bool, as_csv: bool, plain: bool, print0: bool) -> Form:
    """Return the form of the answer. Raises: click.UsageError for several."""
    forms: dict[Form, bool] = {"json": as_json, "csv": as_csv, "plain": plain, "print0": print0}
    chosen: list[Form] = [form for form, wanted in forms.items() if wanted]
    if len(chosen) > 1:
        flags = "--json, --csv, --plain and --print0"
        raise click.UsageError(f"found several of {flags}, expected one. Leave the others out.")
    return chosen[0] if chosen else "table"


def answer(
    job: SearchJob,
    search: Callable[[SearchJob, Callable[[str], None]], SearchReport],
    tell: Callable[[str], None],
    form: Form,
    *,
    previews: bool,
    opens: bool,
    explains: bool = False,
) -> None:
    """Search, and write the hits: pictures first, where the terminal shows them."""
    protocol = find_protocol() if form == "table" and previews and job.contact_sheet is None else None
    with TemporaryDirectory() as folder:
        sheet = Path(folder, "hits.png")
        report = search(replace(job, contact_sheet=sheet, k=min(job.k, MAX_PREVIEWS)) if protocol else job, tell)
        if protocol and report.hits:
            click.echo(encode_picture(sheet.read_bytes(), protocol), nl=False)
    write_hits(report.hits, form)
    if len(report.hits) < job.k:
        filters = {"min_score": "--min-score", "where": "--where"}
        flags = " and ".join(flag for name, flag in filters.items() if getattr(job, name) is not None)
        if form != "table" or flags or not report.hits:
            fewer = flags and f", fewer by {flags}"
            say(f"{len(report.hits):,} hits of {job.k:,} asked for: {report.rows:,} rows{fewer}")
    for written in (job.contact_sheet, job.html):
        if written is not None:
            unread = f", {report.unreadable:,} of them cannot be read any more" if report.unreadable else ""
            say(f"{written}: {len(report.hits):,} hits{unread}")
    if report.missing_letters and job.contact_sheet is not None:
        letters = report.missing_letters[:MAX_LETTERS]
        advice = "" if job.html else "; --html FILE.html shows every script"
        say(f"{job.contact_sheet}: no font of this machine has {letters}{advice}")
    for line in report.how if explains else ():
        say(line)
    if opens:
        _open_first(job, report)


def write_hits(hits: tuple[Hit, ...], form: Form) -> None:
    """Write hits to stdout."""
    if form == "print0":
        stdout = sys.stdout
        stdout.flush()
        stdout.buffer.write(b"".join(decode_path(hit.path) + b"\0" for hit in hits))
        stdout.buffer.flush()
        return
    render = {"json": _format_ndjson, "csv": _format_csv, "plain": _format_plain}
    table = _format_for_terminal if is_terminal(sys.stdout) else _format_table
    shown = tuple(replace(hit, path=shorten(hit.path)) for hit in hits)
    click.echo(render.get(form, table)(shown), nl=False)


def _format_for_terminal(hits: tuple[Hit, ...]) -> str:
    """Return a line for each hit: the score, and the path once."""
    linked = has_links()
    rows = [(f"{hit.score:.4f}", escape(hit.path)) for hit in hits]
    return "".join(
        f"{score}  {link(path, link_to(hit.path)) if linked else path}\n"
        for hit, (score, path) in zip(hits, rows, strict=True)
    )


def _format_table(hits: tuple[Hit, ...]) -> str:
    rows = [("score  ", "id", "path"), *((f"{hit.score:.4f} ", escape(hit.id), escape(hit.path)) for hit in hits)]
    return make_table(rows)


def _format_ndjson(hits: tuple[Hit, ...]) -> str:
    return "".join(to_json(asdict(hit)) + "\n" for hit in hits)


def _format_csv(hits: tuple[Hit, ...]) -> str:
    lines = io.StringIO(newline="")
    csv.writer(lines, lineterminator="\n").writerows([("id", "path", "score"), *(asdict(h).values() for h in hits)])
    return lines.getvalue()


def _format_plain(hits: tuple[Hit, ...]) -> str:
    return "".join(f"{hit.path}\n" for hit in hits)


def _open_first(job: SearchJob, report: SearchReport) -> None:
    """Open the page or the contact sheet that was written, else the best hit, as a double click would."""
    place = job.html or job.contact_sheet or (report.hits[0].path if report.hits else None)
    if place is None:
        return
    name = os.fsdecode(decode_path(str(place)))
    if click.launch(name if os.path.lexists(name) else link_to(str(place))):
        say(f"{place}: this machine has no program that opens it")
