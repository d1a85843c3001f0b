"""What lies in an output beside its parts, plan and manifest: files derived from these, and files of others."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ..atomic_files import TEMPORARY, open_regular
from ..errors import StoreError
from .checksummed_file import ChecksummedFile
from .journal import JOURNAL
from .lock import GUARD, LOCK, PART_LOCK_NAME, PLAN_LOCK
from .manifest import CALIBRATION, INDEX, MANIFEST
from .parts import EMBEDDINGS, FAILURES, PART_NAME
from .plan import LISTED, PLAN, PLAN_FOLDERS, SHARD_NAME, SUMMARY
from .reader import Store
from .rows_file import OF_BEFORE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

INDEX_NAMES = "*.index"
FILES = (MANIFEST, CALIBRATION, LOCK, GUARD, PLAN_LOCK)
FOLDERS = (EMBEDDINGS, FAILURES, INDEX, JOURNAL, *PLAN_FOLDERS)
# By folder, the names that are ours.
OURS: dict[str, re.Pattern[str]] = {
    "": re.compile("|".join([*map(re.escape, (*FILES, *FOLDERS)), PART_LOCK_NAME.pattern])),
    EMBEDDINGS: PART_NAME,
    FAILURES: PART_NAME,
    PLAN: re.compile(f"{SHARD_NAME.pattern}|{re.escape(SUMMARY)}|{re.escape(LISTED)}"),
    INDEX: re.compile("|".join([*map(re.escape, OF_BEFORE), r".*\.index|\..*\.guard|\.ivf\.build"])),
}


def check_derived(store: Store) -> Iterator[tuple[Path, StoreError]]:
    """Compare the files in _index with their checksums; yield those that are damaged."""
    for path in sorted(store.index_folder.glob(INDEX_NAMES)):
        try:
            with open_regular(path) as file:
                ChecksummedFile(file, str(path)).check_all()
        except OSError as exc:
            yield path, StoreError(path, f"cannot be read ({exc})", remedy="Run clip index to remake it.")
        except StoreError as exc:
            yield path, exc


def find_foreign(output: Path) -> list[str]:
    """Return the paths below an output, in its folders, of files that are none of ours."""
    return sorted(
        path.relative_to(output).as_posix()
        for folder, ours in OURS.items()
        for path in ((output / folder).iterdir() if (output / folder).is_dir() else ())
        if not ours.fullmatch(path.name) and not (path.name.startswith(".") and path.name.endswith(TEMPORARY))
    )
