"""The rows of `clip models --check`, and the report of `clip doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .fields import documented
from .models import DeviceRow


@documented
@dataclass(frozen=True)
class CheckRow:
    """One thing that was compared."""

    check: str
    """What was compared with what."""
    found: str
    """What came out."""
    expected: str
    """What should have."""
    passed: bool | None
    """Whether it did; None where it cannot be told here."""


@documented
@dataclass(frozen=True)
class ExtraRow:
    """An extra of this package, or a library that it uses where it is installed."""

    name: str
    """As `pip install 'clip-turbo[NAME]'` takes it."""
    versions: dict[str, str | None]
    """Its libraries and their versions; None for one that is not installed."""
    lacks: str
    """What does not work without it; empty where it is installed."""


@documented
@dataclass(frozen=True)
class Health:
    """What the vectors of this machine depend on, and what is missing on it."""

    versions: dict[str, str | None]
    """This package, Python, and the libraries it needs."""
    system: dict[str, str]
    """Operating system, processor, cores, memory."""
    devices: tuple[DeviceRow, ...]
    """Devices with their back ends and precisions."""
    extras: tuple[ExtraRow, ...]
    """Extras, and what does not work without them."""
    cache: dict[str, Any]
    """Where weights are kept, which of the released ones are there, and whether the network may be used."""
    threads: dict[str, str | None]
    """Threads of the libraries, and the variables of the environment that set them."""
    problems: tuple[str, ...]
    """What should be put right, one sentence each."""
