"""What the command's exit codes mean, and which errors are refusals. Knows nothing about commands."""

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
# Errors that are found before any work begins.
REFUSALS = (
    ImageError,  # of a query; of others it is a failure row
    InputError,
    InputTypeError,
    StoreBusyError,
    StoreMismatchError,
    TextTooLongError,
    UnknownModelError,
)
