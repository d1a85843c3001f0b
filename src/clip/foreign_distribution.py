"""Notice other installed distributions that have put files into this package's folder."""

from __future__ import annotations

import sys
import warnings
from functools import cache
from importlib import metadata
from pathlib import Path

from .errors import ForeignPackageError

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


def check_own_package() -> None:
    """Raise ForeignPackageError where one installed later has replaced this package's `__init__`, and so its parts."""
    package = sys.modules[__name__.rpartition(".")[0]]
    if not hasattr(package, "_HOMES"):  # of ours alone
        here = Path(__file__).resolve().parent
        installed = [name for name in FOREIGN_DISTRIBUTIONS if _version(name)]
        uninstall = f"pip uninstall {' '.join(installed)}; " if installed else ""
        remedy = f"Run: {uninstall}pip install --force-reinstall --no-deps clip-turbo"
        found = f"some of its files are those of {' or '.join(installed) or 'another distribution'}"
        raise ForeignPackageError(here, found, "those of clip-turbo alone", remedy)


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
