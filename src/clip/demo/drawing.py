"""A scene -> an image of it, another one for each seed. Knows nothing about captions or models."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

if TYPE_CHECKING:
    from collections.abc import Sequence
    from random import Random

    from .scenes import Background, Scene, Shape, Thing

    Point = tuple[float, float]

_RGB: dict[str, tuple[int, int, int]] = {
    "red": (214, 30, 36),
    "orange": (250, 130, 15),
    "yellow": (248, 222, 30),
    "green": (30, 150, 60),
    "blue": (30, 80, 215),
    "purple": (130, 40, 165),
    "black": (22, 22, 22),
    "white": (246, 246, 246),
    "grey": (138, 138, 138),
    "pink": (250, 190, 205),
    "beige": (218, 200, 168),
}
_JITTER = 14  # of each channel, either way [Unit: 8-bit levels]
# Diameters, as parts of the side of the square that survives the centre crop.
_DIAMETER: dict[str, tuple[float, float]] = {
    "small": (0.25, 0.31),
    "large": (0.42, 0.48),
    "group": (0.26, 0.34),
    "inner": (0.26, 0.32),
    "outer": (0.82, 0.94),
}
_MAX_TURN = 12  # [Unit: degree]
SHORT_SIDE_PX = (96, 384)  # from, to
_MAX_ASPECT = 1.5
_SMOOTH = 3  # edges are drawn this much larger, then averaged


def draw(rng: Random, scene: Scene, short_side_px: tuple[int, int] = SHORT_SIDE_PX) -> Image.Image:
    """An image of a scene: sizes, places, turns, shades, noise and the canvas are left to chance.

    Everything lies in the square that the centre crop keeps, whose side is one of `short_side_px`, but for corners of
    turned shapes at its edge: one image in twenty has one that sticks out, by 6 % of the side at most. RGB.
    """
    low, high = short_side_px
    side = round(low * (high / low) ** rng.random())
    longer = round(side * (1 if rng.random() < 0.4 else rng.uniform(1, _MAX_ASPECT)))
    width, height = (side, longer) if rng.random() < 0.5 else (longer, side)
    image = _ground(rng, scene.background, width, height)
    left, top = (width - side) / 2, (height - side) / 2
    for thing, (x, y), diameter in _places(rng, scene):
        shade = _shade(rng, thing.colour)
        _paint(
            image,
            thing.shape,
            shade,
            (left + x * side, top + y * side),
            diameter * side,
            rng.uniform(-_MAX_TURN, _MAX_TURN),
        )
    return _with_artefacts(rng, image)


def _places(rng: Random, scene: Scene) -> list[tuple[Thing, Point, float]]:
    """Where each thing is and how large, in sides of the square: the centre's x and y, and the diameter."""

    def diameter(kind: str) -> float:
        return rng.uniform(*_DIAMETER[kind])

    if scene.second is not None and scene.relation == "inside":
        outer, inner = diameter("outer"), diameter("inner")
        margin = (1 - outer) / 2
        x, y = 0.5 + rng.uniform(-margin, margin), 0.5 + rng.uniform(-margin, margin)
        return [(scene.second, (x, y), outer), (scene.first, (x, y), inner)]
    if scene.second is not None:
        placed: list[tuple[Thing, Point, float]] = []
        for number, thing in enumerate(scene.things):
            across = diameter(thing.size or "small")
            along = 0.5 * number + rng.uniform(across / 2, max(across / 2, 0.5 - across / 2))
            aside = 0.5 + rng.uniform(-0.12, 0.12)
            placed.append((thing, (along, aside) if scene.relation == "left of" else (aside, along), across))
        return placed
    if scene.count == 1:
        across = diameter(scene.first.size or "large")
        return [
            (scene.first, (rng.uniform(across / 2, 1 - across / 2), rng.uniform(across / 2, 1 - across / 2)), across)
        ]
    across, slack = diameter("group"), 0.01
    cells = _cells(rng, scene.count)
    return [(scene.first, (x + rng.uniform(-slack, slack), y + rng.uniform(-slack, slack)), across) for x, y in cells]


