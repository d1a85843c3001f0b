"""clip.Encoder: images in every form and batches of every size give the vectors of the model itself."""

import copy
import hashlib
import io
import multiprocessing
import pickle
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from kit import checkpoints, formula
from PIL import EpsImagePlugin, Image

import clip
from clip.engine.devices import limit_threads
from clip.engine.quantize import Calibration
from clip.errors import DeviceError, ImageError, InputError, InputTypeError, TextTooLongError, UnknownModelError
from clip.parallel import available_cores
from clip.records import Failure
from clip.weights import releases

TOLERANCE = 1e-5  # of a vector's RMS; the order of summation differs between batches
IMAGES = [formula.picture(i, *size) for i, size in enumerate([(64, 48), (40, 90), (32, 32), (7, 9), (500, 333)])]


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
    images = torch.stack([preprocess(image) for image in IMAGES])
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
    raw, vectors = encoder.embed_images(IMAGES, normalize=False), encoder.embed_images(IMAGES)
    assert error(raw, reference[1]) < TOLERANCE
    assert error(vectors, unit(reference[1])) < TOLERANCE
    assert raw.dtype == vectors.dtype == np.float32
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-6
    assert np.abs(np.linalg.norm(raw, axis=1) - 1).min() > 1e-3


def test_an_image_has_one_vector_in_whatever_form_it_comes(encoder: clip.Encoder, tmp_path: Path) -> None:
    image = IMAGES[0]
    path = tmp_path / "a.png"
    path.write_bytes(png(image))
    vectors = encoder.embed_images([str(path), path, png(image), image, np.asarray(image)])
    assert vectors.shape == (5, encoder.dim)
    assert error(vectors, np.repeat(encoder.embed_images([image]), 5, axis=0)) < TOLERANCE


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_the_batch_size_does_not_show_in_the_vectors(
    weights_path: Path, reference: tuple[torch.Tensor, np.ndarray, clip.model.CLIP], batch_size: int
) -> None:
    images, features, _ = reference
    encoder = clip.Encoder(weights_path, batch_size=batch_size)
    assert error(encoder.embed_images(iter(IMAGES)), unit(features)) < TOLERANCE
    assert error(encoder.encode_image(images), features) < TOLERANCE


def test_no_images_and_no_texts_give_no_vectors(encoder: clip.Encoder) -> None:
    side = encoder.resolution_px
    assert encoder.embed_images([]).shape == (0, encoder.dim)
    assert encoder.embed_images([], normalize=False).dtype == np.float32
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
    assert error(taken.embed_images(IMAGES), encoder.embed_images(IMAGES)) < TOLERANCE
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
    first, again, other = (clip.Encoder("tiny", untrained=seed).embed_images(IMAGES) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert error(first, other) > 0.1
    assert torch.equal(torch.random.get_rng_state(), state)
    with pytest.raises(UnknownModelError, match="Pass a released name to draw its weights"):
        clip.Encoder("large", untrained=1)


@pytest.mark.parametrize(
    ("bad", "kind"),
    [
        (b"no image", ImageError),
        (b"", ImageError),
        (png(IMAGES[0])[:200], ImageError),
        ("missing.jpg", ImageError),
        (Path("/"), ImageError),
        (Image.new("1", (1, 300_000)), ImageError),  # its resized canvas would be gigabytes
        (np.zeros((4, 4, 3), np.float32), InputTypeError),
        (np.zeros((4, 4), np.uint8), InputTypeError),
        (7, InputTypeError),
    ],
    ids=["bytes", "nothing", "truncated", "missing", "folder", "canvas", "floats", "grey", "number"],
)
def test_an_image_that_cannot_be_read_is_named_by_its_place(bad: Any, kind: type, weights_path: Path) -> None:
    encoder = clip.Encoder(weights_path, batch_size=2)
    several = [IMAGES[0], IMAGES[1], bad, IMAGES[2]]
    for call in (encoder.embed_images, lambda images: list(encoder.embed_stream(images)), encoder._read_pixels):
        with pytest.raises(kind, match=r"^image 2: ") as caught:
            call(several)
        assert type(caught.value) is kind
        assert decoding_threads() == []


def decoding_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("clip-decode")]


