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
    """Name of the processor."""
    backend: str
    """Library that computes, and its version."""
    precisions: tuple[str, ...]
    """Number types it can compute in; "reference" means the first."""


@documented
@dataclass(frozen=True, kw_only=True)
class FetchJob:
    """Which weights to fetch or to check."""

    names: tuple[str, ...] = ()
    """Models: released names, or hf-hub:ORG/NAME[@REVISION]."""
    download_root: str | None = None
    """The cache; default: ~/.cache/clip."""
    check: bool = False
    """Hash the cached files again and compare, instead of fetching."""
    to: str | None = None
    """Also write the one model's weights to this file, as safetensors with OpenAI's names."""
    architecture: str | None = None
    """With `to`: the network of weights that do not show theirs, as of `ModelOptions`."""

    def __post_init__(self) -> None:
        if not self.names and not self.check:
            raise InputError("`names`", "found none", "at least one model", "Pass a name that `clip models` lists.")
        if self.to is not None and (len(self.names) != 1 or self.check or not self.to.endswith(".safetensors")):
            found = f"found {self.to!r} for {len(self.names)} names"
            raise InputError("`to`", found, "one name and FILE.safetensors", "Pass them without `check`.")
        if self.architecture is not None and self.to is None:
            raise InputError("`architecture`", f"found {self.architecture!r}", "`to` with it", "Pass `to` too.")


@documented
@dataclass(frozen=True)
class Fetched:
    """Where a model's weights are."""

    name: str
    """Name of the model."""
    path: Path
    """Path of its file or folder."""
    sha256: str | None
    """The sha256 of OpenAI's archive; None for a copy from the Hub, whose path has the revision."""


@documented
@dataclass(frozen=True)
class ModelRow:
    """A model, and whether it is on this machine."""

    name: str
    """As `model` takes it."""
    dim: int
    """Numbers in a vector."""
    resolution_px: int
    """Side of the square images it reads."""
    parameters: int
    """Number of parameters in both towers."""
    gflops: float | None
    """Billions of operations for one image; a multiplication and an addition count as two; None where unpublished."""
    size_bytes: int
    """Size of its file; for a released model of OpenAI's archive, for others four bytes a parameter."""
    licence: str
    """Licence of the weights."""
    cached: str | None
    """Path on this machine; None where it is not here."""
    note: str = ""
    """What else a user should know."""
    imagenet: float | None = None
    """Zero-shot accuracy on ImageNet in percent, as published; None where `source` has none."""
    source: str = ""
    """Where that figure is published."""
    repository: str = ""
    """The repository of the Hugging Face Hub that a name stands for; no commit of it is pinned."""
