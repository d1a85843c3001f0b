"""Programs that tests run in a separate process, with what they need on their command line."""

import os
import sys
from pathlib import Path

from kit import ROOT

FOLDER = Path(__file__).parent


def command(name: str, *arguments: str | Path) -> list[str]:
    return [sys.executable, str(FOLDER / f"{name}.py"), *map(str, arguments)]


def environment() -> dict[str, str]:
    """Return the environment of a program that imports the kit."""
    paths = [str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
