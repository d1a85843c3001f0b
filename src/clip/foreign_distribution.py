"""Warn of other installed distributions that have put files into this package's folder."""

from __future__ import annotations

import warnings
from functools import cache
from importlib import metadata
from pathlib import Path

# Distributions on PyPI that install a package named `clip` too: a clipboard tool, and two copies of OpenAI's code.
FOREIGN_DISTRIBUTIONS = ("clip", "openai-clip", "clip-anytorch")


@cache
def warn_of_foreign_distribution() -> None:
    """Warn, once per process, if another installed distribution has put its files into our folder."""
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
