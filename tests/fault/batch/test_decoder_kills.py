"""A process that decodes is killed, by no image's fault, at each step of what it and its job say to each other."""

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kit.inputs import draw_photos, number_names

from clip.batch import processes
from clip.batch.crops import CropRing
from clip.batch.decode import Chunk, Decoding
from clip.batch.processes import DecoderProcesses
from clip.engine.resize import resize_windows
from clip.images.windows import Windows
from clip.jobs.options import DecodeOptions, Limits
from clip.network.records import PreprocessSettings
from clip.records import Item, Member, Row
from clip.sources.source import Source

SIDE, IMAGES = 16, 6


@pytest.fixture
def decoding(tmp_path: Path) -> Decoding:
    draw_photos(tmp_path, number_names(IMAGES))
    return Decoding(Source((str(tmp_path),)), PreprocessSettings(SIDE), Limits(), DecodeOptions())


def kill_before(method: str, wanted: Callable[..., bool] = lambda *_: True) -> Callable[[pytest.MonkeyPatch], None]:
    """Kill the process once, before its job calls this method of its connection."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        original, killed = getattr(processes.Connection, method), list[bool]()

        def kill(self: Any, *given: Any) -> Any:
            owner = next((one for one in started if getattr(one, "_connection", None) is self), None)
            if owner is not None and not killed and wanted(*given):
                killed.append(True)
                owner._process.kill()
                owner._process.wait()
            return original(self, *given)

        patch.setattr(processes.Connection, method, kill)

    return plant


started: list[Any] = []
received = count()


def is_setting(*given: Any) -> bool:
    return bool(given) and isinstance(given[0], processes._Setting)


def is_chunk(*given: Any) -> bool:
    return bool(given) and isinstance(given[0], tuple)


# What the job does with its end of the connection, in this order, for each process and then for each chunk.
STEPS = {
    "it is told what is the same for all images": kill_before("send", is_setting),
    "it is to be ready": kill_before("recv"),
    "a chunk is sent": kill_before("send", is_chunk),
    "the bytes of a member are sent": kill_before("send_bytes"),
    "its answer is waited for": kill_before("recv", lambda *_: next(received) > 0),
    "it may hold what it asked for": kill_before("send", lambda *given: bool(given) and given[0] is None),
}


@pytest.mark.parametrize("window_bytes", [None, 4000], ids=["crops", "windows"])
@pytest.mark.parametrize("step", STEPS)
def test_a_process_that_is_killed_between_its_steps_costs_no_row(
    step: str, window_bytes: int | None, decoding: Decoding, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = processes._Process.__init__

    def note(self: Any, *given: Any) -> None:
        started.append(self)
        begin(self, *given)

    monkeypatch.setattr(processes._Process, "__init__", note)
    STEPS[step](monkeypatch)
    items = [Item(name, str(tmp_path / name), 1) for name in number_names(IMAGES)]
    entries = [Member(item, Path(item.path).read_bytes()) if n % 2 else item for n, item in enumerate(items)]
    ring = CropRing(IMAGES, SIDE, window_bytes=window_bytes)
    chunk = Chunk(list(entries), ring.crops, 0)
    decode = DecoderProcesses(decoding, ring, workers=1, budget_bytes=10_000_000)
    monkeypatch.setattr(decode, "_setting", processes.replace(decode._setting, share_bytes=0))  # so that it asks
    try:
        answer = decode(chunk)
    finally:
        decode.close()
        ring.close()
    assert len(started) >= 2, "none was killed"
    started.clear()
    assert [outcome.id for outcome in answer.outcomes if isinstance(outcome, Row)] == number_names(IMAGES)
    crops = [decoding(entry)[0].array for entry in entries]  # type: ignore[union-attr]
    found = ring.crops
    if answer.windows is not None:
        windows = Windows((ring.crops.reshape(-1),), answer.windows)
        found = resize_windows(windows, PreprocessSettings(SIDE), torch.device("cpu")).numpy()
    assert (window_bytes is None) == (answer.windows is None)
    assert np.array_equal(found, crops)
