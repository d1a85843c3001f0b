"""A scene -> an image of it, a different one for each seed."""

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
_JITTER = 14  # of each channel, up or down [Unit: 8-bit levels]
# From, to: diameters, in sides of the square that the centre crop keeps.
_DIAMETER: dict[str, tuple[float, float]] = {
    "small": (0.25, 0.31),
    "large": (0.42, 0.48),
    "group": (0.26, 0.34),
    "inner": (0.26, 0.32),
    "outer": (0.82, 0.94),
}
_MAX_TURN = 12  # [Unit: degree]
SHORT_SIDE_PX = (96, 384)  # from, to
_MAX_ASPECT = 1.5  # the longer side over the shorter
_SMOOTH = 3  # shapes are drawn this many times as large, then averaged, for smooth edges


def draw(rng: Random, scene: Scene, short_side_px: tuple[int, int] = SHORT_SIDE_PX) -> Image.Image:
    """Draw a scene, RGB, with random sizes, places, turns, shades, noise and canvas.

    All of it lies in the square that the centre crop keeps, whose side is in the range `short_side_px`, except for
    corners of turned shapes at its edge: in one image in twenty one sticks out, by at most 6 % of the side.
    """
    low, high = short_side_px
    side = round(low * (high / low) ** rng.random())
    longer = round(side * (1 if rng.random() < 0.4 else rng.uniform(1, _MAX_ASPECT)))
    width, height = (side, longer) if rng.random() < 0.5 else (longer, side)
    image = _paint_background(rng, scene.background, width, height)
    left, top = (width - side) / 2, (height - side) / 2
    for thing, (x, y), diameter in _place_things(rng, scene):
        shade = _jitter_colour(rng, thing.colour)
        centre, degrees = (left + x * side, top + y * side), rng.uniform(-_MAX_TURN, _MAX_TURN)
        _paint(image, thing.shape, shade, centre, diameter * side, degrees)
    return _add_artefacts(rng, image)


def _place_things(rng: Random, scene: Scene) -> list[tuple[Thing, Point, float]]:
    """Choose the place and size of each thing, in sides of the square: the centre's x and y, and the diameter."""

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
        x, y = (rng.uniform(across / 2, 1 - across / 2) for _ in "xy")
        return [(scene.first, (x, y), across)]
    across, slack = diameter("group"), 0.01
    cells = _choose_cells(rng, scene.count)
    return [(scene.first, (x + rng.uniform(-slack, slack), y + rng.uniform(-slack, slack)), across) for x, y in cells]


def _choose_cells(rng: Random, count: int) -> Sequence[Point]:
    """Choose the centres of a group's things: in a row, column, diagonal, triangle or square."""
    a, b, c = 0.2, 0.5, 0.8
    if count == 2:
        layouts = [[(a, b), (c, b)], [(b, a), (b, c)], [(a, a), (c, c)], [(a, c), (c, a)]]
    elif count == 3:
        layouts = [[(0.17, b), (b, b), (0.83, b)], [(b, 0.17), (b, b), (b, 0.83)]]
        layouts += [[(b, a), (a, c), (c, c)], [(b, c), (a, a), (c, a)]]
    else:
        layouts = [[(a, a), (c, a), (a, c), (c, c)], [(b, 0.18), (b, 0.82), (0.18, b), (0.82, b)]]
    return rng.choice(layouts)


def _list_corners(shape: Shape) -> list[Point]:
    """List the corners of a shape that is about 1 across, around its centre."""
    if shape in ("circle", "ring"):
        return _spread_points(48, 0.5)
    if shape == "square":
        return [(-0.43, -0.43), (0.43, -0.43), (0.43, 0.43), (-0.43, 0.43)]
    if shape == "triangle":
        return [(x, y + 0.08) for x, y in _spread_points(3, 0.58)]
    if shape == "star":
        return [
            point for pair in zip(_spread_points(5, 0.54), _spread_points(5, 0.25, 36), strict=True) for point in pair
        ]
    if shape == "cross":
        arm, half = 0.17, 0.48
        corner = [(-arm, -half), (arm, -half), (arm, -arm)]
        return [_rotate(point, 90 * quarter) for quarter in range(4) for point in corner]
    angles = [2 * math.pi * step / 48 for step in range(48)]  # a heart
    return [
        (
            0.5 * math.sin(t) ** 3,
            -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 33 - 0.07,
        )
        for t in angles
    ]


def _spread_points(number: int, radius: float, offset: float = 0) -> list[Point]:
    """Spread points evenly on a circle, clockwise from the top. Units: `offset` in degrees."""
    return [_rotate((0, -radius), offset + 360 * step / number) for step in range(number)]


def _rotate(point: Point, degrees: float) -> Point:
    x, y = point
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return x * cos - y * sin, x * sin + y * cos


def _paint(
    image: Image.Image, shape: Shape, shade: tuple[int, ...], centre: Point, diameter: float, degrees: float
) -> None:
    side = round(diameter * 1.3) + 2  # of the mask: room for any turn
    left, top = round(centre[0] - side / 2), round(centre[1] - side / 2)
    mask = Image.new("L", (side * _SMOOTH, side * _SMOOTH))
    pen = ImageDraw.Draw(mask)

    def corners(scale: float) -> list[Point]:
        turned = (_rotate(point, degrees) for point in _list_corners(shape))
        return [((centre[0] - left + x * scale) * _SMOOTH, (centre[1] - top + y * scale) * _SMOOTH) for x, y in turned]

    pen.polygon(corners(diameter), fill=255)
    if shape == "ring":
        pen.polygon(corners(0.58 * diameter), fill=0)
    image.paste(shade, (left, top), mask.reduce(_SMOOTH))


def _jitter_colour(rng: Random, colour: str) -> tuple[int, ...]:
    return tuple(min(255, max(0, level + rng.randint(-_JITTER, _JITTER))) for level in _RGB[colour])


def _paint_background(rng: Random, background: Background, width: int, height: int) -> Image.Image:
    """Paint it plain, or as a gradient between two shades."""
    shade = _jitter_colour(rng, background)
    if rng.random() < 0.6:
        return Image.new("RGB", (width, height), shade)
    gradient = Image.new("RGB", (1, 2))
    gradient.putdata([shade, _jitter_colour(rng, background)])  # pyright: ignore[reportArgumentType]
    return gradient.rotate(rng.choice((0, 90)), expand=True).resize((width, height), Image.Resampling.BILINEAR)


def _add_artefacts(rng: Random, image: Image.Image) -> Image.Image:
    """Add noise to half of the images, and JPEG artefacts to half."""
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
