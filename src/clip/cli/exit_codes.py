"""The exit codes of the command, and the errors that are refusals: found before any work begins."""

from __future__ import annotations

from ..errors import (
    ImageError,
    InputError,
    InputTypeError,
    StoreBusyError,
    StoreMismatchError,
    TextTooLongError,
    UnknownModelError,
)

EXIT_FAILED, EXIT_REFUSED, EXIT_WITH_FAILURES = 1, 2, 3
REFUSALS = (
    ImageError,  # of a query; every other bad image is a failure row
    InputError,
    InputTypeError,
    StoreBusyError,
    StoreMismatchError,
    TextTooLongError,
    UnknownModelError,
)
