"""The commands `clip search` and `clip find`: find the images that are nearest to a query, and print them.

`find` is for a folder of images, whose output it keeps by itself; `search` for an output that somebody named.
"""

from __future__ import annotations

import difflib
import os
import re
import shlex
from dataclasses import replace
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..jobs.embed import EmbedJob, EmbedReport, Progress
from ..jobs.options import DecodeOptions, ModelOptions, OutputPolicy
from ..jobs.search import SearchJob, Weighted
from ..object_paths import open_place
from ..own_files import is_output
from .failures import list_first
from .flags import ROOT_HELP, GroupedCommand, grouped
from .hits import answer, choose_form
from .progress import Reporter, describe_ignored, say

if TYPE_CHECKING:
    from collections.abc import Callable

TEXT_HELP = (
    "Text to find images of. May be repeated: all texts, images and the vector are averaged. A weight may come first: "
    "2:cat counts double, -1:snow is avoided."
)
IMAGE_HELP = "Image file, or URL, to find similar images to; - is stdin. May be repeated, with weights as of --text."
LIKE_HELP = "Id of a row, as a hit shows it, to find others like it. May be repeated."
VECTOR_HELP = "File with a vector to find, as a JSON list or .npy; - is stdin. Needs no model."
K_HELP = "Number of hits to return, the best first."
NOT_HELP = "Text to avoid: its vector is subtracted. May be repeated."
WHERE_HELP = (
    "Condition on the columns of OUT but the vectors, in SQL: \"width > 1000 AND format = 'JPEG'\". Needs DuckDB."
)
GROUP_HELP = "Of hits that are one image, by their files and pixels as of `clip duplicates`, show the best alone."
PLAIN_HELP = "Write only the paths, one per line; for a member of an archive, the archive's."
PRINT0_HELP = "Write only the paths, as their bytes, each with a NUL after it, for xargs -0."
SHEET_HELP = "Also write the hits, at most 1,000, as one image."
HTML_HELP = "Also write the hits, at most 1,000, as a page with thumbnails, links and names in any script."
OPEN_HELP = "Open the page or the contact sheet that is written, else the best hit, as a double click would."
PREVIEWS_HELP = "Show the hits as pictures where the terminal can (kitty, iTerm2, WezTerm, Ghostty)."
EXPLAIN_HELP = "Say on stderr how the index is searched, and which recall was measured."
FETCH_HELP = "Ask servers for images of the contact sheet and the page that are there."
MODEL_HELP = "Where the run's weights are.  [default: as in the manifest]"
FIND_MODEL_HELP = "A released name, sketch, or the path of weights; each model has vectors of its own."
WHERE_IS_HELP = "Print the folder that holds the vectors, and stop."
NO_UPDATE_HELP = "Search what is indexed already, without a look at the folder."

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".heic", ".tif", ".tiff", ".bmp", ".JPG", ".JPEG", ".PNG")
# A number, a colon, and no further digit: 16:9 and 3:10 to Yuma are texts.
WEIGHT = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)):(?=[^\d\s])(.+)", re.DOTALL)


def _read_weights(_context: click.Context, _option: click.Parameter, values: tuple[str, ...]) -> tuple[Any, ...]:
    """Return texts or images; those with a weight before them as Weighted. A file of the whole name is that file."""
    terms: list[str | Weighted] = []
    for value in values:
        found = None if os.path.isfile(value) else WEIGHT.fullmatch(value)  # noqa: PTH113
        terms.append(value if found is None else Weighted(found[2], float(found[1])))
    return tuple(terms)


QUERY, ANSWER = partial(grouped, "What to find"), partial(grouped, "How to answer")
_QUERY = (
    QUERY("-t", "--text", "texts", metavar="[W:]TEXT", multiple=True, callback=_read_weights, help=TEXT_HELP),
    QUERY("-i", "--image", "images", metavar="[W:]FILE|URL", multiple=True, callback=_read_weights, help=IMAGE_HELP),
    QUERY("--like", metavar="ID", multiple=True, help=LIKE_HELP),
    QUERY("--vector", metavar="FILE", help=VECTOR_HELP),
    QUERY("--not", "negative", metavar="TEXT", multiple=True, help=NOT_HELP),
    QUERY("-n", "k", metavar="N", type=int, default=SearchJob.k, show_default=True, help=K_HELP),
    QUERY("--min-score", metavar="S", type=float, help="Lowest cosine that a hit may have."),
    QUERY("--where", metavar="SQL", help=WHERE_HELP),
    QUERY("--group-duplicates", is_flag=True, help=GROUP_HELP),
)
_ANSWER = (
    ANSWER("--contact-sheet", metavar="FILE.png", help=SHEET_HELP),
    ANSWER("--html", metavar="FILE.html", help=HTML_HELP),
    ANSWER("--open", "opens", is_flag=True, help=OPEN_HELP),
    ANSWER("--previews/--no-previews", default=True, show_default=True, help=PREVIEWS_HELP),
    ANSWER("--json", "as_json", is_flag=True, help="Write one JSON object per hit: id, path, score."),
    ANSWER("--csv", "as_csv", is_flag=True, help="Write CSV with a header: id, path, score."),
    ANSWER("--plain", is_flag=True, help=PLAIN_HELP),
    ANSWER("--print0", is_flag=True, help=PRINT0_HELP),
)
MODEL = partial(grouped, "Model")


