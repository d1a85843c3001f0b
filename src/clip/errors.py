"""Every exception this package raises. Knows nothing about images, networks or files.

    ClipError
    ├── InputError (ValueError)             an argument or a source that cannot be used
    ├── InputTypeError (TypeError)          an argument of a type we do not take
    ├── UnknownModelError (RuntimeError)    neither a released name nor a file
    ├── WeightsMissingError (RuntimeError)  a released name whose file is not on this machine
    ├── DownloadError (RuntimeError)        a file that no server gave, or that the disk does not take
    ├── CheckpointError (RuntimeError)      a weights file that is not a CLIP
    │   ├── CheckpointKeyError (KeyError)   ... because an entry is missing
    │   └── UnsafeCheckpointError           ... because it calls functions
    ├── TextTooLongError (RuntimeError)     a text of more tokens than the model reads
    ├── ImageError (ValueError)             an image that cannot become pixels
    ├── DeviceError (RuntimeError)          a device or precision this machine does not have
    ├── ResourceError (RuntimeError)        threads, processes or memory that the system does not give
    ├── TooManyFailuresError (RuntimeError) more images failed than the job allows
    ├── MissingExtraError (ImportError)     a package that an extra brings, and that is not installed
    ├── ForeignPackageError (ImportError)   files of this package that another distribution has replaced
    └── StoreError (RuntimeError)           an output folder that cannot be written
        ├── StoreMismatchError              ... because it already holds something else
        ├── StoreBusyError                  ... because another job is at work in it
        └── StoreUnreachableError           ... because the server that it is on gives no usable answer

The builtin in brackets is a second parent: where OpenAI's code raised it, `except RuntimeError` keeps working.
Each carries four fields and reads `<item>: <found>, expected <expected>. <remedy>`. Text in backticks is an argument as
Python spells it; the command line writes its flag instead.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "CheckpointError", "CheckpointKeyError", "ClipError", "DeviceError", "DownloadError", "ForeignPackageError",
    "ImageError", "InputError", "InputTypeError", "MissingExtraError", "ResourceError", "StoreBusyError", "StoreError",
    "StoreMismatchError", "StoreUnreachableError", "TextTooLongError", "TooManyFailuresError", "UnknownModelError",
    "UnsafeCheckpointError", "WeightsMissingError",
]  # fmt: skip


_ARGUMENT = re.compile(r"`([a-z_.]+)(?:=([^`]*))?`")


class ClipError(Exception):
    """Parent of every error of this package."""

    item: str
    """Which argument, file, entry or device it is about."""
    found: str
    """What was found."""
    expected: str
    """What was expected instead; empty where a plain sentence says it better."""
    remedy: str
    """The one thing to do, in the imperative."""

    def __init__(self, item: object, found: str = "", expected: str = "", remedy: str = "") -> None:
        self.item, self.found, self.expected, self.remedy = str(item), found, expected, remedy
        super().__init__(self.item, found, expected, remedy)  # which is what a pickle keeps

    def __str__(self) -> str:
        return self.render()

    @property
    def reason(self) -> str:
        """The message without the item, for where that is already named."""
        return self._render_reason(_spell_argument)

    def render(self, spell: Callable[[str, str | None], str] | None = None) -> str:
        """Return the message on one line. `spell(name, value)` writes an argument; by default as Python does."""
        spell = spell or _spell_argument
        whole = _ARGUMENT.fullmatch(self.item)  # a path may have backticks too
        item = spell(*whole.groups()) if whole else self.item
        reason = self._render_reason(spell)
        return f"{item}: {reason}" if reason else item

    def _render_reason(self, spell: Callable[[str, str | None], str]) -> str:
        expected, remedy = (spell_arguments(text, spell) for text in (self.expected, self.remedy))
        clause = f"{self.found}, expected {expected}" if expected else self.found
        return ". ".join(filter(None, (clause, remedy)))

    def about(self, item: object) -> Self:
        """Return the same error about another item."""
        return type(self)(item, self.found, self.expected, self.remedy)


def spell_arguments(text: str, spell: Callable[[str, str | None], str] | None = None) -> str:
    """Return a text with its arguments, which are in backticks, as `spell(name, value)` writes them."""
    return _ARGUMENT.sub(lambda match: (spell or _spell_argument)(*match.groups()), text)


def _spell_argument(name: str, value: str | None) -> str:
    return name if value is None else f"{name}={value}"


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


class UnsafeCheckpointError(CheckpointError):
    """A weights file that calls functions, or carries tensors of a kind that no CLIP has."""


class TextTooLongError(ClipError, RuntimeError):
    """A text of more tokens than the model reads."""


class ImageError(ClipError, ValueError):
    """An image that cannot become pixels."""


class DeviceError(ClipError, RuntimeError):
    """A device that this machine does not have."""


class ResourceError(ClipError, RuntimeError):
    """Threads, processes or memory that the system does not give."""


class TooManyFailuresError(ClipError, RuntimeError):
    """More images failed than a job allows."""


class MissingExtraError(ClipError, ImportError):
    """A package that an extra brings, and that is not installed."""


class ForeignPackageError(ClipError, ImportError):
    """Files of this package that another distribution, installed later into the same folder, has replaced."""


class StoreError(ClipError, RuntimeError):
    """An output folder that cannot be read or written."""


class StoreBusyError(StoreError):
    """An output folder in which another job is at work."""


class StoreMismatchError(StoreError):
    """An output folder that already holds something else."""


class StoreUnreachableError(StoreError):
    """An output on an object store that gives no usable answer: nothing is said of what lies there."""


MAX_SHOWN = 80  # characters of a name that an error repeats


def quote(name: str) -> str:
    """Return a name from a file as an error repeats it: on one line, and cut where it is long."""
    return repr(name if len(name) <= MAX_SHOWN else name[:MAX_SHOWN] + "...")
