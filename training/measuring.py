"""Measure how well an encoder of images and texts finds drawn scenes.

    measure(world("some seed"), encoder.embed, lambda texts: encoder.encode_text(texts).numpy())

The tests hold the sketch model to these figures too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from random import Random

import numpy as np
from PIL import Image

from clip.demo.drawing import draw
from clip.demo.scenes import COLOURS, SHAPES, Scene, compose, compose_distinct, replace_shape
from clip.encoder import unit_vectors

SCENES, SINGLES = 1_000, 500
TEMPLATES = {"shape": "a photo of a {}", "colour": "a photo of a {} shape"}
WORDS: dict[str, tuple[str, ...]] = {"shape": SHAPES, "colour": COLOURS}

# N images or texts -> (N, D), of any length.
EncodeImages = Callable[[list[Image.Image]], np.ndarray]
EncodeTexts = Callable[[list[str]], np.ndarray]


@dataclass(frozen=True)
class World:
    """Images with captions, none of which is true of another; decoys; and images of one thing each."""

    scenes: list[Scene]
    captions: list[str]
    images: list[Image.Image]
    decoys: list[Image.Image]  # of the same scenes, each with one shape replaced
    things: list[Scene]
    singles: list[Image.Image]


@cache
def world(seed: str, *, unseen: bool = False, scenes: int = SCENES, singles: int = SINGLES) -> World:
    """Draw new images of scenes that training draws, or with `unseen` of those that it never draws."""
    rng = Random(seed)
    pairs = compose_distinct(rng, scenes, unseen=unseen)
    things: list[Scene] = []
    while len(things) < singles:
        scene = compose(rng, unseen=unseen)
        if scene.second is None and scene.count == 1:
            things.append(scene)
    return World(
        scenes=[scene for scene, _ in pairs],
        captions=[text for _, text in pairs],
        images=[draw(rng, scene) for scene, _ in pairs],
        decoys=[draw(rng, replace_shape(rng, scene)) for scene, _ in pairs],
        things=things,
        singles=[draw(rng, scene) for scene in things],
    )


@dataclass(frozen=True)
class Figures:
    """The parts of queries that were answered correctly, each 0 to 1."""

    recall_1: float
    recall_5: float
    recall_1_among_decoys: float
    shape: float
    colour: float


def measure(
    world: World, encode_images: EncodeImages, encode_texts: EncodeTexts, targets: Sequence[int] | None = None
) -> Figures:
    """Measure how often captions find their images, or those numbered in `targets`, and words the shape and colour."""
    texts, images = unit_vectors(encode_texts(world.captions)), unit_vectors(encode_images(world.images))
    places = np.arange(len(texts)) if targets is None else np.asarray(targets)
    ranks = _rank(texts, images, places)
    ranks_among_decoys = _rank(texts, np.concatenate([images, unit_vectors(encode_images(world.decoys))]), places)
    singles = unit_vectors(encode_images(world.singles))
    zero_shot: dict[str, float] = {}
    for name, words in WORDS.items():
        labels = unit_vectors(encode_texts([TEMPLATES[name].format(word) for word in words]))
        best = (singles @ labels.T).argmax(axis=1)
        truths = [getattr(scene.first, name) for scene in world.things]
        zero_shot[name] = float(np.mean([words[place] == truth for place, truth in zip(best, truths, strict=True)]))
    return Figures(
        float((ranks < 1).mean()), float((ranks < 5).mean()), float((ranks_among_decoys < 1).mean()), **zero_shot
    )  # fmt: skip


def _rank(texts: np.ndarray, images: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Count the other images at least as near to each text as its own. Shapes: (N, D), (M, D), (N,) -> (N,)."""
    cosines = texts @ images.T  # (N, M)
    own = cosines[np.arange(len(texts)), targets][:, None]
    return (~(cosines < own)).sum(axis=1) - 1  # written so that equal cosines and not-a-number count as misses
