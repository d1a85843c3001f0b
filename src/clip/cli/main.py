"""The command `clip`: its subcommands, its exit codes, its error messages.

Data goes to stdout, everything else to stderr. Exit codes: 0 done; 3 done, with failure rows; 1 failed; 2 refused
before any work; 130 and 143 interrupted, with finished parts kept. A message of the library names Python arguments;
here they become the flags of the command that ran.
"""

from __future__ import annotations

import logging
import signal
import sys
from typing import TYPE_CHECKING, NoReturn

import click

from .. import __version__
from ..errors import ClipError
from ..parallel import check_resources
from .classify import classify
from .demo import demo
from .embed import embed
from .exit_codes import EXIT_FAILED, EXIT_REFUSED, REFUSALS
from .export import export
from .fetch import fetch
from .index import index
from .models import models
from .progress import say
from .search import search
from .signals import InterruptedBySignal, interruptible
from .tune import tune
from .verify import verify

if TYPE_CHECKING:
    from collections.abc import Callable

QUOTES = "\"'"


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, message="clip-turbo %(version)s")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """Turn images and texts into CLIP vectors: the same vectors as OpenAI's, in bulk."""


for command in (embed, verify, export, search, index, classify, tune, models, fetch, demo):
    cli.add_command(command)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and exit with its code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    logging.getLogger("PIL").addHandler(logging.NullHandler())  # keeps its warnings off stderr
    try:
        with interruptible():
            check_resources()
            code = cli.main(arguments, prog_name="clip", standalone_mode=False) or 0
    except click.ClickException as exc:
        exc.show()
        code = exc.exit_code
    except InterruptedBySignal as exc:
        ending = "interrupted" if exc.number == signal.SIGINT else "terminated"
        say(f"{ending}; finished parts are kept")
        code = exc.code
    except (ClipError, OSError) as exc:
        if "--debug" in arguments:
            raise
        message = exc.render(spell_as_flags(arguments)) if isinstance(exc, ClipError) else str(exc)
        say(f"clip: {message}")
        code = EXIT_REFUSED if isinstance(exc, REFUSALS) else EXIT_FAILED
    sys.exit(code)


def spell_as_flags(arguments: list[str]) -> Callable[[str, str | None], str]:
    """Return what spells an argument of Python as the flag of the command that ran; other arguments stay as they are.

    `limits.max_bytes` and `max_bytes` become --max-bytes, `overwrite=True` becomes --overwrite, and `long_text="cut"`
    becomes --long-text cut.
    """
    command = next((cli.commands[word] for word in arguments if word in cli.commands), None)
    options = [parameter for parameter in (command.params if command else ()) if isinstance(parameter, click.Option)]
    paths = {option.name or "": max(option.opts, key=len) for option in options}  # columns__text: --text-column
    leaves = {path.rpartition("__")[2]: flag for path, flag in paths.items()}  # text: --text-column
    flags = {flag.strip("-").replace("-", "_"): flag for flag in paths.values()} | leaves | paths

    def spell(name: str, value: str | None) -> str:
        flag = flags.get(name.replace(".", "__")) or flags.get(name.rpartition(".")[2])
        if flag is None or value == "False":  # no flag says that another is left out
            return name if value is None else f"{name}={value}"
        return flag if value in (None, "True") else f"{flag} {value.strip(QUOTES)}"

    return spell
