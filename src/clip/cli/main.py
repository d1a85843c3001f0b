"""The command `clip`: its subcommands, its exit codes, its error messages.

Data goes to stdout, everything else to stderr. Exit codes: 0 done; 3 done, with failure rows or files of kinds that are
not read; 1 failed; 2 refused before any work; 130 and 143 interrupted, with what was saved kept. A message of the
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
from .completion import completion
from .demo import demo
from .doctor import doctor
from .duplicates import duplicates
from .embed import embed
from .exit_codes import EXIT_FAILED, EXIT_REFUSED, REFUSALS
from .export import export
from .failures import failures
from .fetch import fetch
from .flags import spell_as_flags
from .index import index
from .merge import merge
from .models import models
from .progress import say
from .search import find, search
from .serve import serve
from .signals import InterruptedBySignal, interruptible
from .stats import stats
from .tune import tune
from .vector import vector
from .verify import verify

VERBS = {  # in the order of use
    "Start here": (demo, find, vector),
    "Vectors of your images": (embed, failures, verify, merge),
    "What to do with them": (search, duplicates, stats, classify, export, index, serve),
    "Models and this machine": (models, fetch, tune, doctor, completion),
}


class _Verbs(click.Group):
    """The command, whose help shows its verbs in the order of use."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return the names of the verbs in the order of use."""
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the verbs under headings."""
        width = max(map(len, self.commands))
        for heading, commands in VERBS.items():
            with formatter.section(heading):
                names = ((command.name or "").ljust(width) for command in commands)
                formatter.write_dl(
                    [(name, command.short_help or "") for name, command in zip(names, commands, strict=True)]
                )


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, message="clip-turbo %(version)s")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """Turn images and texts into CLIP vectors: the same vectors as OpenAI's, in bulk.

    `clip find "a red boat" photos/` finds photos by words; `clip COMMAND --help` has examples.
    """


for command in (one for commands in VERBS.values() for one in commands):
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
        say("; ".join((ending, *getattr(exc, "__notes__", ()))))
        code = exc.code
    except (ClipError, OSError) as exc:
        if "--debug" in arguments:
            raise
        message = exc.render(spell_as_flags(_find_command(arguments))) if isinstance(exc, ClipError) else str(exc)
        say("\n".join((f"clip: {message}", *getattr(exc, "__notes__", ()))))
        code = EXIT_REFUSED if isinstance(exc, REFUSALS) else EXIT_FAILED
    sys.exit(code)


def _find_command(arguments: list[str]) -> click.Command | None:
    return next((cli.commands[word] for word in arguments if word in cli.commands), None)
