"""Loading files that may be bombs: in a separate process, with little memory and little time."""

import atexit
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from kit import forks

MAX_MESSAGE = 1_000  # characters; what a file says of itself must not fill the terminal


@dataclass(frozen=True)
class Outcome:
    """How `clip.load` ended."""

    errors: list[str]  # names of the exception's type and of its parents; empty where the file was loaded
    message: str
    ran_out_of_memory: bool = False  # on the way to that error; without the limit it would have continued


def load(path: Path) -> Outcome:
    ended = _server().ask(path=path)
    return Outcome(**(ended.answer or {"errors": [], "message": f"its process ended with {ended.code}: {ended.said}"}))


def assert_refused(path: Path, error: str = "CheckpointError", says: str = "") -> Outcome:
    """One plain line that begins with the file's name, within the limits of time and memory."""
    outcome = load(path)
    assert error in outcome.errors, outcome
    assert not outcome.ran_out_of_memory, outcome
    assert outcome.message.startswith((f"{path}: ", f"{path}/")), outcome  # or a file in that folder
    assert len(outcome.message) < len(str(path)) + MAX_MESSAGE, outcome
    assert outcome.message.isprintable(), outcome
    assert says in outcome.message, outcome
    return outcome


@cache
def _server() -> forks.Server:
    server = forks.Server("serve_load")
    atexit.register(server.close)
    return server
