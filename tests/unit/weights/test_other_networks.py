"""SigLIP and PE-Core where CLIP goes too: a loaded model's encoder, int8, tune, search."""

from pathlib import Path

import numpy as np
import pytest
import torch
from kit import formula, pe, siglip
from kit.inputs import draw_photos, number_names
from kit.jobs import embed_job, tune_job
from kit.pe import tiny_networks  # noqa: F401

import clip
from clip.batch.tune import tune
from clip.engine.backend_openvino import usable_precisions
from clip.errors import InputError
from clip.network.siglip import SigLIP

pytestmark = pytest.mark.usefixtures("tiny_networks")
WRITERS = {"siglip": siglip.write, "pe": pe.write}
PHOTOS = 16
needs_int8 = pytest.mark.skipif("int8" not in usable_precisions(), reason="this processor has no products of bytes")


@pytest.fixture(params=WRITERS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return WRITERS[request.param](tmp_path / "model")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return draw_photos(tmp_path / "photos", number_names(PHOTOS), width=60, height=50, wider=1)


def test_an_encoder_of_a_loaded_model_has_the_encoders_vectors(folder: Path) -> None:
    model, _ = clip.load(folder, device="cpu")
    loaded, read = clip.Encoder(model), clip.Encoder(folder)
    image, texts = formula.picture(0, 64, 43), ["a photo of a cat", "A dog!"]
    # Rounding may differ, as weights lie elsewhere in memory.
    assert np.abs(loaded.embed_images([image]) - read.embed_images([image])).max() < 1e-6
    assert np.abs(loaded.embed_texts(texts) - read.embed_texts(texts)).max() < 1e-6
    assert (loaded.logit_bias, loaded.architecture) == (read.logit_bias, read.architecture)
    with torch.no_grad():
        model.visual.conv1.weight.mul_(2)
    assert not np.allclose(clip.Encoder(model).embed_images([image]), read.embed_images([image]))
    model.visual.ln_post.register_forward_hook(lambda *_: None)
    with pytest.raises(InputError, match=r"visual\.ln_post was hooked"):
        clip.Encoder(model)


def test_a_network_without_a_checkpoints_pixels_and_words_is_no_encoder() -> None:
    with pytest.raises(InputError, match="without the pixels and the vocabulary of a checkpoint"):
        clip.Encoder(SigLIP(siglip.TINY))


@needs_int8
def test_int8_is_near_fp32(folder: Path, photos: Path) -> None:
    images = sorted(photos.iterdir())
    exact, rounded = clip.Encoder(folder), clip.Encoder(folder, precision="int8")
    rounded.calibrate(images)
    cosines = (exact.embed_images(images) * rounded.embed_images(images)).sum(axis=1)
    assert cosines.min() > 0.99
    assert cosines.min() < 1 - 1e-9  # something was rounded


def test_tune_measures_it_and_search_ranks_by_cosine(folder: Path, photos: Path, tmp_path: Path) -> None:
    report = tune(tune_job(source=photos, model=str(folder), threads=1, workers=1, images=PHOTOS))
    assert {row.precision for row in report.rows} == {"reference", *usable_precisions()[1:]}
    job = embed_job(source=photos, output=tmp_path / "out", model=str(folder), threads=1, workers=1)
    assert clip.embed(job).written == PHOTOS
    encoder, vectors = clip.Encoder(folder), clip.Store(tmp_path / "out").vectors()
    hits = clip.search(clip.SearchJob(output=tmp_path / "out", texts=("a cat",), k=PHOTOS)).hits
    scores = sorted((encoder.embed_texts(["a cat"]) @ vectors.T)[0], reverse=True)
    assert np.allclose([hit.score for hit in hits], scores, atol=1e-5)
