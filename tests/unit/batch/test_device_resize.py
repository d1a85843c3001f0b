"""Runs that resize where the model runs: on a CPU too they write the bytes of any other run."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kit import formula
from kit.jobs import embed_job
from kit.outputs import read_rows
from PIL import Image

import clip
from clip.batch import run as run_module
from clip.engine.resize import resize_windows
from clip.errors import DeviceError, InputError
from clip.images.windows import Windows

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