def _with(options: tuple[Callable[..., Any], ...]) -> Callable[..., Any]:
    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


@click.command(
    cls=GroupedCommand,
    short_help="Find images in a folder by words, or like another.",
    examples=('clip find "a red boat" photos/', "clip find holiday.jpg photos/ --html alike.html --open"),
)
@click.argument("words", metavar="[TEXT|IMAGE] [FOLDER]", nargs=-1)
@_with(_QUERY)
@_with(_ANSWER)
@MODEL("-m", "--model", metavar="MODEL", default=ModelOptions.name, show_default=True, help=FIND_MODEL_HELP)
@MODEL("--device", metavar="DEVICE", default="auto", show_default=True, help="Device of the model.")
@MODEL("--no-update", is_flag=True, help=NO_UPDATE_HELP)
@MODEL("--where-is", is_flag=True, help=WHERE_IS_HELP)
def find(*, words: tuple[str, ...], **options: Any) -> None:
    """Find the images of FOLDER (default: the current one) that show a text, or are like an image.

    New and changed images are indexed first, those that are gone are dropped; the first time takes a while, later ones
    see only what is new. The vectors are kept in the user's data folder; --where-is says where. Photos that are stored
    turned are looked at upright. Exit code 0: done, with or without hits; 1: it failed; 2: it did not begin.
    """
    folder, texts, images = _sort_words(words)
    options["texts"] += texts
    options["images"] += images
    _find(folder or ".", **options)


@click.command(
    cls=GroupedCommand,
    short_help="Find rows of an output by texts, images or a vector.",
    examples=('clip search out/ "a red boat" --not "a car" -n 5',),
)
@click.argument("output", metavar="OUT...|FOLDER")
@click.argument("words", metavar="[TEXT]...", nargs=-1)
@_with(_QUERY)
@_with(_ANSWER)
@ANSWER("--explain", "explains", is_flag=True, help=EXPLAIN_HELP)
@ANSWER("--root", metavar="DIR", help=ROOT_HELP)
@ANSWER("--fetch", is_flag=True, help=FETCH_HELP)
@MODEL("-m", "--model", metavar="MODEL", help=MODEL_HELP)
@MODEL("--device", metavar="DEVICE", default="auto", show_default=True, help="Device of the model.")
def search(*, output: str, words: tuple[str, ...], **options: Any) -> None:
    """Find the images of OUT that are nearest to texts, images or a vector.

    OUT is a folder that `clip embed` wrote; a FOLDER of images is indexed and searched as by `clip find`. Each hit has
    an id, a path and a score, which is the cosine to the query. Several outputs of the same weights are searched as
    one. The search is exact. Exit code 0: done, with or without hits; 1: the search failed; 2: it did not begin.
    """
    outputs = [output, *takewhile(is_output, words)]
    words = words[len(outputs) - 1 :]
    _check_words(words)
    options["texts"] += words
    if options["root"] is None and _is_folder_of_images(output):
        del options["root"], options["fetch"], options["explains"]
        options["model"] = options["model"] or ModelOptions.name
        _find(output, **options)
        return
    form = choose_form(**{name: options.pop(name) for name in ("as_json", "as_csv", "plain", "print0")})
    shown = {name: options.pop(name) for name in ("previews", "opens", "explains")}
    job = SearchJob(output=output if len(outputs) == 1 else outputs, **options)
    from ..retrieval import search as search_module
    from ..sources.remote.client import is_remote
    from ..store.manifest import MANIFEST, read_manifest
    from .sketch import warn_of_words

    manifest = read_manifest(open_place(output) / MANIFEST)
    warn_of_words(manifest and manifest.model, tuple(job.words))
    if manifest is not None and job.root is None and manifest.base:
        base = manifest.find_base(open_place(output))
        if not (is_remote(base) or os.path.isdir(base)):  # noqa: PTH112
            say(f"{base} is not there any more: name the folder where the images are now with --root DIR")

    answer(job, search_module.search, say, form, **shown)


