"""clip.Encoder: images in every form and batches of every size give the vectors of the model itself."""

import hashlib
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kit import checkpoints, formula
from PIL import EpsImagePlugin, Image

import clip
from clip.engine.devices import limit_threads
from clip.errors import DeviceError, ImageError, InputError, InputTypeError, UnknownModelError
from clip.parallel import available_cores
from clip.weights import releases

TOLERANCE = 1e-5  # of a vector's RMS; the order of summation differs between batches
PICTURES = [formula.picture(i, *size) for i, size in enumerate([(64, 48), (40, 90), (32, 32), (7, 9), (500, 333)])]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Networks so small gain nothing from more."""
    with limit_threads(1):
        yield


@pytest.fixture(scope="module", params=["tiny-vit", "tiny-rn"])
def weights_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.write(tmp_path_factory.mktemp("weights"), request.param)


@pytest.fixture(scope="module")
def encoder(weights_path: Path) -> clip.Encoder:
    return clip.Encoder(weights_path)


@pytest.fixture(scope="module")
def reference(weights_path: Path) -> tuple[torch.Tensor, np.ndarray, clip.model.CLIP]:
    """What the drop-in gives, image by image: inputs (N, 3, R, R), features (N, D), and the model."""
    model, preprocess = clip.load(str(weights_path))
    images = torch.stack([preprocess(image) for image in PICTURES])
    with torch.no_grad():
        return images, torch.cat([model.encode_image(image[None]) for image in images]).numpy(), model


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()


def error(found: Any, expected: Any) -> float:
    """The largest difference, in units of the expected vector's RMS."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    return float((np.abs(found - expected) / np.sqrt((expected**2).mean(axis=1, keepdims=True))).max())


def unit(features: np.ndarray) -> np.ndarray:
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def test_raw_vectors_are_the_features_of_the_model_and_the_others_their_directions(
    encoder: clip.Encoder, reference: tuple[torch.Tensor, np.ndarray, clip.model.CLIP]
) -> None:
    raw, vectors = encoder.embed(PICTURES, normalize=False), encoder.embed(PICTURES)
    assert error(raw, reference[1]) < TOLERANCE
    assert error(vectors, unit(reference[1])) < TOLERANCE
    assert raw.dtype == vectors.dtype == np.float32
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-6
    assert np.abs(np.linalg.norm(raw, axis=1) - 1).min() > 1e-3


def test_a_picture_has_one_vector_in_whatever_form_it_comes(encoder: clip.Encoder, tmp_path: Path) -> None:
    image = PICTURES[0]
    path = tmp_path / "a.png"
    path.write_bytes(png(image))
    vectors = encoder.embed([str(path), path, png(image), image, np.asarray(image)])
    assert vectors.shape == (5, encoder.dim)
    assert error(vectors, np.repeat(encoder.embed([image]), 5, axis=0)) < TOLERANCE


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_the_batch_size_does_not_show_in_the_vectors(
    weights_path: Path, reference: tuple[torch.Tensor, np.ndarray, clip.model.CLIP], batch_size: int
) -> None:
    images, features, _ = reference
    encoder = clip.Encoder(weights_path, batch_size=batch_size)
    assert error(encoder.embed(iter(PICTURES)), unit(features)) < TOLERANCE
    assert error(encoder.encode_image(images), features) < TOLERANCE


def test_no_pictures_and_no_texts_give_no_vectors(encoder: clip.Encoder) -> None:
    side = encoder.resolution_px
    assert encoder.embed([]).shape == (0, encoder.dim)
    assert encoder.embed([], normalize=False).dtype == np.float32
    assert encoder.encode_image(torch.empty(0, 3, side, side)).shape == (0, encoder.dim)
    assert encoder.encode_text([]).shape == (0, encoder.dim)


