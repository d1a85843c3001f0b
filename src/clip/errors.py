"""Every exception this package raises. Knows nothing about pictures, networks or files.

    ClipError
    ├── InputError (ValueError)             an argument or a source that cannot be used
    ├── InputTypeError (TypeError)          an argument of a type we do not take
    ├── UnknownModelError (RuntimeError)    neither a released name nor a file
    ├── WeightsMissingError (RuntimeError)  a released name whose file is not on this machine
    ├── DownloadError (RuntimeError)        a file that no server gave, or that the disk does not take
    ├── CheckpointError (RuntimeError)      a weights file that is not a CLIP
    │   ├── CheckpointKeyError (KeyError)   ... because an entry is missing
    │   └── UnsafeCheckpointError           ... because it carries more than tensors and plain values
    ├── TextTooLongError (RuntimeError)     a text of more tokens than the model reads
    ├── ImageError (ValueError)             a picture that cannot become pixels
    ├── DeviceError (RuntimeError)          a device or precision this machine does not have
    ├── TooManyFailuresError (RuntimeError) more pictures failed than the job allows
    ├── MissingExtraError (ImportError)     a package that an extra brings, and that is not installed
    └── StoreError (RuntimeError)           an output folder that cannot be written
        ├── StoreMismatchError              ... because something else already stands there
        └── StoreBusyError                  ... because another job is at work there

The builtin in brackets is a second parent: where OpenAI's code raised it, `except RuntimeError` keeps working.
Messages read `<which item>: <what was found>, expected <what>. <The one thing to do.>`
"""

from __future__ import annotations

__all__ = [
    "CheckpointError",
    "CheckpointKeyError",
    "ClipError",
    "DeviceError",
    "DownloadError",
    "ImageError",
    "InputError",
    "InputTypeError",
    "MissingExtraError",
    "StoreBusyError",
    "StoreError",
    "StoreMismatchError",
    "TextTooLongError",
    "TooManyFailuresError",
    "UnknownModelError",
    "UnsafeCheckpointError",
    "WeightsMissingError",
]


class ClipError(Exception):
    """Parent of every error of this package."""


class InputError(ClipError, ValueError):
    """An argument or a source that cannot be used."""


class InputTypeError(ClipError, TypeError):
    """An argument of a type this function does not take."""


class UnknownModelError(ClipError, RuntimeError):
    """A model name that is neither a released name nor a file."""


class WeightsMissingError(ClipError, RuntimeError):
    """A released model whose weights are not on this machine."""


class DownloadError(ClipError, RuntimeError):
    """A file that no server gave, or that the disk does not take."""


class CheckpointError(ClipError, RuntimeError):
    """A weights file that is damaged, or that is not a CLIP."""


class CheckpointKeyError(CheckpointError, KeyError):
    """A state dict that lacks an entry the architecture is read from."""

    __str__ = Exception.__str__  # KeyError would show the repr of the message


class UnsafeCheckpointError(CheckpointError):
    """A weights file that carries more than tensors and plain values."""


class TextTooLongError(ClipError, RuntimeError):
    """A text of more tokens than the model reads."""


class ImageError(ClipError, ValueError):
    """A picture that cannot become pixels."""


class DeviceError(ClipError, RuntimeError):
    """A device that this machine does not have."""


class TooManyFailuresError(ClipError, RuntimeError):
    """More pictures failed than a job allows."""


class MissingExtraError(ClipError, ImportError):
    """A package that an extra brings, and that is not installed."""


class StoreError(ClipError, RuntimeError):
    """An output folder that cannot be read or written."""


class StoreBusyError(StoreError):
    """An output folder in which another job is at work."""


class StoreMismatchError(StoreError):
    """An output folder that already holds something else."""


pass


MAX_SHOWN = 80  # characters of a name that an error repeats


def shown(name: str) -> str:
    """A name from a file as an error repeats it: one line, and not too long a one."""
    return repr(name if len(name) <= MAX_SHOWN else name[:MAX_SHOWN] + "...")
