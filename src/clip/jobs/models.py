"""The job of `clip fetch`, and the rows of `clip models`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import InputError
from .fields import documented

if TYPE_CHECKING:
    from pathlib import Path


@documented
@dataclass(frozen=True)
class DeviceRow:
    """A device of this machine, and what its back end can compute in."""

    device: str
    """As `device` takes it."""
    name: str
    """The processor's."""
    backend: str
    """Library and version."""
    precisions: tuple[str, ...]
    """The first is what "reference" means there."""


@documented
@dataclass(frozen=True, kw_only=True)
class FetchJob:
    """Which weights to fetch or to check."""

    names: tuple[str, ...] = ()
    """Released names, or hf-hub:ORG/NAME[@REVISION]."""
    download_root: str | None = None
    """The cache; default: ~/.cache/clip."""
    check: bool = False
    """Hash the cached files again and compare, instead of fetching."""
    to: str | None = None
    """Also write the one model's weights to this file, as safetensors with OpenAI's names."""

    def __post_init__(self) -> None:
        if not self.names and not self.check:
            raise InputError("`names`", "found none", "at least one model", "Pass a name that `clip models` lists.")
        if self.to is not None and (len(self.names) != 1 or self.check or not self.to.endswith(".safetensors")):
            raise InputError(
                "`to`",
                f"found {self.to!r} for {len(self.names)} names",
                "one name and FILE.safetensors",
                "Pass them without `check`.",
            )


@documented
@dataclass(frozen=True)
class Fetched:
    """Where a model's weights are."""

    name: str
    """The model's."""
    path: Path
    """Of its file or folder."""
    sha256: str | None
    """Of OpenAI's archive; None for a copy from the Hub, whose path has the revision."""


@documented
@dataclass(frozen=True)
class ModelRow:
    """A model, and whether it is on this machine."""

    name: str
    """As `model` takes it."""
    dim: int
    """Numbers in a vector."""
    resolution_px: int
    """Side of the images it reads."""
    parameters: int
    """Of both towers."""
    gflops: float
    """For one image, a multiplication and an addition counted as two."""
    size_bytes: int
    """Of its file; of a released model OpenAI's archive."""
    licence: str
    """Of the weights."""
    cached: str | None
    """Path on this machine."""
    note: str = ""
    """What else a user should know."""
