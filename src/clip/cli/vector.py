"""The command `clip vector`: the vectors of a few images and texts on stdout, or how similar they are."""

from __future__ import annotations

import base64
import io
import os
import sys
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

import click

from ..errors import InputError
from ..jobs.options import ModelOptions
from ..records import STDIN
from .exit_codes import EXIT_WITH_FAILURES
from .flags import GroupedCommand, grouped
from .json_lines import to_json
from .progress import escape, say
from .terminal import cut, make_table

if TYPE_CHECKING:
    import numpy as np

    from ..encoder import Encoder

Format = Literal["json", "base64", "npy"]
EXAMPLES = (
    'clip vector photo.jpg -t "a cat" -t "a dog" --similar',
    'clip vector photo.jpg -t "a cat" | jq -c .vector',
    "curl -s https://example.org/a.jpg | clip vector -i -",
)
TEXT_HELP = "Text to encode. May be repeated."
IMAGE_HELP = "Image file to encode; - is stdin. May be repeated."
FORMAT_HELP = "JSON lines with numbers, JSON lines with base64 of float32, or one .npy array of all."
SIMILAR_HELP = "Print the cosine of each to each instead, and of each image the probabilities of the texts."
RAW_HELP = "Write features as the model gives them, instead of vectors of unit length."
MAX_NAME = 28  # columns of a name in the table
DIGITS = 4  # of a cosine, after the point
WHAT, MODEL, HOW = (partial(grouped, name) for name in ("What to encode", "Model", "How to answer"))


@dataclass(frozen=True)
class _Encoded:
    """An input, and its vector (D,) or the reason why it has none."""

    kind: Literal["image", "text"]
    name: str
    vector: np.ndarray | None
    error: str = ""


@click.command(
    cls=GroupedCommand, short_help="Print the vectors of a few images and texts, or compare them.", examples=EXAMPLES
)
@click.argument("files", metavar="[IMAGE]...", nargs=-1)
@WHAT("-t", "--text", "texts", metavar="TEXT", multiple=True, help=TEXT_HELP)
@WHAT("-i", "--image", "images", metavar="FILE", multiple=True, help=IMAGE_HELP)
@MODEL("-m", "--model", metavar="MODEL", default=ModelOptions.name, show_default=True, help="A model's name or path.")
@MODEL("--device", metavar="DEVICE", default="auto", show_default=True, help="Device of the model.")
@HOW("--format", type=click.Choice(get_args(Format)), default="json", show_default=True, help=FORMAT_HELP)
@HOW("--raw", "--no-normalize", "raw", is_flag=True, help=RAW_HELP)
@HOW("--similar", is_flag=True, help=SIMILAR_HELP)
def vector(
    files: tuple[str, ...],
    *,
    texts: tuple[str, ...],
    images: tuple[str, ...],
    model: str,
    device: str,
    format: Format,
    raw: bool,
    similar: bool,
) -> int:
    """Print the vectors of images and texts, a JSON line for each: kind, input, vector.

    For a folder there is `clip embed`. An image that cannot be read has an error in place of the vector. Exit code 0:
    done; 3: some images could not be read; 1: it failed; 2: it did not begin.
    """
    names = (*files, *images)
    if raw and similar:
        raise click.UsageError("found --raw and --similar, expected one of them. Leave one out.")
    _check(names, texts)
    from ..weights.locate import check_name

    check_name(model)
    from ..encoder import Encoder  # here, because it brings torch, which a refusal can do without

    encoder = Encoder(model, device=device)
    rows = _encode_images(encoder, names, raw=raw)
    vectors = encoder.encode_text(list(texts)).float().cpu().numpy() if raw else encoder.embed_texts(list(texts))
    rows += [_Encoded("text", text, vector) for text, vector in zip(texts, vectors, strict=True)]
    if similar:
        click.echo(_tabulate(rows, encoder.logit_scale), nl=False)
    else:
        _write(rows, format)
    failed = [row for row in rows if row.vector is None]
    for row in failed if similar or format == "npy" else ():
        say(f"failed: {escape(row.name)}: {escape(row.error)}")
    return EXIT_WITH_FAILURES if failed else 0


def _check(names: tuple[str, ...], texts: tuple[str, ...]) -> None:
    """Raise InputError for nothing to encode, and for a file that is not there."""
    if not names and not texts:
        raise InputError("clip vector", "found nothing to encode", "images or texts", 'Pass a file, or -t "a text".')
    if names.count(STDIN) > 1:
        raise InputError("clip vector", "found '-' twice", "stdin to be read once", "Name a file for the other.")
    for name in names:
        if os.path.isdir(name):  # noqa: PTH112
            raise InputError(name, "is a folder", "an image", f"Run: clip embed {name} -o OUT")
        if name != STDIN and not os.path.lexists(name):
            raise InputError(name, "no such file", "an image", f"Check the path; as a text it is -t {name!r}.")


def _encode_images(encoder: Encoder, names: tuple[str, ...], *, raw: bool) -> list[_Encoded]:
    images = [sys.stdin.buffer.read() if name == STDIN else name for name in names]
    vectors, failures = encoder.embed_images(images, normalize=not raw, on_error="none")
    errors = {int(failure.id): failure.message for failure in failures}
    return [
        _Encoded("image", name, None if place in errors else vectors[place], errors.get(place, ""))
        for place, name in enumerate(names)
    ]


def _write(rows: list[_Encoded], format: Format) -> None:
    if format == "npy":
        import numpy as np

        file = io.BytesIO()
        np.save(file, np.stack([row.vector for row in rows if row.vector is not None]))
        sys.stdout.flush()
        sys.stdout.buffer.write(file.getvalue())
        sys.stdout.buffer.flush()
        return
    for row in rows:
        if row.vector is None:
            value: dict[str, Any] = {"error": row.error}
        elif format == "base64":
            value = {"vector": base64.b64encode(row.vector.astype("<f4").tobytes()).decode()}
        else:
            value = {"vector": row.vector.tolist()}
        click.echo(to_json({"kind": row.kind, "input": row.name, **value}))


def _tabulate(rows: list[_Encoded], logit_scale: float) -> str:
    """Return the cosines of all to all, and of several texts their probabilities for each image."""
    import numpy as np

    usable = [(row, row.vector) for row in rows if row.vector is not None]
    if not usable:
        return ""
    names = [cut(escape(row.name), MAX_NAME, keep_end=row.kind == "image") for row, _ in usable]
    vectors = np.stack([vector for _, vector in usable]).astype(np.float64)
    cosines = vectors @ vectors.T  # (N, N)
    cells = [[name, *(f"{cosine:.{DIGITS}f}" for cosine in line)] for name, line in zip(names, cosines, strict=True)]
    table = make_table([["cosine", *names], *cells], right=range(1, len(names) + 1))
    texts = [place for place, (row, _) in enumerate(usable) if row.kind == "text"]
    if len(texts) < 2 or len(texts) == len(usable):
        return table
    logits = logit_scale * cosines[: texts[0], texts]
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares = odds / odds.sum(axis=1, keepdims=True)
    cells = [[name, *(f"{share:.2%}" for share in line)] for name, line in zip(names, shares, strict=False)]
    head = ["probability", *(names[place] for place in texts)]
    return f"{table}\n{make_table([head, *cells], right=range(1, len(head)))}"
