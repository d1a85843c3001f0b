"""Run the command as the shell does, from its first line to its last, with streams that are closed or broken."""

import os
import signal
import sys
from typing import Any

import pyarrow.dataset  # noqa: F401  what commands import at their first use

from clip import __main__ as command
from clip.batch import embed as _  # noqa: F401
from clip.cli import main as cli
from clip.retrieval import search as _search  # noqa: F401
from clip.store import export as _export  # noqa: F401
from kit.forks import serve

STREAMS = ("stdin", "stdout", "stderr")


def work(arguments: list[str], closed: list[int], gone: list[int], late: int = 0) -> Any:
    """Run it; `late` is a signal that comes when all is done. Does not return."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    for descriptor in gone:
        reader, writer = os.pipe()
        os.dup2(writer, descriptor)
        os.close(reader)
        os.close(writer)
    for descriptor in closed:
        os.close(descriptor)
        setattr(sys, STREAMS[descriptor], None)  # as the interpreter starts
    if late:
        finish(late)
    sys.argv = ["clip", *arguments]
    command.run()


def finish(number: int) -> None:
    main = cli.main

    def late_main() -> Any:
        try:
            main()
        finally:
            os.kill(os.getpid(), number)

    cli.main = late_main


if __name__ == "__main__":
    serve(work)
