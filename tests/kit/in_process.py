"""The command `clip` in this process, for tests that look at its exit code and at what it says."""

from collections.abc import Callable
from pathlib import Path

import pytest

from clip.cli import main

Run = Callable[..., tuple[int, str, str]]


def runner(capsys: pytest.CaptureFixture[str]) -> Run:
    """A call of the command: its exit code, stdout, stderr."""

    def call(*arguments: str | Path | float) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main.main([str(argument) for argument in arguments])
        assert isinstance(ended.value.code, int)
        return (ended.value.code, *capsys.readouterr())

    return call