def _sort_words(words: tuple[str, ...]) -> tuple[str | None, tuple[str, ...], tuple[str, ...]]:
    """Return the folder among the arguments of `find`, the texts and the image files, in whichever order they came."""
    folders = [word for word in words if os.path.isdir(word)]  # noqa: PTH112
    if len(folders) > 1:
        raise click.UsageError(f"found the folders {folders[0]} and {folders[1]}, expected one. Leave the other out.")
    others = [word for word in words if word not in folders]
    images = tuple(word for word in others if os.path.isfile(word))  # noqa: PTH113
    texts = tuple(word for word in others if word not in images)
    _check_words(texts, has_folder=bool(folders))
    return next(iter(folders), None), texts, images


def _check_words(texts: tuple[str, ...], *, has_folder: bool = True) -> None:
    """Refuse paths that are not there, which would be searched as texts, and a text without quotes.

    Raises:  click.UsageError.
    """
    for text in texts:
        if (
            text.startswith(("/", "./", "../", "~"))
            or text.endswith(IMAGE_ENDINGS)
            or (os.sep in text and " " not in text)
        ):
            near = _suggest(text)
            raise click.UsageError(f"found no file or folder {text}. {near or 'Check its name; for a text use -t.'}")
    if len(texts) > 1:
        near = "" if has_folder else _suggest(texts[-1])
        folder = "" if has_folder else ", and no folder of these names"
        several = f"-t {shlex.quote(texts[0])} -t {shlex.quote(texts[1])}"
        advice = f"Put a text of several words in quotes; for several texts: {several}."
        found = " and ".join(map(repr, texts))
        raise click.UsageError(f"found the texts {found}{folder}, expected one text. {near or advice}")


def _suggest(name: str) -> str:
    """Return a question with the name beside a path that is like one that is not there; empty where none is."""
    path = Path(name)
    try:
        names = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return ""
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"Did you mean {shlex.quote(str(path.with_name(near[0])))}?" if near else ""


def _is_folder_of_images(name: str) -> bool:
    """Whether an argument is no output but a folder with images; of any other a search says what it lacks."""
    if not os.path.isdir(name) or is_output(name):  # noqa: PTH112
        return False
    from ..batch.opening import holds_images

    return holds_images(name)


def _find(folder: str, *, model: str, no_update: bool = False, where_is: bool = False, **options: Any) -> None:
    form = choose_form(**{name: options.pop(name) for name in ("as_json", "as_csv", "plain", "print0")})
    shown = {name: options.pop(name) for name in ("previews", "opens")}
    from ..batch.opening import refuse_early
    from ..batch.place import find_place, take_along

    place = find_place(folder, model)
    if where_is:
        click.echo(place)
        return
    query = SearchJob(output=place, **options)
    if not no_update:
        job = EmbedJob(
            source=folder,
            output=place,
            model=ModelOptions(model, device=query.device),
            decode=DecodeOptions(orient="exif"),
            policy=OutputPolicy(update=True),
        )
        take_along(place, folder)
        refuse_early(job)
        _index(job, folder)
    from ..retrieval import search as search_module
    from ..store.reader import Store
    from .sketch import warn_of_photographs, warn_of_words

    warn_of_words(model, tuple(query.words))
    if is_output(str(place)):
        warn_of_photographs(Store(place))
    # Nothing is said of the index, which is made in a moment, and which nobody who searches a folder asked for.
    answer(replace(query, model=model), search_module.search, lambda _: None, form, **shown)


def _index(job: EmbedJob, folder: str) -> None:
    """Bring the output of a folder up to date, and say what changed. Raises: InputError for one without images."""
    from ..batch.finished import find_finished

    report = find_finished(job)
    if report is None:
        from ..batch.folder import embed_folder

        reporter = Reporter("auto", job.kind)
        try:
            report = embed_folder(job, partial(_report_rare, reporter))
        finally:
            reporter.close()
        added = report.read - report.resumed
        if added or report.removed or report.renamed:
            for line in list_first(report.output, report.failed) if report.failed else ():
                say(line)
            say(_describe(report, added))
    if report.failed or report.unread:
        unread = "".join(f", {count:,} {kind} not read" for kind, count in report.unread.items())
        say(f"{report.written:,} images searched, {report.failed:,} failed{unread}: clip failures {folder}")


def _describe(report: EmbedReport, added: int) -> str:
    counts = {"looked at": added, "dropped": report.removed, "renamed": report.renamed}
    done = ", ".join(f"{count:,} {word}" for word, count in counts.items() if count)
    return f"{done} in {report.seconds:.1f} s; {report.written:,} images in all{describe_ignored(report.ignored)}"


def _report_rare(reporter: Reporter, progress: Progress) -> None:
    """Show progress, but not the first entry of a listing, which nobody who searches asked for."""
    if progress.listing is None or not progress.listing.example:
        reporter.update(progress)
