"""int8: quantised by the user's own images, the same way each time, and never without."""

import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from kit import checkpoints, formula
from kit.inputs import draw_photos, number_names
from kit.jobs import embed_job

import clip
from clip.batch.verify import verify
from clip.encoder import Encoder
from clip.engine import backend_openvino, quantize
from clip.errors import DeviceError, InputError, StoreError, StoreMismatchError
from clip.jobs.verify import VerifyJob
from clip.store.manifest import CALIBRATION

pytestmark = pytest.mark.skipif(
    "int8" not in backend_openvino.usable_precisions(), reason="this processor has no products of 8-bit integers"
)


@pytest.fixture(scope="module", params=["tiny-vit", "tiny-rn"])
def weights(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.write(tmp_path_factory.mktemp("weights"), request.param)


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.write(tmp_path_factory.mktemp("vit"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("int8") / "photos"
    return draw_photos(folder, number_names(12), width=50, height=40, wider=1, broken=["00.broken.png"])


def encoder(weights: Path, **choices: Any) -> Encoder:
    return Encoder(str(weights), device="cpu", threads=1, precision="int8", **choices)


def paths(photos: Path) -> list[Path]:
    return sorted(path for path in photos.iterdir() if "broken" not in path.name)


def test_the_same_pictures_give_the_same_vectors_and_near_ones(
    weights: Path, photos: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    exact = Encoder(str(weights), device="cpu", threads=1).embed(paths(photos))
    found = []
    for _ in range(2):
        one = encoder(weights)
        one.calibrate(paths(photos)[:8])
        found.append(one.embed(paths(photos)))
    assert np.array_equal(*found)
    cosines = (found[0] * exact).sum(axis=1)
    assert cosines.min() > 0.99
    assert cosines.max() < 1, "nothing was quantised"
    assert capfd.readouterr().out == "", "stdout is for results"
    assert "openvino_telemetry" not in sys.modules
    logging.getLogger("another").warning("heard")
    assert [record.message for record in caplog.records] == ["heard"], "NNCF is not to change who hears of others"
    assert logging.getLoggerClass() is logging.Logger
    assert one.calibration is not None
    assert len(one.calibration.pixels) == 8
    assert one.computed_in in ("int8+bf16", "int8+fp32")


def test_normalised_pictures_and_texts_go_through_an_int8_encoder_too(vit: Path, photos: Path) -> None:
    one, exact = encoder(vit), Encoder(str(vit), device="cpu", threads=1)
    one.calibrate(paths(photos))
    _, preprocess = clip.load(str(vit), device="cpu")
    import torch

    batch = torch.stack([preprocess(path) for path in paths(photos)])
    near, far = one.encode_image(batch).numpy(), exact.encode_image(batch).numpy()
    assert ((near * far).sum(axis=1) / np.linalg.norm(near, axis=1) / np.linalg.norm(far, axis=1)).min() > 0.99
    assert torch.equal(one.encode_text(["a dog", "two"]), exact.encode_text(["a dog", "two"]))


def test_pictures_that_cannot_be_quantised_by_are_refused(vit: Path, photos: Path) -> None:
    with pytest.raises(InputError, match=r"the encoder has no images to quantise by\. Call calibrate"):
        encoder(vit).embed(paths(photos))
    for images in ([], np.zeros((3, 31, 31, 3), np.uint8), np.zeros((3, 32, 32, 3), np.float32)):
        with pytest.raises(InputError, match=r"images: found .* expected some, uint8 \(N, 32, 32, 3\)"):
            encoder(vit).calibrate(images)
    with pytest.raises(InputError, match=r"precision 'fp32' is not quantised by images\. Leave the call out"):
        Encoder(str(vit), device="cpu").calibrate(paths(photos))
    one = encoder(vit)
    one.calibrate(paths(photos)[:2])
    one.embed(paths(photos)[:1])
    with pytest.raises(InputError, match="found a model that has run"):
        one.calibrate(paths(photos))


def test_without_nncf_int8_is_not_offered_and_says_what_to_install(
    vit: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = encoder(vit)
    one.calibrate(paths(photos))
    monkeypatch.setattr(quantize, "is_installed", lambda: False)
    assert "int8" not in backend_openvino.usable_precisions()
    with pytest.raises(DeviceError, match=r"precision 'int8'.*pip install 'clip-turbo\[int8\]'"):
        one.embed(paths(photos))
    with pytest.raises(DeviceError, match=r"precision 'int8'.*pip install 'clip-turbo\[int8\]'"):
        encoder(vit)


def embedded(photos: Path, output: Path, weights: Path, **choices: Any) -> dict[str, list[float]]:
    job = embed_job(
        source=photos, output=output, model=str(weights), precision="int8", threads=1, shard_size=5, **choices
    )
    report = clip.embed(job)
    assert (report.read, report.failed) == (13, 1)
    return {row["id"]: row["embedding"] for row in pq.read_table(output / "embeddings").to_pylist()}


def test_a_run_is_quantised_by_its_first_pictures_and_gone_on_with_by_the_same(
    vit: Path, photos: Path, tmp_path: Path
) -> None:
    found = embedded(photos, tmp_path / "out", vit)
    manifest = clip.Store(tmp_path / "out").manifest
    assert manifest.computed_in.startswith("int8+")
    assert manifest.calibration is not None
    assert manifest.calibration["pictures"] == 12
    assert len(np.load(tmp_path / "out" / CALIBRATION)) == 12
    (tmp_path / "out/embeddings/part-00001.parquet").unlink()
    assert embedded(photos, tmp_path / "out", vit) == found
    report = verify(VerifyJob(output=tmp_path / "out", sample=13))
    assert (report.sampled, report.problems) == (13, ())
    assert report.min_cosine is not None
    assert report.min_cosine > 0.999999
    one = tmp_path / "one"
    one.mkdir()
    formula.picture(77, 60, 60).save(one / "a.png")
    with pytest.raises(StoreMismatchError, match="calibration is"):
        embedded(photos, tmp_path / "out", vit, calibration=one)
    assert embedded(photos, tmp_path / "other", vit, calibration=one) != found
    assert embedded(photos, tmp_path / "out", vit, calibration=one, overwrite=True) != found
    assert len(np.load(tmp_path / "out" / CALIBRATION)) == 1
    (tmp_path / "out" / CALIBRATION).write_bytes(b"\x93NUMPY")
    with pytest.raises(StoreError, match=f"holds no {CALIBRATION}"):
        verify(VerifyJob(output=tmp_path / "out", sample=1))
    np.save(tmp_path / "out" / CALIBRATION, np.zeros((1, 32, 32, 3), np.uint8))
    with pytest.raises(StoreError, match=f"holds another {CALIBRATION}"):
        verify(VerifyJob(output=tmp_path / "out", sample=1))


def test_an_update_keeps_the_calibration_though_the_first_pictures_are_others(vit: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for n in range(4):
        formula.picture(n, 50, 40).save(photos / f"{n}.png")
    job: dict[str, Any] = {"source": photos, "output": tmp_path / "out", "model": str(vit), "precision": "int8"}
    clip.embed(embed_job(**job))
    before = clip.Store(tmp_path / "out").manifest.calibration
    formula.picture(9, 50, 40).save(photos / "0.png")
    assert clip.embed(embed_job(**job, update=True)).read == 4
    assert clip.Store(tmp_path / "out").manifest.calibration == before


@pytest.mark.parametrize(
    ("choices", "told"),
    [
        ({"precision": "int8", "texts": True}, "precision: found int8 for texts"),
        ({"precision": "bf16", "calibration": "photos"}, "calibration: found precision bf16, expected int8"),
    ],
)
def test_options_that_do_not_go_together(choices: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        embed_job(source="a", output="out", **choices)


def test_an_input_without_pictures_cannot_be_quantised_by(vit: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="none of the first 1 entries can be decoded, expected images to quantise by"):
        clip.embed(embed_job(source=tmp_path, output=tmp_path / "out", model=str(vit), precision="int8"))
