"""Which distribution owns the folder this code runs from, and what must not be imported. Knows nothing about CLIP."""

from __future__ import annotations

import sys
import warnings
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator

# Distributions on PyPI that install a package named `clip` too: a clipboard tool, and two copies of OpenAI's code.
FOREIGN_DISTRIBUTIONS = ("clip", "openai-clip", "clip-anytorch")
# OpenVINO's and NNCF's; writes an id below $HOME and reports from a child process, once it is imported.
TELEMETRY = "openvino_telemetry"


@contextmanager
def without_telemetry() -> Generator[None]:
    """Import what would report what it is used for as if that package were missing; it has a stub for then."""
    blocked = TELEMETRY not in sys.modules
    if blocked:
        sys.modules[TELEMETRY] = None  # type: ignore[assignment]  # how `import` is told that there is none
    try:
        yield
    finally:
        if blocked:
            del sys.modules[TELEMETRY]


@cache
def warn_of_foreign_distribution() -> None:
    """Say once which other installed distribution has put its files into our folder."""
    here = Path(__file__).resolve().parent
    for name in FOREIGN_DISTRIBUTIONS:
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        if Path(str(distribution.locate_file("clip"))).resolve() == here:
            warnings.warn(
                f"{here}: installed by clip-turbo and by {name} {distribution.version}, expected one of them. "
                f"Run: pip uninstall {name}; pip install --force-reinstall --no-deps clip-turbo",
                stacklevel=3,
            )
