"""Find the tables of a dataset of Hugging Face, as its `save_to_disk` writes it to a folder.

dataset/dataset_dict.json                 {"splits": ["train", ...]}; each split is a folder like the next one
split/state.json                          the names of the tables, in order
split/dataset_info.json, split/*.arrow    the tables, Arrow streams; others there, as caches, do not belong to it
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import InputError
from .remote.client import is_remote

DICT, STATE, INFO = "dataset_dict.json", "state.json", "dataset_info.json"
REMEDY = "Write it again with save_to_disk."


def list_dataset_files(name: str) -> list[str] | None:
    """Return the paths of a dataset's tables below its folder, in order; None where a name is no such folder.

    Raises:  InputError for a dataset that says of its files what is not so.
    """
    folder = Path(name or "\0")
    if is_remote(name) or not folder.is_dir():
        return None
    if (folder / DICT).is_file():
        splits = _read(folder / DICT, "splits")
        return [f"{split}/{file}" for split in splits for file in _list_split(folder / str(split))]
    return _list_split(folder) if (folder / STATE).is_file() and (folder / INFO).is_file() else None


def _list_split(folder: Path) -> list[str]:
    files = _read(folder / STATE, "_data_files")
    names = [file.get("filename") if isinstance(file, dict) else None for file in files]
    wrong = next((name for name in names if not isinstance(name, str) or Path(name).name != name), "")
    if wrong != "":
        raise InputError(folder / STATE, f"names {wrong!r}", "files of its folder", REMEDY)
    return [str(name) for name in names]


def _read(path: Path, key: str) -> list[Any]:
    try:
        content = json.loads(path.read_bytes())
        found = content[key]
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as exc:
        raise InputError(path, f"cannot be read ({type(exc).__name__}: {exc})", f"a list {key!r}", REMEDY) from exc
    if not isinstance(found, list):
        raise InputError(path, f"has {found!r} as {key!r}", "a list", REMEDY)
    if content.get("_indices_files") or content.get("_indices_data_files"):
        remedy = "Call flatten_indices() before save_to_disk."
        raise InputError(path, "keeps its rows in another order than its tables", "one order", remedy)
    return found
