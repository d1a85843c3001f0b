"""Numbers of openai/CLIP itself, made by its code at d05afc4 on weights and images by formula."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from kit import GOLDEN, formula, windows

import clip
from clip.clip import load_model
from clip.engine.devices import make_backend, usable_precisions
from clip.engine.engine import Engine
from clip.errors import TextTooLongError
from clip.images.preprocess import make_preprocess
from clip.images.transform import to_pixels
from clip.jobs.options import Precision
from clip.network.records import Architecture, Checkpoint, PreprocessSettings

# Of the row's RMS. The reference run twice differs by about 1e-5 on ResNets: the order of summation.
TOLERANCE = 5e-5
LEAN_TOLERANCE, LEAN_RESNET_TOLERANCE = 2e-5, 1e-4
BF16_COSINE = 0.9995


def table(name: str) -> Any:
    return json.loads((GOLDEN / name).read_text())


def image_row_id(row: dict[str, Any]) -> str:
    return f"{row['picture']}-{row['size'][0]}x{row['size'][1]}-{row['mode']}-{row['resolution']}"


@dataclass(frozen=True)
class Case:
    """A row of the table, with the weights and the inputs it was made on."""

    architecture: Architecture
    settings: PreprocessSettings
    state_dict: dict[str, torch.Tensor]
    images: torch.Tensor  # (2, 3, R, R)
    pixels: torch.Tensor  # (2, R, R, 3)
    tokens: torch.Tensor
    row: dict[str, Any]

    def engine(self, precision: Precision) -> Engine:
        return Engine(self.state_dict, self.architecture, self.settings, make_backend(torch.device("cpu"), precision))


@pytest.fixture(scope="module", params=list(formula.ARCHITECTURES))
def case(request: pytest.FixtureRequest) -> Case:
    architecture = formula.ARCHITECTURES[request.param]
    settings = PreprocessSettings(architecture.image_resolution)
    images = [formula.picture(0, 640, 427), formula.picture(1, 333, 500)]
    return Case(
        architecture,
        settings,
        formula.state_dict(architecture),
        torch.stack([make_preprocess(settings)(image) for image in images]),
        torch.from_numpy(np.stack([to_pixels(image, settings) for image in images])),
        clip.tokenize(formula.TEXTS),
        table("features.json")["features"][request.param],
    )


def worst_error(found: torch.Tensor, expected: list[list[float]]) -> float:
    wanted = torch.tensor(expected, dtype=torch.float64)
    rms = wanted.square().mean(dim=1).sqrt()
    return float(((found.double() - wanted).abs().amax(dim=1) / rms).max())


def cosines(found: torch.Tensor, expected: list[list[float]]) -> torch.Tensor:
    return torch.cosine_similarity(found.double(), torch.tensor(expected, dtype=torch.float64))


def test_features_equal_those_of_openai_eager_and_on_the_fast_path(case: Case) -> None:
    checkpoint = Checkpoint(case.architecture, dict(case.state_dict), case.settings, source="formula")
    model = load_model(checkpoint, torch.device("cpu"))
    of_images = LEAN_RESNET_TOLERANCE if isinstance(case.architecture.vision_layers, tuple) else LEAN_TOLERANCE
    for model.fast, images, texts in ((False, TOLERANCE, TOLERANCE), (True, of_images, LEAN_TOLERANCE)):
        with torch.no_grad():
            image_features, text_features = model.encode_image(case.images), model.encode_text(case.tokens)
            paths = {model.fast_path("image"), model.fast_path("text")}
        assert paths == ({"fast"} if model.fast else {"eager: model.fast is False"})
        assert worst_error(image_features, case.row["image_features"]) < images
        assert worst_error(text_features, case.row["text_features"]) < texts
        assert image_features.dtype == text_features.dtype == torch.float32


def test_lean_features_of_bytes_equal_those_of_openai(case: Case) -> None:
    of_images = LEAN_RESNET_TOLERANCE if isinstance(case.architecture.vision_layers, tuple) else LEAN_TOLERANCE
    features = case.engine("reference").encode_pixels(case.pixels)
    assert worst_error(features, case.row["image_features"]) < of_images


@pytest.mark.skipif("bf16" not in usable_precisions(torch.device("cpu")), reason="this CPU has no bf16")
def test_lean_features_in_bf16_point_where_those_of_openai_do(case: Case) -> None:
    engine = case.engine("bf16")
    found = [engine.encode_pixels(case.pixels), engine.encode_text(case.tokens)]
    for features, expected in zip(found, ("image_features", "text_features"), strict=True):
        assert cosines(features, case.row[expected]).min() >= BF16_COSINE
        assert worst_error(features, case.row[expected]) > TOLERANCE, "this is no bf16"


@pytest.mark.parametrize("row", table("preprocess.json")["rows"], ids=image_row_id)
def test_pixels_equal_those_of_openai_bit_for_bit(row: dict[str, Any]) -> None:
    image = formula.picture_in_mode(row["picture"], *row["size"], row["mode"])
    assert hashlib.sha256(image.tobytes()).hexdigest() == row["sha256_source"], "the image was rebuilt wrongly"
    preprocess = clip.clip._transform(row["resolution"])
    step = image
    for transform in preprocess.transforms[:3]:
        step = transform(step)
    pixels = np.asarray(step)
    assert int(pixels.sum()) == row["sum_uint8"]
    assert hashlib.sha256(pixels.tobytes()).hexdigest() == row["sha256_uint8_hwc"]
    for transform in (preprocess, clip.clip._transform(row["resolution"])):  # by its steps, and before they are made
        assert hashlib.sha256(transform(image).numpy().tobytes()).hexdigest() == row["sha256_float32_chw"]


@pytest.mark.parametrize(
    "row", [row for row in table("preprocess.json")["rows"] if row["mode"] in ("RGB", "L")], ids=image_row_id
)
def test_pixels_that_the_device_resizes_equal_those_of_openai_bit_for_bit(row: dict[str, Any]) -> None:
    image = formula.picture_in_mode(row["picture"], *row["size"], row["mode"])
    (pixels,) = windows.resize([image], PreprocessSettings(row["resolution"]))
    assert hashlib.sha256(pixels.tobytes()).hexdigest() == row["sha256_uint8_hwc"]


@pytest.mark.parametrize("row", table("tokens.json")["rows"], ids=lambda row: repr(row["text"][:30]))
def test_tokens_equal_those_of_openai(row: dict[str, Any]) -> None:
    tokenizer = clip.clip._tokenizer
    assert tokenizer.encode(row["text"]) == row["content"]
    assert clip.tokenize(row["text"], truncate=True).tolist() == [row["truncated"]]
    if "error" in row:
        with pytest.raises(TextTooLongError):
            clip.tokenize(row["text"])
    else:
        assert clip.tokenize([row["text"]]).tolist() == [row["row"]]
    if "decoded" in row:
        assert tokenizer.decode(row["content"]) == row["decoded"]