def test_texts_come_as_one_as_several_or_as_tokens(
    encoder: clip.Encoder, reference: tuple[torch.Tensor, np.ndarray, clip.model.CLIP], monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [*formula.TEXTS, "", "a"]
    tokens = clip.tokenize(texts)
    with torch.no_grad():
        expected = reference[2].encode_text(tokens)
    monkeypatch.setattr(encoder._engine, "_text_batch", 3)
    for form in (texts, tuple(texts), (text for text in texts), tokens):
        assert error(encoder.encode_text(form), expected) < TOLERANCE
    assert error(encoder.encode_text(texts[0]), expected[:1]) < TOLERANCE


def test_a_text_that_is_too_long_is_refused_by_its_place(encoder: clip.Encoder) -> None:
    with pytest.raises(RuntimeError, match="text 1 of 2"):
        encoder.encode_text(["a", "a " * 100])


def test_a_loaded_model_is_taken_as_it_is(
    encoder: clip.Encoder, reference: tuple[torch.Tensor, np.ndarray, clip.model.CLIP]
) -> None:
    taken = clip.Encoder(reference[2])
    assert error(taken.embed(PICTURES), encoder.embed(PICTURES)) < TOLERANCE
    assert (taken.dim, taken.resolution_px, taken.device) == (encoder.dim, encoder.resolution_px, encoder.device)
    assert taken.architecture == encoder.architecture
    assert taken.weights_sha256 is None


def test_the_weights_are_named_by_the_hash_of_their_file(encoder: clip.Encoder, weights_path: Path) -> None:
    assert encoder.weights_sha256 == hashlib.sha256(weights_path.read_bytes()).hexdigest()
    assert encoder.source == str(weights_path)


def test_untrained_weights_are_those_of_their_seed_and_draw_nothing_from_the_users_generator(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    release = releases.Release("tiny.pt", "", 0, 0, 0.0, formula.TINY["tiny-vit"], ())
    monkeypatch.setitem(releases.RELEASES, "tiny", release)
    state = torch.random.get_rng_state()
    first, again, other = (clip.Encoder("tiny", untrained=seed).embed(PICTURES) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert error(first, other) > 0.1
    assert torch.equal(torch.random.get_rng_state(), state)
    with pytest.raises(UnknownModelError, match="Untrained weights need a released name"):
        clip.Encoder("large", untrained=1)


@pytest.mark.parametrize(
    ("bad", "kind"),
    [
        (b"no image", ImageError),
        (b"", ImageError),
        (png(PICTURES[0])[:200], ImageError),
        ("missing.jpg", ImageError),
        (Path("/"), ImageError),
        (Image.new("1", (1, 300_000)), ImageError),  # its resized canvas would be gigabytes
        (np.zeros((4, 4, 3), np.float32), InputTypeError),
        (np.zeros((4, 4), np.uint8), InputTypeError),
        (7, InputTypeError),
    ],
    ids=["bytes", "nothing", "truncated", "missing", "folder", "canvas", "floats", "grey", "number"],
)
def test_a_picture_that_cannot_be_read_is_named_by_its_place(bad: Any, kind: type, weights_path: Path) -> None:
    with pytest.raises(kind, match=r"^image 2: ") as caught:
        clip.Encoder(weights_path, batch_size=2).embed([PICTURES[0], PICTURES[1], bad, PICTURES[2]])
    assert type(caught.value) is kind


def test_no_program_is_started_for_a_picture(
    encoder: clip.Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_args, **_kwargs: pytest.fail("Ghostscript was started"))
    path = tmp_path / "a.eps"
    PICTURES[0].save(path)
    for form in (path, path.read_bytes()):
        with pytest.raises(ImageError, match="image 0"):
            encoder.embed([form])


def test_pictures_are_taken_as_they_are_needed(weights_path: Path) -> None:
    pulled = 0
    encoder = clip.Encoder(weights_path, batch_size=2)

    def endless() -> Any:
        nonlocal pulled
        while True:
            pulled += 1
            yield PICTURES[0] if pulled <= 5 else b"bad"

    with pytest.raises(ImageError, match="image 5"):
        encoder.embed(endless())
    assert pulled <= 6 + 2 + available_cores() + 1


def test_pixels_may_be_mirrored_or_read_only_but_not_floats(encoder: clip.Encoder) -> None:
    side = encoder.resolution_px
    pixels = np.random.default_rng(0).integers(0, 256, (3, side, side, 3), np.uint8)
    expected = encoder.encode_pixels(pixels)
    still = pixels.copy()
    still.flags.writeable = False
    assert error(encoder.encode_pixels(still), expected) < TOLERANCE
    assert error(encoder.encode_pixels(pixels[::-1]), expected[::-1]) < TOLERANCE
    with pytest.raises(InputError, match="pixels: found float32, expected uint8"):
        encoder.encode_pixels(pixels.astype(np.float32))


@pytest.mark.parametrize("value", [0, -1, 2.5, "Auto"])
@pytest.mark.parametrize("name", ["batch_size", "threads"])
def test_a_number_that_makes_no_sense_is_refused(weights_path: Path, name: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"{name}: found {value!r}, expected at least 1"):
        clip.Encoder(weights_path, **{name: value})


def test_a_vector_that_cannot_be_normalised_is_named(encoder: clip.Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    features = np.ones((3, encoder.dim), np.float32)
    features[1, 0] = np.inf
    monkeypatch.setattr(encoder, "encode_pixels", lambda _: features)
    with pytest.raises(ImageError, match="image 1: the model gave a vector of norm inf"):
        encoder.embed(PICTURES[:3])
    assert encoder.embed(PICTURES[:3], normalize=False).shape == (3, encoder.dim)


@pytest.mark.parametrize("device", ["cuda:99", "warp", "cpu:x", ""])
def test_a_device_that_is_not_there_is_refused_and_those_that_are_get_named(weights_path: Path, device: str) -> None:
    with pytest.raises(DeviceError, match=rf"(?s)device '{device}'.*expected one of \['cpu'"):
        clip.Encoder(weights_path, device=device)


def test_threads_may_share_an_encoder(encoder: clip.Encoder) -> None:
    expected = encoder.embed(PICTURES)
    with ThreadPoolExecutor(4) as pool:
        for vectors in pool.map(encoder.embed, [PICTURES] * 12):
            assert error(vectors, expected) < TOLERANCE