def test_a_bad_image_is_a_row_of_nans_and_a_failure_that_says_where_it_failed(
    encoder: clip.Encoder, tmp_path: Path
) -> None:
    whole = png(IMAGES[0])
    paths = [tmp_path / name for name in ("missing.png", "text.png", "cut.png")]
    paths[1].write_bytes(b"no image")
    paths[2].write_bytes(whole[:200])
    images = [IMAGES[0], paths[0], str(paths[1]), paths[2], b"", whole[:200], 7, IMAGES[1]]
    vectors, failures = encoder.embed_images(images, on_error="none")
    good = encoder.embed_images([IMAGES[0], IMAGES[1]])
    assert error(vectors[[0, -1]], good) < TOLERANCE
    assert np.isnan(vectors[1:-1]).all()
    assert [(failure.id, failure.path, failure.stage, failure.error) for failure in failures] == [
        ("1", str(paths[0]), "read", "FileNotFoundError"),
        ("2", str(paths[1]), "open", "ImageError"),
        ("3", str(paths[2]), "decode", "OSError"),
        ("4", "", "open", "ImageError"),
        ("5", "", "decode", "OSError"),
        ("6", "", "open", "InputTypeError"),
    ]
    assert failures[1].message.startswith("starts with b'no image', expected a format that Pillow decodes")
    fast = clip.Encoder("sketch", decode="fast").embed_images(images, on_error="none")[1]
    assert [failure.stage for failure in fast] == [failure.stage for failure in failures]
    assert encoder.embed_images([b""], on_error="none", normalize=False)[0].shape == (1, encoder.dim)
    assert encoder.embed_images([], on_error="none")[1] == []


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_a_stream_yields_in_order_what_the_list_gives(weights_path: Path, batch_size: int) -> None:
    encoder = clip.Encoder(weights_path, batch_size=batch_size)
    images = [*IMAGES[:3], b"bad", *IMAGES[3:], b""]
    vectors, failures = encoder.embed_images(images, on_error="none")
    results = list(encoder.embed_stream(iter(images), on_error="none"))
    assert [result for result in results if isinstance(result, Failure)] == failures
    for result, vector in zip(results, vectors, strict=True):
        if not isinstance(result, Failure):
            assert result.base is None, "a view keeps its batch in memory"
            assert result.dtype == np.float32
            assert error(result[None], vector[None]) < TOLERANCE
    stream = encoder.embed_stream(images, normalize=False)
    raw = [next(stream) for _ in range(3)]
    assert error(raw, encoder.embed_images(IMAGES[:3], normalize=False)) < TOLERANCE
    with pytest.raises(ImageError, match="image 3"):
        next(stream)


def test_a_stream_takes_from_its_source_what_it_needs(weights_path: Path) -> None:
    pulled = 0
    encoder = clip.Encoder(weights_path, batch_size=2)

    def endless() -> Any:
        nonlocal pulled
        while True:
            pulled += 1
            yield IMAGES[0]

    stream = encoder.embed_stream(endless())
    assert pulled == 0
    assert len(list(islice(stream, 5))) == 5
    assert pulled <= 6 + 2 + available_cores() + 1
    del stream
    assert decoding_threads() == []


@pytest.mark.parametrize(
    ("call", "value", "message"),
    [
        (
            "embed_images",
            "a.jpg",
            r"images: found str, expected several images. Pass a list; \[image\] is a list of one",
        ),
        ("embed_images", Path("a.jpg"), "images: found PosixPath, expected several images"),
        ("embed_images", b"a", "images: found bytes, expected several images"),
        ("embed_images", IMAGES[0], "images: found Image, expected several images"),
        ("embed_images", np.zeros((4, 4, 3), np.uint8), "images: found one array, expected several images"),
        ("embed_images", 3, "images: found int, expected several images"),
        ("embed_images", torch.zeros(1, 3, 4, 4), "images: found Tensor, expected images. Call encode_image"),
        ("embed_stream", "a.jpg", "images: found str, expected several images"),
        ("embed_texts", torch.zeros(1, 77), "texts: found Tensor, expected texts. Call encode_text"),
        ("embed_texts", 3, "texts: found int, expected str or a list of str"),
        ("embed_texts", ["a", 3], "text 1: found int, expected str"),
        ("encode_text", 3, "texts: found int, expected str or a list of str"),
        ("encode_image", "a.jpg", r"image: found str, expected Tensor. Call embed_images\(\[image\]\)"),
        ("encode_image", IMAGES[0], "image: found Image, expected Tensor. Call embed_images"),
        (
            "encode_image",
            np.zeros((1, 3, 4, 4), np.float32),
            "image: found ndarray, .* or make a tensor of a preprocessed",
        ),
        ("encode_pixels", [IMAGES[0]], "pixels: found list, expected ndarray. Call encode_image for a tensor"),
        ("encode_tokens", torch.zeros(1, 77), "tokens: found Tensor, expected ndarray. Call encode_text for a tensor"),
    ],
)
def test_another_type_is_named_with_the_call_for_it(encoder: clip.Encoder, call: str, value: Any, message: str) -> None:
    with pytest.raises(InputTypeError, match=message):
        getattr(encoder, call)(value)


