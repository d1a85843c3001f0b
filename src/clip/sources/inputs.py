"""Check the names that a user gives as input, and explain those that yield nothing."""

from __future__ import annotations

from pathlib import Path

from ..errors import InputError
from ..images.kinds import REMEDIES, get_unread_kind
from ..records import STDIN
from .expand import MAGIC
from .folders import has_image_name, is_image
from .kinds import has_known_ending
from .remote.client import can_list, check_url, get_path, is_remote


def check_input(name: str, *, raw_previews: bool = False) -> None:
    """Raise InputError for a name that cannot be an input."""
    if is_remote(name):
        check_url(name)
        if not (
            _is_prefix(name)
            or has_known_ending(name)
            or has_image_name(get_path(name), raw_previews=raw_previews) is not False
        ):
            raise InputError(name, "nothing that we read", "an image, a list or an archive", "Check the address.")
        return
    if name == STDIN or is_pattern(name):
        return
    path = Path(name or "\0")
    is_readable = has_known_ending(name) or (path.is_file() and is_image(name, raw_previews=raw_previews))
    if not (path.is_dir() or (path.is_file() and is_readable)):
        kind = get_unread_kind(name) if path.exists() else None
        reason = f"is a {kind}" if kind else "nothing that we read" if path.exists() else "no such file"
        expected = "a folder, an image, a list, an archive or a table"
        remedy = f"For a {kind}: {REMEDIES[kind]}" if kind else "Check the path."
        raise InputError(name or "(empty)", reason, expected, remedy)


def is_folder(name: str) -> bool:
    """Whether a name is a folder's, here or on a server, rather than a file's or a pattern."""
    return _is_prefix(name) and not is_pattern(name) if is_remote(name) else Path(name).is_dir()


def is_pattern(name: str) -> bool:
    """Whether a name is a pattern: a file that exists is not, whatever its name."""
    return MAGIC.search(name) is not None and (can_list(name) if is_remote(name) else not Path(name).exists())


def _is_prefix(url: str) -> bool:
    """Whether a URL means all that is below it: its server can list, and it does not end like a file."""
    is_file = has_known_ending(url) or has_image_name(url.rpartition("/")[2])
    return can_list(url) and (url.endswith("/") or MAGIC.search(url) is not None or not is_file)


def explain_nothing(name: str, ignored: dict[str, int]) -> InputError:
    """Return the error for an input that yields nothing but what was ignored, with the likely cause."""
    if is_pattern(name):
        return InputError(name, "matches no file", "some", "Check it, and quote it, so that the shell leaves it.")
    if is_folder(name):
        counts = ", ".join(f"{count:,} {reason}" for reason, count in sorted(ignored.items()) if count)
        kinds = [f"For {kind}: {remedy}" for kind, remedy in REMEDIES.items() if ignored.get(kind)]
        remedy = ". ".join(kinds) or "Check the folder, or take files of other names with `globs`."
        return InputError(name, f"nothing but {counts}" if counts else "empty", "images", remedy)
    remedy = "Check that it is the right file, and its `columns.entry`."
    return InputError(name, "names no image", "some", remedy)
