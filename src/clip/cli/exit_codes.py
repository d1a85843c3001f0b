"""The exit codes of the command, and the errors that are refusals: found before any work begins."""

from __future__ import annotations

from .. import errors

EXIT_FAILED, EXIT_REFUSED, EXIT_WITH_FAILURES = 1, 2, 3
REFUSALS = (
    errors.ImageError,  # of a query; every other bad image is a failure row
    errors.InputError,
    errors.InputTypeError,
    errors.ResourceError,
    errors.StoreBusyError,
    errors.StoreMismatchError,
    errors.TextTooLongError,
    errors.UnknownModelError,
)