def test_another_word_for_on_error_is_refused(encoder: clip.Encoder) -> None:
    for call in (encoder.embed_images, encoder.embed_stream):
        with pytest.raises(InputError, match="on_error: found 'skip', expected one of"):
            call([], on_error="skip")  # type: ignore[call-overload]  # pyright: ignore


def test_texts_have_unit_vectors_and_a_str_is_one_text(encoder: clip.Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [*formula.TEXTS, ""]
    vectors = encoder.embed_texts(texts)
    assert vectors.dtype == np.float32
    assert error(vectors, unit(encoder.encode_text(texts).numpy())) < TOLERANCE
    assert error(encoder.embed_texts(text for text in texts), vectors) < TOLERANCE
    assert error(encoder.embed_texts(texts[0]), vectors[:1]) < TOLERANCE
    assert encoder.embed_texts([]).shape == (0, encoder.dim)
    with pytest.raises(TextTooLongError, match="text 1 of 2"):
        encoder.embed_texts(["a", "a " * 100])
    monkeypatch.setattr(encoder, "encode_text", lambda texts: torch.zeros(len(texts), encoder.dim))
    with pytest.raises(InputError, match=r"text 0: the model gave a vector of norm 0\.0"):
        encoder.embed_texts(texts)


def test_an_encoder_says_which_it_is_and_has_the_transform_of_its_model(weights_path: Path) -> None:
    encoder = clip.Encoder(weights_path, device="cpu")
    assert repr(encoder) == f"Encoder({str(weights_path)!r}, device='cpu', precision='reference', dim={encoder.dim})"
    _, preprocess = clip.load(str(weights_path), device="cpu")
    assert torch.equal(encoder.preprocess(IMAGES[0]), preprocess(IMAGES[0]))
    assert pickle.loads(pickle.dumps(encoder.preprocess))(IMAGES[0]).shape == (3, *[encoder.resolution_px] * 2)
    assert encoder.embed == encoder.embed_images
    assert (encoder.needs_calibration, encoder.computed_in) == (False, "fp32")


def test_a_pickled_encoder_is_made_again_by_its_path_and_settings(weights_path: Path) -> None:
    encoder = clip.Encoder(weights_path, device="cpu", batch_size=2, threads=1, decode="fast")
    expected = encoder.embed_images(IMAGES)
    pickled = pickle.dumps(encoder)
    assert len(pickled) < 1000, "graphs and weights stay at home"
    again = pickle.loads(pickled)
    assert (again.batch_size, again.decode, again.source) == (2, "fast", encoder.source)
    assert np.array_equal(copy.copy(encoder).embed_images(IMAGES), expected)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert np.array_equal(pool.submit(encoder.embed_images, IMAGES).result(), expected)


def test_untrained_weights_are_pickled_by_their_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    release = releases.Release("tiny.pt", "", 0, 0, 0.0, formula.TINY["tiny-vit"], ())
    monkeypatch.setitem(releases.RELEASES, "tiny", release)
    encoder = clip.Encoder("tiny", untrained=3)
    again = pickle.loads(pickle.dumps(encoder))
    assert np.array_equal(again.embed_images(IMAGES), encoder.embed_images(IMAGES))


def test_an_encoder_of_a_loaded_model_or_a_calibrated_one_says_what_to_do_instead_of_pickling(
    weights_path: Path, reference: tuple[torch.Tensor, np.ndarray, clip.model.CLIP]
) -> None:
    with pytest.raises(
        InputTypeError, match=r"made of a loaded model cannot be pickled. Save the weights with torch.save"
    ):
        pickle.dumps(clip.Encoder(reference[2]))
    encoder = clip.Encoder(weights_path)
    encoder.calibration = Calibration(np.zeros((1, 4, 4, 3), np.uint8))
    with pytest.raises(InputTypeError, match=r"calibrated cannot be pickled\. Pickle it before"):
        pickle.dumps(encoder)


def test_no_program_is_started_for_a_image(
    encoder: clip.Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_args, **_kwargs: pytest.fail("Ghostscript was started"))
    path = tmp_path / "a.eps"
    IMAGES[0].save(path)
    for form in (path, path.read_bytes()):
        with pytest.raises(ImageError, match="image 0"):
            encoder.embed_images([form])


def test_images_are_taken_as_they_are_needed(weights_path: Path) -> None:
    pulled = 0
    encoder = clip.Encoder(weights_path, batch_size=2)

    def endless() -> Any:
        nonlocal pulled
        while True:
            pulled += 1
            yield IMAGES[0] if pulled <= 5 else b"bad"

    with pytest.raises(ImageError, match="image 5"):
        encoder.embed_images(endless())
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
    with pytest.raises(ImageError, match="image 1: the model gave a vector of norm inf, expected a finite one above 0"):
        encoder.embed_images(IMAGES[:3])
    vectors, failures = encoder.embed_images(IMAGES[:3], on_error="none")
    assert np.isnan(vectors[1]).all()
    assert np.isfinite(vectors[[0, 2]]).all()
    assert [(failure.id, failure.stage, failure.error) for failure in failures] == [("1", "encode", "ImageError")]
    assert encoder.embed_images(IMAGES[:3], normalize=False).shape == (3, encoder.dim)


@pytest.mark.parametrize("device", ["cuda:99", "warp", "cpu:x", ""])
def test_a_device_that_is_not_there_is_refused_and_those_that_are_get_named(weights_path: Path, device: str) -> None:
    with pytest.raises(DeviceError, match=rf"(?s)device '{device}'.*expected one of \['cpu'"):
        clip.Encoder(weights_path, device=device)


def test_threads_may_share_an_encoder_from_its_first_call_on(weights_path: Path, encoder: clip.Encoder) -> None:
    shared = clip.Encoder(weights_path, batch_size=2)
    expected, texts = encoder.embed_images(IMAGES), encoder.embed_texts(formula.TEXTS)
    images = torch.stack([encoder.preprocess(image) for image in IMAGES])
    features = encoder.encode_image(images)

    def call(number: int) -> None:
        if number % 4 == 0:
            assert error(shared.embed_texts(formula.TEXTS), texts) < TOLERANCE
        elif number % 4 == 1:
            assert error(shared.encode_image(images), features) < TOLERANCE
        elif number % 4 == 2:
            assert error(list(shared.embed_stream(IMAGES)), expected) < TOLERANCE
        else:
            assert error(shared.embed_images(IMAGES), expected) < TOLERANCE

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(call, range(16)))


