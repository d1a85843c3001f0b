"""Runs that resize where the model runs: on a CPU too they write the bytes of any other run."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kit import formula
from kit.jobs import embed_job
from kit.outputs import read_rows
from kit.windows import read_table
from PIL import Image

import clip
from clip.batch import run as run_module
from clip.batch.decode import Chunk, Decoding
from clip.engine.resize import resize_windows
from clip.errors import DeviceError, InputError
from clip.images.windows import Windows
from clip.jobs.options import DecodeOptions, Limits
from clip.network.records import PreprocessSettings
from clip.records import Item, Pixels
from clip.sources.source import Source

MODES = ["RGB", "L", "RGBA", "CMYK", "P", "LA"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of many sizes and modes, one larger than any window may be here, one that is none, some turned."""
    folder = tmp_path_factory.mktemp("photos")
    for n in range(42):
        mode = MODES[n % len(MODES)]
        image = formula.picture_in_mode(n, 20 + 53 * n % 150, 20 + 71 * n % 170, mode)
        if mode in ("RGBA", "LA") and n % 4:
            image.putalpha(255)
        exif = Image.Exif()
        exif[0x0112] = 1 + n % 8
        image.save(
            folder / f"{n:02}.{'jpg' if mode in ('RGB', 'L') else 'tif' if mode == 'CMYK' else 'png'}", exif=exif
        )
    formula.picture(50, 900, 700).save(folder / "17a.png")
    (folder / "21a.jpg").write_bytes((folder / "00.jpg").read_bytes()[:700])
    return folder


@pytest.fixture
def pixels(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """The crops that the model reads, in order."""
    seen: list[np.ndarray] = []
    encode_pixels, encode_windows = clip.Encoder.encode_pixels, clip.Encoder.encode_windows

    def note_pixels(self: clip.Encoder, crops: np.ndarray) -> np.ndarray:
        seen.extend(crops.copy())
        return encode_pixels(self, crops)

    def note_windows(self: clip.Encoder, windows: Windows) -> np.ndarray:
        seen.extend(resize_windows(windows, self.settings, torch.device("cpu")).numpy())
        return encode_windows(self, windows)

    monkeypatch.setattr(clip.Encoder, "encode_pixels", note_pixels)
    monkeypatch.setattr(clip.Encoder, "encode_windows", note_windows)
    return seen


def embed(photos: Path, out: Path, **options: Any) -> list[list[dict[str, Any]]]:
    """Rows and failures of a run."""
    options = {"model": "sketch", "batch_size": 8, "shard_size": 15, "workers": 2} | options
    report = clip.embed(embed_job(source=photos, output=out, **options))
    assert (report.written, report.failed) == (43, 1)
    return [read_rows(out), read_rows(out, "failures")]


@pytest.mark.parametrize(
    "options",
    [{"decoders": "threads"}, {"decoders": "processes"}, {"isolate": True}, {"decoders": "threads", "orient": "exif"}],
    ids=["threads", "processes", "isolated", "turned"],
)
def test_a_run_is_the_same_byte_for_byte_wherever_images_are_resized(
    options: dict[str, Any], photos: Path, tmp_path: Path, pixels: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "WINDOW_BYTES", 3_000_000)  # so that not all images fit
    orient = {"orient": options.get("orient", "none")}
    expected = embed(photos, tmp_path / "decoders", resize="decoders", decoders="threads", **orient)
    usual = list(pixels)
    pixels.clear()
    assert embed(photos, tmp_path / "device", resize="device", **options) == expected
    assert len(pixels) == len(usual) == 43
    assert all(np.array_equal(*pair) for pair in zip(pixels, usual, strict=True))


def test_an_image_takes_no_room_that_those_after_it_need(photos: Path) -> None:
    settings, names = PreprocessSettings(16), ["17a.png", "00.jpg", "18.jpg", "06.jpg"]
    entries = [Item(name, str(photos / name), 1) for name in names]
    source = Source((str(photos),))
    decoding = Decoding(source, settings, Limits(), DecodeOptions())
    expected = [outcome.array for entry in entries for outcome in decoding(entry) if isinstance(outcome, Pixels)]
    for spare in (0, 1, 5_000, 100_000, 1_000_000):  # bytes of a place beside those of a crop
        memory = np.zeros((len(names), 16 * 16 * 3 + spare), np.uint8)
        answer = decoding.decode_chunk(Chunk(list(entries), memory))
        assert answer.windows is not None
        windows = Windows((memory.reshape(-1),), answer.windows)
        assert np.array_equal(resize_windows(windows, settings, torch.device("cpu")), expected)
        unresized = sum(window.height != 16 for window in read_table(answer.windows))
        assert unresized == {0: 0, 1: 0, 1_000_000: 4}.get(spare, unresized)


def test_a_cpu_resizes_in_its_decoders_unless_it_is_told_to(photos: Path, tmp_path: Path) -> None:
    job = embed_job(source=photos, output=tmp_path / "out", model="sketch")
    cpu, cuda, mps = map(torch.device, ("cpu", "cuda", "mps"))
    assert not run_module._resizes_on_device(job, cpu)
    assert run_module._resizes_on_device(job, cuda)
    assert not run_module._resizes_on_device(job, mps)
    for options in ({"resize": "decoders"}, {"decode": "fast"}, {"frames": "all"}):
        assert not run_module._resizes_on_device(embed_job(source=photos, output=tmp_path, **options), cuda)
    told = embed_job(source=photos, output=tmp_path / "out", resize="device")
    assert run_module._resizes_on_device(told, cpu)
    with pytest.raises(DeviceError, match="device 'mps': computes no doubles"):
        run_module._resizes_on_device(told, mps)


@pytest.mark.parametrize("other", [{"decode": "fast"}, {"decode": "immich"}, {"frames": "all"}])
def test_what_a_device_does_not_resize_is_refused_where_it_is_asked_for(other: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="resize: found device with"):
        embed_job(source=tmp_path, output=tmp_path, resize="device", **other)


def test_texts_have_nothing_to_resize(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Leave out resize"):
        embed_job(source=tmp_path, output=tmp_path, texts=True, resize="device")
