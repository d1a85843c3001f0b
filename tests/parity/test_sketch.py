"""What the sketch model understands, from files to vectors, in every precision and decode mode of this machine.

Gross mistakes are made here on purpose: each must turn the figures red. Fine ones are caught by stored features.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import get_args

import measuring
import numpy as np
import pytest
import torch
from measuring import EncodeTexts, Figures, World
from PIL import Image
from torch import nn

import clip
from clip.engine.devices import usable_precisions
from clip.images.decode import read_pixels
from clip.jobs.options import PixelMode, Precision
from clip.model import CLIP

GOLDEN = Path(__file__).parent.parent / "golden" / "sketch"
FLOOR = Figures(recall_1=0.997, recall_5=0.999, recall_1_among_decoys=0.91, shape=0.995, colour=0.995)
FLOOR_UNSEEN = Figures(recall_1=0.95, recall_5=0.99, recall_1_among_decoys=0.85, shape=0.95, colour=0.99)
CHANCE = 0.01  # of recall@1 among 1,000: ten times what guessing finds
NEAR = 1e-4  # of a row's RMS, as for every ResNet


def reached(figures: Figures, floor: Figures) -> bool:
    return all(vars(figures)[name] >= least for name, least in vars(floor).items())


def encoder_for(precision: Precision, decode: PixelMode) -> clip.Encoder:
    encoder = clip.Encoder("sketch", device="cpu", precision=precision, decode=decode)
    if encoder.needs_calibration:
        encoder.calibrate(measuring.world("to quantise by", scenes=256, singles=0).images)
    return encoder


def texts_by(encoder: clip.Encoder) -> EncodeTexts:
    return lambda texts: encoder.encode_text(texts).float().numpy()


def seen() -> World:
    return measuring.world("tests")


def saved(world: World, folder: Path) -> list[Path]:
    """The images as files, JPEGs and PNGs in turns."""
    paths: list[Path] = []
    for number, image in enumerate(world.images):
        paths.append(folder / f"{number:04}.{'png' if number % 2 else 'jpg'}")
        image.save(paths[-1], **({} if number % 2 else {"quality": 90}))
    return paths


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return saved(seen(), tmp_path_factory.mktemp("scenes"))


# Without fp32, as that is what "reference" is here: test_stored_features_hold has both.
PRECISIONS = [p for p in get_args(Precision) if p in ("reference", *usable_precisions(torch.device("cpu")))]
PRECISIONS.remove("fp32")


@pytest.mark.parametrize("decode", ["exact", "fast"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_captions_find_their_images(precision: Precision, decode: PixelMode, paths: list[Path]) -> None:
    encoder = encoder_for(precision, decode)
    world = seen()

    def of_images(images: list[Image.Image]) -> np.ndarray:
        return encoder.embed_images(paths if images is world.images else images)

    figures = measuring.measure(world, of_images, texts_by(encoder))
    assert reached(figures, FLOOR), figures


def test_pairs_of_colour_and_shape_that_were_never_drawn_are_found_too() -> None:
    encoder = clip.Encoder("sketch", device="cpu")
    figures = measuring.measure(measuring.world("tests", unseen=True), encoder.embed_images, texts_by(encoder))
    assert reached(figures, FLOOR_UNSEEN), figures


@cache
def inputs() -> dict[int, torch.Tensor]:
    """What the drop-in model reads of each list of images, by the list's identity."""
    _, preprocess = clip.load("sketch", device="cpu")
    lists = (seen().images, seen().decoys, seen().singles)
    return {id(images): torch.stack(list(map(preprocess, images))) for images in lists}


def eager(model: CLIP, change: Callable[[torch.Tensor], torch.Tensor] = lambda x: x) -> Figures:
    """The figures of the drop-in model, with its input changed."""

    def of_images(images: list[Image.Image]) -> np.ndarray:
        with torch.no_grad():
            return model.encode_image(change(inputs()[id(images)])).numpy()

    def of_texts(texts: list[str]) -> np.ndarray:
        with torch.no_grad():
            return model.encode_text(model.tokenize(texts)).numpy()

    return measuring.measure(seen(), of_images, of_texts)


def test_the_drop_in_model_finds_them() -> None:
    model, _ = clip.load("sketch", device="cpu")
    assert reached(eager(model), FLOOR)


def test_shuffled_captions_find_what_chance_finds() -> None:
    encoder = clip.Encoder("sketch", device="cpu")
    order = np.random.default_rng(0).permutation(measuring.SCENES)
    figures = measuring.measure(seen(), encoder.embed_images, texts_by(encoder), targets=order.tolist())
    assert figures.recall_1 <= CHANCE


def activation_last(model: CLIP) -> None:
    """In the text tower's MLPs: after the second matrix instead of before it."""
    for block in model.transformer.blocks():
        c_fc, gelu, c_proj = block.mlp
        block.mlp = nn.Sequential(c_fc, c_proj, gelu)


