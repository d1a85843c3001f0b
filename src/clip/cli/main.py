"""The command `clip`: its subcommands, its exit codes, its error messages.

Data goes to stdout, everything else to stderr. Exit codes: 0 done; 3 done, with failure rows or files of kinds that are
not read; 1 failed; 2 refused before any work; 130 and 143 interrupted, with finished parts kept. A message of the
library names Python arguments; here they become the flags of the command that ran.
"""

from __future__ import annotations

import logging
import signal
import sys
from typing import NoReturn

import click

from .. import __version__
from ..errors import ClipError
from ..parallel import check_resources
from .classify import classify
from .demo import demo
from .duplicates import duplicates
from .embed import embed
from .exit_codes import EXIT_FAILED, EXIT_REFUSED, REFUSALS
from .export import export
from .failures import failures
from .fetch import fetch
from .flags import spell_as_flags
from .index import index
from .models import models
from .progress import say
from .search import search
from .serve import serve
from .signals import InterruptedBySignal, interruptible
from .stats import stats
from .tune import tune
from .verify import verify


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, message="clip-turbo %(version)s")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """Turn images and texts into CLIP vectors: the same vectors as OpenAI's, in bulk."""


for command in (
    embed,
    failures,
    verify,
    export,
    search,
    index,
    duplicates,
    stats,
    classify,
    serve,
    tune,
    models,
    fetch,
    demo,
):
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
        message = exc.render(spell_as_flags(_find_command(arguments))) if isinstance(exc, ClipError) else str(exc)
        say(f"clip: {message}")
        code = EXIT_REFUSED if isinstance(exc, REFUSALS) else EXIT_FAILED
    sys.exit(code)


def _find_command(arguments: list[str]) -> click.Command | None:
    return next((cli.commands[word] for word in arguments if word in cli.commands), None)