def test_torchs_default_dtype_does_not_show_in_the_vectors(weights_path: Path, encoder: clip.Encoder) -> None:
    expected = encoder.embed_images(IMAGES), encoder.embed_texts(formula.TEXTS)
    images = torch.stack([encoder.preprocess(image) for image in IMAGES])
    features = encoder.encode_image(images)
    torch.set_default_dtype(torch.float64)
    try:
        other = clip.Encoder(weights_path)
        assert np.array_equal(other.embed_images(IMAGES), expected[0])
        assert np.array_equal(other.embed_texts(formula.TEXTS), expected[1])
        found = other.encode_image(images)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype == torch.float32
    assert torch.equal(found, features)
    assert other.computed_in == "fp32"


def test_a_loaded_model_of_doubles_gives_the_vectors_of_its_floats(
    encoder: clip.Encoder, reference: tuple[torch.Tensor, np.ndarray, clip.model.CLIP]
) -> None:
    doubles = clip.Encoder(copy.deepcopy(reference[2]).double())
    assert error(doubles.embed_images(IMAGES), encoder.embed_images(IMAGES)) < TOLERANCE
    assert error(doubles.embed_texts(formula.TEXTS), encoder.embed_texts(formula.TEXTS)) < TOLERANCE


def test_max_pixels_is_the_limit_of_encoded_images_instead_of_the_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = checkpoints.write(tmp_path, texts=False)
    images: list[Any] = []
    for kind in ("PNG", "WEBP", "TIFF"):
        formula.picture(0, 64, 48).save(tmp_path / f"a.{kind.lower()}")
        images += [tmp_path / f"a.{kind.lower()}", (tmp_path / f"a.{kind.lower()}").read_bytes()]
    expected = clip.Encoder(str(weights), device="cpu", threads=1).embed_images(images)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for decode in cast("list[Any]", ["exact", "fast"]):
        above = clip.Encoder(str(weights), device="cpu", threads=1, decode=decode, max_pixels=64 * 48)
        assert np.abs(above.embed_images(images) - expected).max() < 0.05
        assert pickle.loads(pickle.dumps(above)).max_pixels == 64 * 48
        below = clip.Encoder(str(weights), device="cpu", threads=1, decode=decode, max_pixels=64 * 48 - 1)
        vectors, failures = below.embed_images(images, on_error="none")
        assert len(failures) == len(images)
        assert all("64 x 48 px, expected at most 3,071 pixels. Shrink it, or raise" in one.message for one in failures)
        assert np.isnan(vectors).all()
    with pytest.raises(ImageError, match="MAX_IMAGE_PIXELS"):
        clip.Encoder(str(weights), device="cpu", threads=1).embed_images(images)
    with pytest.raises(InputError, match="max_pixels: found 0"):
        clip.Encoder(str(weights), device="cpu", max_pixels=0)
