"""Settings for every test, and the fixtures that rooms share."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

# Tiny models gain nothing from a second thread, and two cores are often shared: 11 s of work become 30 s.
# Read by torch at import, inherited by child processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# No test asks a server that is not its own; those that run one on loopback take this back.
os.environ["CLIP_OFFLINE"] = "1"

from kit import checkpoints
from kit.in_process import Run, runner

if TYPE_CHECKING:
    from kit.object_store import ObjectServer

# An example may take as long as a busy machine needs.
settings.register_profile("clip", deadline=None)
settings.load_profile("clip")


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of the tiny network, for images only. No test changes it."""
    return checkpoints.write(tmp_path_factory.mktemp("weights"), texts=False)


@pytest.fixture(scope="session")
def text_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same network with its whole vocabulary."""
    return checkpoints.write(tmp_path_factory.mktemp("weights-with-texts"))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command in this process: its exit code, stdout, stderr."""
    return runner(capsys)


@pytest.fixture
def objects() -> "Iterator[ObjectServer]":
    """An S3 server with an empty bucket."""
    from kit import object_store  # here, as moto takes a second

    with object_store.running() as server:
        yield server