def _cells(rng: Random, count: int) -> Sequence[Point]:
    """Centres of a group's things: in rows, columns, diagonals, triangles and squares."""
    a, b, c = 0.2, 0.5, 0.8
    if count == 2:
        layouts = [[(a, b), (c, b)], [(b, a), (b, c)], [(a, a), (c, c)], [(a, c), (c, a)]]
    elif count == 3:
        layouts = [[(0.17, b), (b, b), (0.83, b)], [(b, 0.17), (b, b), (b, 0.83)]]
        layouts += [[(b, a), (a, c), (c, c)], [(b, c), (a, a), (c, a)]]
    else:
        layouts = [[(a, a), (c, a), (a, c), (c, c)], [(b, 0.18), (b, 0.82), (0.18, b), (0.82, b)]]
    return rng.choice(layouts)


def _outline(shape: Shape) -> list[Point]:
    """The corners of a shape that is about 1 across, round the middle."""
    if shape in ("circle", "ring"):
        return _rays(48, 0.5)
    if shape == "square":
        return [(-0.43, -0.43), (0.43, -0.43), (0.43, 0.43), (-0.43, 0.43)]
    if shape == "triangle":
        return [(x, y + 0.08) for x, y in _rays(3, 0.58)]
    if shape == "star":
        return [point for pair in zip(_rays(5, 0.54), _rays(5, 0.25, 36), strict=True) for point in pair]
    if shape == "cross":
        arm, half = 0.17, 0.48
        corner = [(-arm, -half), (arm, -half), (arm, -arm)]
        return [_turned(point, 90 * quarter) for quarter in range(4) for point in corner]
    angles = [2 * math.pi * step / 48 for step in range(48)]  # a heart
    return [
        (
            0.5 * math.sin(t) ** 3,
            -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 33 - 0.07,
        )
        for t in angles
    ]


def _rays(number: int, radius: float, offset: float = 0) -> list[Point]:
    return [_turned((0, -radius), offset + 360 * step / number) for step in range(number)]


def _turned(point: Point, degrees: float) -> Point:
    x, y = point
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return x * cos - y * sin, x * sin + y * cos


def _paint(
    image: Image.Image, shape: Shape, shade: tuple[int, ...], centre: Point, diameter: float, degrees: float
) -> None:
    room = round(diameter * 1.3) + 2
    left, top = round(centre[0] - room / 2), round(centre[1] - room / 2)
    mask = Image.new("L", (room * _SMOOTH, room * _SMOOTH))
    pen = ImageDraw.Draw(mask)

    def corners(scale: float) -> list[Point]:
        turned = (_turned(point, degrees) for point in _outline(shape))
        return [((centre[0] - left + x * scale) * _SMOOTH, (centre[1] - top + y * scale) * _SMOOTH) for x, y in turned]

    pen.polygon(corners(diameter), fill=255)
    if shape == "ring":
        pen.polygon(corners(0.58 * diameter), fill=0)
    image.paste(shade, (left, top), mask.reduce(_SMOOTH))


def _shade(rng: Random, colour: str) -> tuple[int, ...]:
    return tuple(min(255, max(0, level + rng.randint(-_JITTER, _JITTER))) for level in _RGB[colour])


def _ground(rng: Random, background: Background, width: int, height: int) -> Image.Image:
    """Plain, or one shade going over into another."""
    shade = _shade(rng, background)
    if rng.random() < 0.6:
        return Image.new("RGB", (width, height), shade)
    two = Image.new("RGB", (1, 2))
    two.putdata([shade, _shade(rng, background)])  # pyright: ignore[reportArgumentType]
    return two.rotate(rng.choice((0, 90)), expand=True).resize((width, height), Image.Resampling.BILINEAR)


def _with_artefacts(rng: Random, image: Image.Image) -> Image.Image:
    """Noise in half of the images, and the marks that JPEG leaves in half."""
    if rng.random() < 0.5:
        noise = np.random.default_rng(rng.getrandbits(32)).standard_normal(
            (image.height, image.width, 3), dtype=np.float32
        )
        pixels = np.asarray(image, np.float32) + noise * rng.uniform(2, 10)
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    if rng.random() < 0.5:
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=rng.randint(40, 95))
        image = Image.open(stream)
        image.load()
    return image
