"""The command `clip completion`: the script that has a shell complete commands and flags."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from .flags import GroupedCommand

SHELLS = ("bash", "zsh", "fish")
EXAMPLES = ('eval "$(clip completion bash)"     # in ~/.bashrc', "clip completion fish | source     # in config.fish")


@click.command(cls=GroupedCommand, short_help="Print the completion of a shell.", examples=EXAMPLES)
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script that has SHELL complete the commands, flags and choices of clip.

    Exit code 0: printed; 2: no such shell.
    """
    make = get_completion_class(shell)
    if make is None:
        raise click.UsageError(f"found {shell!r}, expected one of {', '.join(SHELLS)}. Name one of them.")
    click.echo(make(context.find_root().command, {}, "clip", "_CLIP_COMPLETE").source())