def activation_before_the_norm(model: CLIP) -> None:
    """In the residual blocks of the image tower."""
    for layer in (model.visual.layer1, model.visual.layer2, model.visual.layer3, model.visual.layer4):
        for block in layer:
            block.bn1, block.relu1 = block.relu1, block.bn1
            block.bn2, block.relu2 = block.relu2, block.bn2


def no_positions_of_words(model: CLIP) -> None:
    model.positional_embedding.data.zero_()


def no_positions_of_pixels(model: CLIP) -> None:
    model.visual.attnpool.positional_embedding.data.zero_()


def no_causal_mask(model: CLIP) -> None:
    for block in model.transformer.blocks():
        block.attn_mask = None


# With the least that each costs. Without positions, what a word or a pixel can see still tells much of the order.
@pytest.mark.parametrize(
    ("break_it", "at_most"),
    [
        (activation_last, {"recall_1": 0.75, "colour": 0.95}),
        (activation_before_the_norm, {"recall_1": 0.6, "shape": 0.5}),
        (no_positions_of_words, {"recall_1": 0.99}),
        (no_positions_of_pixels, {"recall_1": 0.995}),
        (no_causal_mask, {"recall_1": 0.2}),
    ],
)
def test_a_gross_mistake_in_the_network_is_seen(break_it: Callable[[CLIP], None], at_most: dict[str, float]) -> None:
    model, _ = clip.load("sketch", device="cpu")
    break_it(model)
    figures = eager(model)
    assert all(vars(figures)[name] <= most < vars(FLOOR)[name] for name, most in at_most.items()), figures


@pytest.mark.parametrize(
    ("change", "at_most"),
    [
        pytest.param(lambda x: x.flip(1), {"recall_1": 0.6, "colour": 0.6}, id="channels swapped"),
        pytest.param(lambda x: x.flip(3), {"recall_1": 0.9}, id="mirrored"),
        pytest.param(lambda x: x.transpose(2, 3), {"recall_1": 0.7, "shape": 0.95}, id="rows and columns exchanged"),
        pytest.param(lambda x: x * 255, {"recall_1": 0.3, "shape": 0.5, "colour": 0.5}, id="not scaled"),
        pytest.param(lambda x: x.roll(1, dims=0), {"recall_1": CHANCE, "shape": 0.3}, id="the neighbour's image"),
    ],
)
def test_a_gross_mistake_with_the_images_is_seen(
    change: Callable[[torch.Tensor], torch.Tensor], at_most: dict[str, float]
) -> None:
    model, _ = clip.load("sketch", device="cpu")
    figures = eager(model, change)
    assert all(vars(figures)[name] <= most < vars(FLOOR)[name] for name, most in at_most.items()), figures


@contextmanager
def golden() -> Iterator[tuple[list[Path], list[str], np.ndarray, np.ndarray]]:
    """Images, captions and their stored features."""
    with np.load(GOLDEN / "features.npz") as stored:
        captions = json.loads((GOLDEN / "captions.json").read_text())
        yield sorted(GOLDEN.glob("*.png")), captions, stored["images"], stored["texts"]


def distance(found: np.ndarray, wanted: np.ndarray) -> float:
    """The largest difference, in parts of a row's RMS."""
    return float((np.abs(found - wanted).max(axis=1) / np.sqrt((wanted**2).mean(axis=1))).max())


def test_stored_features_hold() -> None:
    found: list[np.ndarray] = []
    with golden() as (files, captions, images, texts):
        assert len(files) == len(captions) == len(images) == 20
        for precision in ("reference", "fp32"):
            encoder = clip.Encoder("sketch", device="cpu", precision=precision)
            found += [encoder.embed_images(files, normalize=False), encoder.encode_text(captions).numpy()]
            assert distance(found[-2], images) < NEAR
            assert distance(found[-1], texts) < NEAR
    assert np.array_equal(found[0], found[2])
    assert np.array_equal(found[1], found[3])


def test_another_resize_filter_is_seen() -> None:
    encoder = clip.Encoder("sketch", device="cpu")
    with golden() as (files, _, images, _):
        for resample in Image.Resampling:
            pixels: list[np.ndarray] = []
            for path in files:
                image, side = Image.open(path).convert("RGB"), encoder.resolution_px
                size = [max(side, int(length * side / min(image.size))) for length in image.size]
                pixels.append(read_pixels(image.resize(size, resample), encoder.settings))
            found = distance(encoder.encode_pixels(np.stack(pixels)), images)
            assert found < NEAR if resample == Image.Resampling.BICUBIC else found > 10 * NEAR, resample


def test_another_gelu_is_seen() -> None:
    model, _ = clip.load("sketch", device="cpu")
    with golden() as (_, captions, _, texts), torch.no_grad():
        assert distance(model.encode_text(model.tokenize(captions)).numpy(), texts) < NEAR
        for block in model.transformer.blocks():
            block.mlp[1] = nn.GELU()
        assert distance(model.encode_text(model.tokenize(captions)).numpy(), texts) > 10 * NEAR
