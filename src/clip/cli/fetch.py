"""The command `clip fetch`: fetch weights into the cache, or check them."""

from __future__ import annotations

from typing import Any

import click

from ..jobs.models import FetchJob
from .flags import GroupedCommand

CHECK_HELP = "Hash the cached files again instead of fetching; without a NAME, all of them."
ARCHITECTURE_HELP = "With --to: the network of weights that do not show theirs, as of embed."
TO_HELP = "Also write the weights of the one model to this file, with OpenAI's names."
EXAMPLES = ("clip fetch ViT-B/32", "clip fetch --check")


@click.command(cls=GroupedCommand, short_help="Fetch the weights of models.", examples=EXAMPLES)
@click.argument("names", nargs=-1, metavar="NAME...")
@click.option("--download-root", metavar="DIR", help="Folder to cache weights in.  [default: ~/.cache/clip]")
@click.option("--check", is_flag=True, help=CHECK_HELP)
@click.option("--to", metavar="FILE.safetensors", help=TO_HELP)
@click.option("--architecture", metavar="NAME|FILE", help=ARCHITECTURE_HELP)
def fetch(**options: Any) -> None:
    """Fetch the weights of models into the cache, and print their paths.

    NAME is a released name, or hf-hub:ORG/NAME[@REVISION].
    """
    job = FetchJob(**options)
    from ..weights import catalog

    for model in catalog.fetch(job):
        click.echo(f"{model.name}\t{model.path}\t{model.sha256 or ''}".rstrip())
    if job.to:
        click.echo(f"{job.names[0]}\t{job.to}")
