"""Serve runs of `clip embed`, in which steps of tests/kit/disturb.py make things go wrong."""

from contextlib import suppress
from typing import Any

import pyarrow.dataset  # noqa: F401  what a run imports at its first use
from PIL import Image

from clip.batch import embed as _  # noqa: F401
from clip.cli import main
from kit import disturb, forks

with suppress(ImportError):
    import openvino  # noqa: F401


def embed(arguments: list[str], first: list[list[Any]]) -> None:
    for name, *values in first:
        getattr(disturb, name)(*values)
    main.main(["embed", *arguments])


if __name__ == "__main__":
    Image.init()
    forks.serve(embed)
