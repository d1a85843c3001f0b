"""Serve `clip.index`, which may be killed at a moment that its progress tells."""

import os
import signal
from typing import Any

import faiss  # noqa: F401  what an index imports at its first use

import clip
from clip.retrieval import indexing
from kit import forks


def index(out: str, what: str, at: int, options: dict[str, Any]) -> bool:
    """Make the index, or kill this process where `what` is told for the `at`th time; return whether it was made."""
    told = 0

    def tell(name: str, _done: int, _total: int) -> None:
        nonlocal told
        told += name == what
        if name == what and told == at:
            os.kill(os.getpid(), signal.SIGKILL)

    return indexing.index(clip.IndexJob(output=out, **options), tell).made


if __name__ == "__main__":
    forks.serve(index)
