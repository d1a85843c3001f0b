"""What a user can ask of `clip models` and `clip fetch`, and what comes back. Knows nothing about the work."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class DeviceRow:
    """A device of this machine, and what its engine can compute in."""

    device: str
    name: str
    backend: str  # library and version
    precisions: tuple[str, ...]  # the first is what "reference" means there


@dataclass(frozen=True, kw_only=True)
class FetchJob:
    """What `clip fetch` is asked for."""

    names: tuple[str, ...] = ()  # released names, or hf-hub:ORG/NAME[@REVISION]
    download_root: str | None = None  # the cache; ~/.cache/clip without
    check: bool = False  # read the cached files again and compare their hashes, instead of fetching
    to: str | None = None  # also write the one model's weights here, as safetensors with OpenAI's names

    def __post_init__(self) -> None:
        if not self.names and not self.check:
            raise InputError(
                "`names`",
                "found none",
                "at least one model",
                "Pass a name that `clip models` lists.",
            )
        if self.to is not None and (len(self.names) != 1 or self.check or not self.to.endswith(".safetensors")):
            raise InputError(
                "`to`",
                f"found {self.to!r} for {len(self.names)} names",
                "one name and FILE.safetensors",
                "Pass them without `check`.",
            )


@dataclass(frozen=True)
class Fetched:
    """Where a model's weights are."""

    name: str
    path: Path
    sha256: str | None  # of OpenAI's archive; None for a copy from the Hub, whose path tells the revision


@dataclass(frozen=True)
class ModelRow:
    """A model, and whether it is here."""

    name: str
    dim: int
    resolution_px: int
    parameters: int
    gflops: float  # of one image, counted as two a multiplication
    size_bytes: int  # of its file; of a released model OpenAI's archive
    licence: str
    cached: str | None  # its path
    note: str = ""  # what else a user should know
