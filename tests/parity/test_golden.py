"""Numbers of openai/CLIP itself, made by its code at d05afc4 on weights and pictures by formula."""

import hashlib
import json
from pathlib import Path
from typing import Any

import formula
import numpy as np
import pytest
import torch

import clip
from clip.engine import load_model
from clip.errors import TextTooLongError
from clip.items import Checkpoint, PreprocessSettings

GOLDEN = Path(__file__).parent.parent / "golden"
# Of the row's RMS. The reference run twice differs by about 1e-5 on ResNets: the order of summation.
TOLERANCE = 5e-5


def table(name: str) -> Any:
    return json.loads((GOLDEN / name).read_text())


def picture_row_id(row: dict[str, Any]) -> str:
    return f"{row['picture']}-{row['size'][0]}x{row['size'][1]}-{row['mode']}-{row['resolution']}"


def load(name: str) -> clip.model.CLIP:
    architecture = formula.ARCHITECTURES[name]
    settings = PreprocessSettings(architecture.image_resolution)
    checkpoint = Checkpoint(architecture, formula.state_dict(architecture), settings, source="formula")
    return load_model(checkpoint, torch.device("cpu"))


def worst_error(found: torch.Tensor, expected: list[list[float]]) -> float:
    wanted = torch.tensor(expected, dtype=torch.float64)
    rms = wanted.square().mean(dim=1).sqrt()
    return float(((found.double() - wanted).abs().amax(dim=1) / rms).max())


@pytest.mark.parametrize("name", list(formula.ARCHITECTURES))
def test_features_equal_those_of_openai(name: str) -> None:
    row = table("features.json")["features"][name]
    model = load(name)
    preprocess = clip.clip._transform(row["resolution"])
    images = torch.stack([preprocess(formula.picture(0, 640, 427)), preprocess(formula.picture(1, 333, 500))])
    with torch.no_grad():
        image_features = model.encode_image(images)
        text_features = model.encode_text(clip.tokenize(formula.TEXTS))
    assert worst_error(image_features, row["image_features"]) < TOLERANCE
    assert worst_error(text_features, row["text_features"]) < TOLERANCE
    assert image_features.dtype == text_features.dtype == torch.float32


@pytest.mark.parametrize("row", table("preprocess.json")["rows"], ids=picture_row_id)
def test_pixels_equal_those_of_openai_bit_for_bit(row: dict[str, Any]) -> None:
    image = formula.picture_in_mode(row["picture"], *row["size"], row["mode"])
    assert hashlib.sha256(image.tobytes()).hexdigest() == row["sha256_source"], "the picture was rebuilt wrongly"
    preprocess = clip.clip._transform(row["resolution"])
    step = image
    for transform in preprocess.transforms[:3]:
        step = transform(step)
    pixels = np.asarray(step)
    assert int(pixels.sum()) == row["sum_uint8"]
    assert hashlib.sha256(pixels.tobytes()).hexdigest() == row["sha256_uint8_hwc"]
    assert hashlib.sha256(preprocess(image).numpy().tobytes()).hexdigest() == row["sha256_float32_chw"]


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
