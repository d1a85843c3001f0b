"""The kinds of files that an input may be, by the endings of their names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .arrow_file import ArrowTable
from .lists import LIST_ENDINGS
from .parquet import ParquetTable
from .remote.client import get_path
from .tar import TarArchive
from .zip import ZipArchive

if TYPE_CHECKING:
    from .container import Container

CONTAINERS: tuple[Container, ...] = (TarArchive(), ZipArchive(), ParquetTable(), ArrowTable())
"""Every kind of file that holds images; a new kind is registered here."""
ENDINGS = LIST_ENDINGS + tuple(ending for container in CONTAINERS for ending in container.endings)


def find_container(path: str) -> Container | None:
    """Return what reads a file that holds images; None for another file."""
    name = get_path(path).lower()
    return next((container for container in CONTAINERS if name.endswith(container.endings)), None)


def has_known_ending(path: str) -> bool:
    """Whether a file is a list or a container by its name."""
    return get_path(path).lower().endswith(ENDINGS)
