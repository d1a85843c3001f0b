"""Where `clip find` keeps the vectors of a folder: an output in the user's data folder, which nobody has to name.

Its name is made of the folder's real path and the model. A folder that was moved or renamed is known by its images, and
takes its output along.

Source:  XDG Base Directory Specification 0.8, XDG_DATA_HOME.
"""

from __future__ import annotations

import hashlib
import os
import re
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import StoreError
from ..own_files import MANIFEST, is_output
from ..records import Item, as_utf8
from ..store.manifest import read_manifest
from ..store.plan import read_plan
from ..weights.locate import URLS
from ..weights.spellings import find_spelled

if TYPE_CHECKING:
    from collections.abc import Iterator

HASH_DIGITS = 12  # of a path, and of a model
MAX_NAME = 40  # letters of the folder's name, which are there for people
SAMPLE = 50  # images that are looked for in a folder that may have been moved


def find_data_folder() -> Path:
    """Return the folder that holds the outputs of all folders, whether it exists or not."""
    home = os.environ.get("XDG_DATA_HOME", "")
    if not os.path.isabs(home):  # noqa: PTH117  which the specification has ignored
        home = os.environ.get("LOCALAPPDATA") or os.path.join("~", ".local", "share")  # noqa: PTH118
    return Path(home).expanduser() / "clip-turbo" / "folders"


def find_place(folder: str | Path, model: str) -> Path:
    """Return where the output of a folder and a model is, whether it exists or not."""
    path = os.path.realpath(folder)
    name = re.sub(r"[^\w.-]+", "-", as_utf8(Path(path).name))[:MAX_NAME].strip(".-") or "root"
    return find_data_folder() / f"{name}-{_hash(path)}-{_hash(_spell(model))}"


def take_along(place: Path, folder: str | Path) -> Path | None:
    """Give a folder that was moved the output that it had; return that one's earlier place.

    It is the one of an output of the same model whose folder is not there any more, and most of whose images are here.
    """
    if place.exists():
        return None
    for other in _list_outputs(place.name.rpartition("-")[2]):
        with suppress(OSError, StoreError):
            if _holds_images_of(other, folder):
                other.rename(place)
                return other
    return None


def find_output(name: str) -> str:
    """Return the output of a folder of images that `clip find` has searched; any other name as it is.

    Of a folder that was searched with several models, that of the latest run.
    """
    if not os.path.isdir(name) or is_output(name):  # noqa: PTH112
        return name
    prefix = find_place(name, "").name.rpartition("-")[0]
    places = [place for place in _list_outputs("") if place.name.rpartition("-")[0] == prefix]
    return str(max(places, key=lambda place: (place / MANIFEST).stat().st_mtime_ns)) if places else name


def _list_outputs(model_hash: str) -> Iterator[Path]:
    """Yield the outputs of a model, or of all."""
    with suppress(OSError):
        for path in sorted(find_data_folder().iterdir()):
            if path.name.endswith(f"-{model_hash}" if model_hash else "") and is_output(str(path)):
                yield path


def _holds_images_of(output: Path, folder: str | Path) -> bool:
    """Whether the images of an output are not where they were, and most of the first ones are in a folder."""
    manifest = read_manifest(output / MANIFEST)
    if manifest is None or not manifest.base or os.path.isdir(manifest.base):  # noqa: PTH112
        return False
    plan = read_plan(output)
    if plan is None or not plan.shards:
        return False
    first = [entry for entry in islice(plan.shard(0).entries, SAMPLE) if isinstance(entry, Item)]
    here = sum(_has_size(os.path.join(folder, entry.path), entry.size_bytes) for entry in first)  # noqa: PTH118
    return 2 * here > len(first)


def _has_size(path: str, size_bytes: int) -> bool:
    try:
        return os.stat(path).st_size == size_bytes  # noqa: PTH116  a text, of bytes that are perhaps not UTF-8
    except OSError:
        return False


def _spell(model: str) -> str:
    """Return one spelling of a model's name; a path as it is from the root."""
    if model in URLS or ":" in model:
        return model
    if os.path.exists(model):  # noqa: PTH110
        return os.path.realpath(model)
    return find_spelled(model, URLS) or model


def _hash(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:HASH_DIGITS]
