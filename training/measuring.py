"""How much of drawn scenes a way to encode images and texts finds. Knows nothing about training.

    found(world("some seed"), encoder.embed, lambda texts: encoder.encode_text(texts).numpy())

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
from clip.demo.scenes import COLOURS, SHAPES, Scene, compose, distinct, with_another_shape
from clip.encoder import unit_vectors

SCENES, SINGLES = 1_000, 500
TEMPLATES = {"shape": "a photo of a {}", "colour": "a photo of a {} shape"}
WORDS: dict[str, tuple[str, ...]] = {"shape": SHAPES, "colour": COLOURS}

# Images (N, D) and texts (N, D), of any length.
OfPictures = Callable[[list[Image.Image]], np.ndarray]
OfTexts = Callable[[list[str]], np.ndarray]


@dataclass(frozen=True)
class World:
    """Images with captions, none of which is true of another; decoys; and images of one thing each."""

    scenes: list[Scene]
    captions: list[str]
    pictures: list[Image.Image]
    decoys: list[Image.Image]  # the scenes again, one shape of each another
    things: list[Scene]
    singles: list[Image.Image]


@cache
def world(seed: str, *, unseen: bool = False, scenes: int = SCENES, singles: int = SINGLES) -> World:
    """New images of the scenes that training draws, or with `unseen` of those that it never does."""
    rng = Random(seed)
    pairs = distinct(rng, scenes, unseen=unseen)
    things: list[Scene] = []
    while len(things) < singles:
        scene = compose(rng, unseen=unseen)
        if scene.second is None and scene.count == 1:
            things.append(scene)
    return World(
        scenes=[scene for scene, _ in pairs],
        captions=[text for _, text in pairs],
        pictures=[draw(rng, scene) for scene, _ in pairs],
        decoys=[draw(rng, with_another_shape(rng, scene)) for scene, _ in pairs],
        things=things,
        singles=[draw(rng, scene) for scene in things],
    )


@dataclass(frozen=True)
class Found:
    """Which parts were right."""

    recall_1: float
    recall_5: float
    recall_1_among_decoys: float
    shape: float
    colour: float


def found(world: World, of_images: OfPictures, of_texts: OfTexts, right: Sequence[int] | None = None) -> Found:
    """How often a caption finds its image, or that in its place of `right`; and words the shape and the colour."""
    texts, pictures = unit_vectors(of_texts(world.captions)), unit_vectors(of_images(world.pictures))
    places = np.arange(len(texts)) if right is None else np.asarray(right)
    ranks = _ranks(texts, pictures, places)
    among_decoys = _ranks(texts, np.concatenate([pictures, unit_vectors(of_images(world.decoys))]), places)
    singles = unit_vectors(of_images(world.singles))
    zero_shot: dict[str, float] = {}
    for name, words in WORDS.items():
        labels = unit_vectors(of_texts([TEMPLATES[name].format(word) for word in words]))
        best = (singles @ labels.T).argmax(axis=1)
        truths = [getattr(scene.first, name) for scene in world.things]
        zero_shot[name] = float(np.mean([words[place] == truth for place, truth in zip(best, truths, strict=True)]))
    return Found(
        float((ranks < 1).mean()), float((ranks < 5).mean()), float((among_decoys < 1).mean()), **zero_shot
    )  # fmt: skip


def _ranks(texts: np.ndarray, pictures: np.ndarray, right: np.ndarray) -> np.ndarray:
    """How many others are at least as near to a text as its own image. Shapes: (N, D), (M, D), (N,) -> (N,)."""
    cosines = texts @ pictures.T  # (N, M)
    own = cosines[np.arange(len(texts)), right][:, None]
    return (~(cosines < own)).sum(axis=1) - 1  # so that equal ones, and what is no number, count as misses
