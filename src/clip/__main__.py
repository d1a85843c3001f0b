"""The command's first and last line: `clip`, and `python -m clip`.

One rule holds from here to the end: Ctrl-C and SIGTERM end the command with its own code, also during its imports and
after its summary; a stream that is closed, or whose reader is gone, is no error; and no library has a say in how the
process ends, as the threads of some abort it.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from types import FrameType

EXIT_FAILED, EXIT_SIGNAL = 1, 128  # of cli/exit_codes.py and cli/signals.py, which are not imported yet


class _Output(io.FileIO):
    """A standard stream; what is written when its reader is gone is dropped, as the work may have more to do."""

    def write(self, data: Any, /) -> int:
        """Write bytes, or drop them."""
        try:
            return super().write(data) or 0
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())  # for what libraries write there too
            os.close(nowhere)
            return memoryview(data).nbytes


def run() -> NoReturn:
    """Run the command line, and end the process with its code."""
    code: object = EXIT_FAILED
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) != signal.SIG_IGN:  # as of a job in the background
                signal.signal(number, _end_at_once)
        _open_streams()
        from .cli.main import main

        main()
    except SystemExit as end:
        code = end.code
    except BaseException as exc:  # noqa: BLE001  the outermost frame: a defect, shown as the interpreter does
        sys.excepthook(type(exc), exc, exc.__traceback__)
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:
                code = code or EXIT_FAILED
        os._exit(code if isinstance(code, int) else EXIT_FAILED)


def _end_at_once(number: int, _frame: FrameType | None) -> NoReturn:
    os._exit(EXIT_SIGNAL + number)


def _open_streams() -> None:
    """Open the standard streams that are closed on nothing, before a file of ours gets the number of one."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
        stream = getattr(sys, name)
        if name == "stdin":
            sys.stdin = stream or open(descriptor, closefd=False)  # noqa: SIM115
            continue
        raw = io.BufferedWriter(_Output(descriptor, "w", closefd=False))
        encoding, errors = (stream.encoding, stream.errors) if stream else ("utf-8", "backslashreplace")
        setattr(sys, name, io.TextIOWrapper(raw, encoding, errors, line_buffering=True))


if __name__ == "__main__":
    run()
