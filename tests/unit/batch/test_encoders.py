"""Several encoders take batches from one queue: all of them work, results keep their order, and errors come through."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kit.inputs import draw_photos, number_names
from kit.jobs import embed_job
from kit.outputs import read_manifest, read_rows

import clip
from clip.batch import embed as embed_module
from clip.batch.encoders import Encoders, load_encoders
from clip.errors import DeviceError, InputError
from clip.jobs.options import ModelOptions
from clip.store.parts import EMBEDDING

WAIT_S = 60.0


class Stub:
    """An encoder whose vectors are the first byte of each image; it waits until it may go on."""

    def __init__(self, device: str = "cuda", gate: threading.Event | None = None) -> None:
        self.device = torch.device(device)
        self.batch_size, self.computed_in = 4, "fp16"
        self.batches: list[int] = []
        self.warmed: list[int] = []
        self.gate = gate

    def warm_up(self, images: int) -> None:
        self.warmed.append(images)

    def encode_pixels(self, crops: np.ndarray) -> np.ndarray:
        if self.gate is not None:
            assert self.gate.wait(WAIT_S)
        if crops[0, 0, 0, 0] == 99:
            raise RuntimeError("a broken GPU")
        self.batches.append(int(crops[0, 0, 0, 0]))
        return crops[:, 0, 0, :1].astype(np.float32)


def make_batch(number: int) -> np.ndarray:
    return np.full((2, 1, 1, 3), number, np.uint8)


def pool(*stubs: Any) -> Encoders:
    return Encoders(stubs)


def test_a_slow_device_holds_up_its_own_batch_and_no_other() -> None:
    gate = threading.Event()
    slow, fast = Stub(gate=gate), Stub()
    encoders = pool(slow, fast)
    futures = [encoders.encode(make_batch(number), None) for number in range(6)]
    while len(fast.batches) < 5:
        next(future for future in futures if not future.done() and future is not futures[0]).result(WAIT_S)
    gate.set()
    assert [int(future.result(WAIT_S)[EMBEDDING][0, 0]) for future in futures] == list(range(6))
    encoders.close()
    assert sorted(slow.batches + fast.batches) == list(range(6))
    assert len(slow.batches) == 1


def test_one_encoder_on_a_cpu_encodes_in_the_thread_that_calls() -> None:
    stub = Stub("cpu")
    encoders = pool(stub)
    encoders.prepare(4)
    future = encoders.encode(make_batch(7), None)
    assert future.done()
    assert (encoders.ahead, stub.batches, stub.warmed) == (0, [7], [])
    with pytest.raises(RuntimeError, match="a broken GPU"):
        encoders.encode(make_batch(99), None)
    encoders.close()


def test_a_gpu_is_made_ready_for_the_first_batch_before_there_is_one() -> None:
    stub = Stub()
    encoders = pool(stub)
    encoders.prepare(4)
    encoders.encode(make_batch(1), None).result(WAIT_S)
    encoders.close()
    assert (stub.warmed, stub.batches) == ([4], [1])


def test_what_fails_in_a_thread_is_raised_where_the_result_is_taken() -> None:
    encoders = pool(Stub())
    with pytest.raises(RuntimeError, match="a broken GPU"):
        encoders.encode(make_batch(99), None).result(WAIT_S)
    encoders.close()


def test_what_fails_before_the_first_batch_is_raised_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Stub, images: int) -> None:
        raise RuntimeError(f"no memory for {images}")

    monkeypatch.setattr(Stub, "warm_up", fail)
    encoders = pool(Stub())
    encoders.prepare(4)
    with pytest.raises(RuntimeError, match="no memory for 4"):
        for number in range(2):  # with the first result the thread is done with what came before
            encoders.encode(make_batch(number), None).result(WAIT_S)
    encoders.close()


def test_devices_that_would_give_other_vectors_are_refused_together() -> None:
    stubs = {"cpu": Stub("cpu")}

    def load(options: ModelOptions, _: Any) -> Any:
        made = stubs.setdefault(options.device, Stub("cpu"))
        made.computed_in = f"fp{len(stubs)}"
        return stubs[options.device]

    with pytest.raises(DeviceError, match="devices 'cpu,cpu:0': cpu computes batches of 4 in"):
        load_encoders(ModelOptions(), "exact", "cpu,cpu:0", load)


def test_without_a_gpu_all_of_them_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(DeviceError, match="devices 'all': found no GPU"):
        load_encoders(ModelOptions(), "exact", "all")


def test_a_device_and_devices_are_one_too_many(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="devices: found device 'cpu' too"):
        embed_job(source=tmp_path, output=tmp_path, device="cpu", devices="cpu,cpu")


@pytest.mark.parametrize("resize", ["decoders", "device"])
def test_a_run_on_two_devices_writes_what_a_run_on_one_does(
    resize: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken images among them, more in a row than a ring holds; shards end within a batch."""
    names = number_names(90)
    broken = ["01.broken.png", "07.broken.png", *(f"30.broken{n:03}.png" for n in range(150))]
    photos = draw_photos(tmp_path / "photos", names, wider=1, broken=broken)
    made: list[clip.Encoder] = []

    def load_own(options: ModelOptions, _: Any) -> clip.Encoder:
        made.append(clip.Encoder(options.name, device=options.device, batch_size=options.batch_size or "auto"))
        return made[-1]

    options = {"source": photos, "model": "sketch", "batch_size": 4, "shard_size": 170, "workers": 2, "resize": resize}
    clip.embed(embed_job(output=tmp_path / "one", **options))
    monkeypatch.setattr(embed_module, "load_encoder", load_own)
    report = clip.embed(embed_job(output=tmp_path / "two", devices="cpu,cpu", **options))
    assert (report.read, report.written, report.failed) == (242, 90, 152)
    assert len(made) == 2
    for folder in ("embeddings", "failures"):
        assert read_rows(tmp_path / "one", folder) == read_rows(tmp_path / "two", folder)
    assert read_manifest(tmp_path / "two")["device"] == "cpu,cpu"
