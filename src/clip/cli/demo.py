"""The command `clip demo`: draw images, and run the other commands on them."""

from __future__ import annotations

import contextlib
import io
import shlex
import sys
from random import Random
from typing import TYPE_CHECKING, Any, TextIO

import click
from click.exceptions import Exit

from ..jobs.demo import DemoJob
from .flags import GroupedCommand

if TYPE_CHECKING:
    from ..demo.folder import Drawing

OUTPUT_HELP = "Folder to write; an earlier demo in it is replaced, files of others stop the demo."
HITS = 5
LINES_SHOWN = 3  # of an output that has one line for each image
CLOSING = """
Your own photos, with the model that knows photos (ViT-B/32, 354 MB, fetched once):

  $ clip embed photos/ -o vectors/ -m ViT-B/32
  $ clip search vectors/ -t "a red boat" --contact-sheet boats.png
  $ clip classify vectors/ --labels boat,house,dog

The sketch model cannot do: photographs, faces, writing, or anything but {shapes}
in {colours}, one to four alike or two in a relation.
It is for trials, for tests, and for machines without a network. The images and vectors stay in {output}.
"""
EXAMPLES = ("clip demo",)


@click.command(cls=GroupedCommand, short_help="Draw images, and try the other commands on them.", examples=EXAMPLES)
@click.option("-o", "--output", metavar="OUT", default=DemoJob.output, show_default=True, help=OUTPUT_HELP)
@click.option(
    "--scenes", metavar="N", type=int, default=DemoJob.scenes, show_default=True, help="Images to draw, at least 50."
)
@click.option("--seed", metavar="N", type=int, help="Seed of the scenes.  [default: other scenes each time]")
@click.pass_context
def demo(context: click.Context, **options: Any) -> None:
    """Draw images, then embed, search and classify them with the small model that is included; needs no network.

    Writes into OUT: scenes/ with the images, scenes.csv with a caption of each, vectors/, and hits.png with the hits of
    a search. Takes some ten seconds.
    """
    job = DemoJob(**options)
    from ..demo.folder import SHEET, VECTORS, draw_folder
    from ..demo.scenes import COLOURS, SHAPES

    table, scenes = draw_folder(job)
    click.echo(f"drew {len(scenes)} images: {table.parent / 'scenes'}, with captions: {table}")
    vectors, sheet = str(table.with_name(VECTORS)), str(table.with_name(SHEET))
    run = _Runner(context.find_root().command)
    root, keep = ("--root", str(table.parent)), ("--keep", "caption,shape,colour")
    run("embed", str(table), *root, "-o", vectors, "-m", "sketch", *keep, "--overwrite")
    for number, scene in enumerate(_choose_queries(scenes, Random(job.seed))):
        click.echo()
        with_sheet = ("--contact-sheet", sheet) if number == 0 else ()
        run("search", vectors, "-t", scene.caption, "-n", str(HITS), *with_sheet)
    click.echo()
    run("classify", vectors, "--labels", ",".join(SHAPES), "-k", "1", "--truth", "shape", lines=LINES_SHOWN)
    click.echo()
    template = ("--template", "a photo of a {} shape")
    run(
        "classify", vectors, "--labels", ",".join(COLOURS), *template, "-k", "1", "--truth", "colour", lines=LINES_SHOWN
    )
    shapes, colours = _join_words(SHAPES), _join_words(COLOURS)
    click.echo(CLOSING.format(shapes=shapes, colours=colours, output=table.parent))


def _choose_queries(scenes: list[Drawing], rng: Random) -> list[Drawing]:
    """Return a scene of each kind, whose caption is then searched for."""
    kinds = [
        [drawn for drawn in scenes if drawn.scene.relation == "left of"],
        [drawn for drawn in scenes if drawn.scene.relation == "inside"],
        [drawn for drawn in scenes if drawn.scene.count > 1],
    ]
    return [rng.choice(kind) for kind in kinds if kind]


def _join_words(words: tuple[str, ...]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}"


class _Runner:
    """Runs commands as a user would, and prints each before its output."""

    def __init__(self, group: click.Command) -> None:
        self._group = group

    def __call__(self, *arguments: str, lines: int | None = None) -> None:
        """Run a command; with `lines` print only so many lines of its stdout."""
        click.echo(f"$ clip {shlex.join(arguments)}")
        if lines is None:
            self._run(arguments)
            return
        first = _FirstLines(sys.stdout, lines)
        with contextlib.redirect_stdout(first):
            self._run(arguments)
        click.echo(f"... and {first.hidden:,} more lines, one per image")

    def _run(self, arguments: tuple[str, ...]) -> None:
        code = self._group.main(list(arguments), prog_name="clip", standalone_mode=False)
        if code:
            raise Exit(code)


class _FirstLines(io.StringIO):
    """Passes on the first lines that are written, and counts the others."""

    def __init__(self, to: TextIO, lines: int) -> None:
        super().__init__()
        self._to = to
        self._left = lines
        self.hidden = 0

    def write(self, text: str) -> int:
        written = super().write(text)  # raises for bytes, from which click knows that this is a text file
        for line in text.splitlines(keepends=True):
            if self._left > 0:
                self._to.write(line)
                self._left -= 1
            else:
                self.hidden += 1
        return written
