"""The command `clip demo`: the other commands, on images drawn for it. Knows nothing about vectors."""

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
from .signals import undisturbed

if TYPE_CHECKING:
    from ..demo.folder import Drawing

HITS = 5
LINES_SHOWN = 3  # of a line for each image
CLOSING = """
Your own photos, with the model that knows photos (ViT-B/32, 354 MB, fetched once):

  $ clip embed photos/ -o vectors/ -m ViT-B/32
  $ clip search vectors/ -t "a red boat" --contact-sheet boats.png
  $ clip classify vectors/ --labels boat,house,dog

What the sketch model cannot do: photographs, faces, writing, or anything but {shapes}
in {colours}, one to four alike or two in a relation.
It is for trying things out, for tests, and for machines without a network. The images and vectors stay in {output}.
"""


@click.command()
@click.option("-o", "--output", metavar="OUT", default=DemoJob.output, show_default=True, help="Folder to write.")
@click.option("--scenes", metavar="N", type=int, default=DemoJob.scenes, show_default=True, help="Images to draw.")
@click.option("--seed", metavar="N", type=int, help="Of what is drawn.  [default: other scenes each time]")
@click.pass_context
def demo(context: click.Context, **options: Any) -> None:
    """Draw images, embed them, search and classify them with the small model that comes along; no network.

    OUT gets scenes/, scenes.csv with what each image shows, vectors/, and hits.png. Takes some ten seconds.
    """
    job = DemoJob(**options)
    with undisturbed():
        from ..demo.folder import SHEET, VECTORS, draw_folder
        from ..demo.scenes import COLOURS, SHAPES

    listed, drawn = draw_folder(job)
    click.echo(f"drew {len(drawn)} images: {listed.parent / 'scenes'}, and what they show: {listed}")
    vectors, sheet = str(listed.with_name(VECTORS)), str(listed.with_name(SHEET))
    run = _Runner(context.find_root().command)
    root, keep = ("--root", str(listed.parent)), ("--keep", "caption,shape,colour")
    run("embed", str(listed), *root, "-o", vectors, "-m", "sketch", *keep, "--overwrite")
    for number, one in enumerate(_asked_for(drawn, Random(job.seed))):
        click.echo()
        with_sheet = ("--contact-sheet", sheet) if number == 0 else ()
        run("search", vectors, "-t", one.caption, "-n", str(HITS), *with_sheet)
    click.echo()
    run("classify", vectors, "--labels", ",".join(SHAPES), "-k", "1", "--truth", "shape", lines=LINES_SHOWN)
    click.echo()
    template = ("--template", "a photo of a {} shape")
    run(
        "classify", vectors, "--labels", ",".join(COLOURS), *template, "-k", "1", "--truth", "colour", lines=LINES_SHOWN
    )
    told = {"shapes": _enumerated(SHAPES), "colours": _enumerated(COLOURS), "output": listed.parent}
    click.echo(CLOSING.format(**told))


def _asked_for(drawn: list[Drawing], rng: Random) -> list[Drawing]:
    """Of each kind of scene one."""
    kinds = [
        [one for one in drawn if one.scene.relation == "left of"],
        [one for one in drawn if one.scene.relation == "inside"],
        [one for one in drawn if one.scene.count > 1],
    ]
    return [rng.choice(some) for some in kinds if some]


def _enumerated(words: tuple[str, ...]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}"


class _Runner:
    """Runs commands as a user would, and shows what was asked."""

    def __init__(self, group: click.Command) -> None:
        self._group = group

    def __call__(self, *arguments: str, lines: int | None = None) -> None:
        """Run one; with `lines` show only the first so many of what goes to stdout."""
        click.echo(f"$ clip {shlex.join(arguments)}")
        if lines is None:
            self._run(arguments)
            return
        first = _FirstLines(sys.stdout, lines)
        with contextlib.redirect_stdout(first):
            self._run(arguments)
        click.echo(f"... and {first.hidden:,} more lines, an image each")

    def _run(self, arguments: tuple[str, ...]) -> None:
        code = self._group.main(list(arguments), prog_name="clip", standalone_mode=False)
        if code:
            raise Exit(code)


class _FirstLines(io.StringIO):
    """Hands on what is written, but only so many lines of it."""

    def __init__(self, to: TextIO, lines: int) -> None:
        super().__init__()
        self._to = to
        self._left = lines
        self.hidden = 0

    def write(self, text: str) -> int:
        written = super().write(text)  # refuses bytes, by which click tells what kind of file it has
        for line in text.splitlines(keepends=True):
            if self._left > 0:
                self._to.write(line)
                self._left -= 1
            else:
                self.hidden += 1
        return written
