"""Whether one image is an edit of another: re-encoded, resized, brightened, turned, mirrored or cropped.

An image is compared by its sketch, 64 x 64 pixels of it. One of the two may be a part of the other: the rectangle of
which it is is searched coarsely, then found to a fraction of a pixel by least squares, together with a gain and a
lightness (Lucas and Kanade 1981). They are edits of one image where three things hold: the rectangle lies inside the
larger image, what is left after alignment is small everywhere, and so are the differences of colour. Two photos of one
scene fail the first as soon as the camera moved, and the second where something in it did.

Knows nothing about files and vectors. The figures behind the bounds: bench/duplicates.py, docs/search.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Iterator

SIDE_PX = 64  # of a sketch
COARSE_PX = 32  # of the sketch in which rectangles are searched
# Shares of the longer side that a crop may keep; between two of them least squares find the way.
SCALES = (1.0, 0.94, 0.88, 0.82, 0.76, 0.7, 0.64)
WHOLE_AREA = 0.97  # of an image; less is a crop
MIN_AREA = 0.4  # of an image that a crop of it keeps
SAME_ASPECT = 1.04  # ratio of two aspects, below which an image may be all of another
TURNS = tuple((turns, mirrored) for mirrored in (False, True) for turns in range(4))
MIN_COARSE = 0.55  # correlation of a rectangle worth a closer look
STEPS = 8  # of least squares
MAX_OUTSIDE = 0.006  # of a side, by which a rectangle may reach beyond the image: 0.4 pixels of a sketch
DARK, BRIGHT = 8.0, 246.0  # beyond these, a brightened image has lost what it showed [Unit: 8-bit levels]
MIN_GAIN, MAX_GAIN = 0.6, 1.67
BLOCK_PX = 8  # what is left is looked at in blocks of a sketch
MIN_CORRELATION = 0.88
MAX_REST = 1.35  # of a block, in units of `_measure_rest`
MAX_COLOUR = 9.0  # mean difference of Cb and Cr [Unit: 8-bit levels]
CENTRES = (np.arange(SIDE_PX, dtype=np.float32) + 0.5) / SIDE_PX  # of a sketch's pixels, in sides
MAX_SHIFT, PRECISION = 0.04, 2e-4  # of a step, in sides
DAMPING = 1e-3  # of least squares
MAX_LOST = 0.1  # of what is around a pixel, that is too dark or too bright
PIXEL_VARIANCE = 0.08  # of what one pixel of a sketch averages, 1/12 [Unit: pixel squared]
BLUR_VARIANCE = 1.0 + PIXEL_VARIANCE + 0.15  # of a blurred sketch that was read between its pixels
TINY = 1e-6
FLAT = 2.0  # standard deviation of an image whose grey shows nothing [Unit: 8-bit levels]
FLAT_REST, FLAT_COLOUR = 8.0, 24.0  # largest differences of two such images, beside lightness [Unit: 8-bit levels]


@dataclass(frozen=True)
class Sketch:
    """An image, small: what it is compared by."""

    pixels: np.ndarray  # float32 (3, 64, 64): Y, Cb, Cr, 0..255
    aspect: float  # width / height of the image itself

    @classmethod
    def of(cls, stored: np.ndarray, width: int, height: int) -> Sketch:
        """Return the sketch that `make_sketch` gave the pixels of."""
        return cls(stored.astype(np.float32), width / height)

    def turn(self, turns: int, *, mirrored: bool) -> Sketch:
        """Return it turned by so many quarters, mirrored before that if asked for."""
        pixels = np.flip(self.pixels, 2) if mirrored else self.pixels
        aspect = 1 / self.aspect if turns % 2 else self.aspect
        return Sketch(np.ascontiguousarray(np.rot90(pixels, turns, (1, 2))), aspect)


@dataclass(frozen=True)
class Match:
    """How well a rectangle of one image is another one."""

    left: float  # of the rectangle, in widths and heights of the larger image
    top: float
    width: float
    height: float
    correlation: float
    gain: float
    rest: float  # of the worst block, in units of `_measure_rest`
    colour: float  # mean difference of Cb and Cr [Unit: 8-bit levels]
    swapped: bool = False  # whether the first of the two images is the part

    @property
    def is_whole(self) -> bool:
        """Whether the rectangle is all of the larger image, but for a strip that nobody would call a crop."""
        return self.width * self.height >= WHOLE_AREA

    @property
    def outside(self) -> float:
        """By how much the rectangle reaches beyond the larger image, in its sides."""
        return max(-self.left, -self.top, self.left + self.width - 1, self.top + self.height - 1)

    @property
    def is_edit(self) -> bool:
        """Whether the two are edits of one image."""
        return (
            self.outside <= MAX_OUTSIDE
            and self.width * self.height >= MIN_AREA
            and MIN_GAIN <= self.gain <= MAX_GAIN
            and self.correlation >= MIN_CORRELATION
            and self.rest <= MAX_REST
            and self.colour <= MAX_COLOUR
        )


def make_sketch(image: Image.Image) -> np.ndarray:
    """Return the pixels of an image's sketch. Shapes: (H, W) any mode -> uint8 (3, 64, 64)."""
    small = image.convert("RGB").resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC, reducing_gap=4.0)
    return np.ascontiguousarray(np.asarray(small.convert("YCbCr")).transpose(2, 0, 1))


def find_edit(one: Sketch, other: Sketch) -> Match | None:
    """Return how one of two images is an edit of the other, whichever it is; None where neither is."""
    return next((match for match in match_all(one, other) if match.is_edit), None)


def match_all(one: Sketch, other: Sketch) -> Iterator[Match]:
    """Yield the ways in which one of two images may be the other or a part of it, the most probable first."""
    if min(one.pixels[0].std(), other.pixels[0].std()) < FLAT:
        yield _compare_flat(one, other)
        return
    blurred = [Sketch(_blur(1.0) @ sketch.pixels @ _blur(1.0).T, sketch.aspect) for sketch in (one, other)]
    coarse = [_shrink(sketch.pixels[0]) for sketch in blurred]
    whole: list[_Guess] = []
    for turns, mirrored in TURNS:
        turned = other.turn(turns, mirrored=mirrored)
        if max(one.aspect / turned.aspect, turned.aspect / one.aspect) <= SAME_ASPECT:
            value = _correlate(coarse[0], _shrink(turned.pixels[0]))
            whole.append(_Guess(value, turned, (0.0, 0.0, 1.0, 1.0), swapped=False))
    ratio = other.aspect / one.aspect
    parts = [_Guess(value, other, place, swapped=False) for value, place in _search_crops(coarse[0], coarse[1], ratio)]
    wholes = [
        _Guess(value, one, place, swapped=True) for value, place in _search_crops(coarse[1], coarse[0], 1 / ratio)
    ]
    best = [max(guesses, key=lambda guess: guess.value) for guesses in (whole, parts, wholes) if guesses]
    for guess in sorted(best, key=lambda guess: -guess.value):
        if guess.value >= MIN_COARSE:
            yield _refine(blurred[guess.swapped], guess)


@dataclass(frozen=True)
class _Guess:
    """Where in one image another may be."""

    value: float  # of the correlation there
    small: Sketch  # the other one, not blurred
    place: tuple[float, float, float, float]  # left, top, width and height, in sides of the one
    swapped: bool


def _compare_flat(one: Sketch, other: Sketch) -> Match:
    """Return how well two images fit as they are, of which one has too little contrast to be aligned."""
    grey, *colours = one.pixels - other.pixels
    rest = np.abs(grey - grey.mean()).max() / FLAT_REST
    strange = max(float(np.abs(colour).max()) for colour in colours) / FLAT_COLOUR
    return Match(0, 0, 1, 1, 1, 1, MAX_REST * max(float(rest), strange), float(np.abs(colours).mean()))


def _search_crops(
    image: np.ndarray, template: np.ndarray, ratio: float
) -> Iterator[tuple[float, tuple[float, float, float, float]]]:
    """Yield the best rectangle of each scale: its correlation, and left, top, width and height.

    `ratio` is that of a rectangle's width to its height, in sides of the image.

    Shapes:  image and template float32 (32, 32).
    """
    for scale in SCALES:
        width, height = (scale, scale / ratio) if ratio >= 1 else (scale * ratio, scale)
        columns, rows = round(width * COARSE_PX), round(height * COARSE_PX)
        if width * height < MIN_AREA or columns * rows >= (COARSE_PX - 1) * COARSE_PX:
            continue  # too small a part, or all of it
        part = _average(rows) @ template @ _average(columns).T
        part -= part.mean()
        windows = np.lib.stride_tricks.sliding_window_view(image, (rows, columns))
        flat = windows.reshape(-1, rows * columns)
        norms = np.sqrt(np.maximum((flat * flat).sum(axis=1) - flat.sum(axis=1) ** 2 / flat.shape[1], 1e-6))
        values = flat @ part.reshape(-1) / (norms * max(float(np.linalg.norm(part)), 1e-6))
        best = int(values.argmax())
        top, left = divmod(best, windows.shape[1])
        free_x, free_y = max(windows.shape[1] - 1, 1), max(windows.shape[0] - 1, 1)
        place = (left / free_x * (1 - width), top / free_y * (1 - height), width, height)
        yield float(values[best]), place


def _refine(large: Sketch, guess: _Guess) -> Match:
    """Return how well the rectangle fits that least squares find from a first guess."""
    left, top, width, height = guess.place
    small = _blur_like(guess.small, width, height)
    grey, wanted = large.pixels[0], small.pixels[0]
    slopes = np.gradient(grey)
    low, high = DARK, BRIGHT
    lost = ((guess.small.pixels[0] <= low) | (guess.small.pixels[0] >= high)).astype(np.float32)
    known = _blur(1.0) @ lost @ _blur(1.0).T < MAX_LOST
    if np.count_nonzero(known) < known.size / 4:  # of a drawing in black and white nothing would be left
        low, high, known = -np.inf, np.inf, np.ones_like(known)
    gain, lightness = 1.0, 0.0
    for _ in range(STEPS):
        rows, columns = _interpolate(top + height * CENTRES), _interpolate(left + width * CENTRES)
        seen = rows @ grey @ columns.T
        mask = _find_known(known, seen, gain * seen + lightness, low, high, (left, top, width, height))
        if np.count_nonzero(mask) < mask.size / 8:
            break
        down, right = (rows @ slope @ columns.T * np.float32(SIDE_PX * gain) for slope in slopes)
        terms = (seen, np.ones_like(seen), right, right * CENTRES, down, down * CENTRES[:, None])
        equations = (np.stack(terms) * mask).reshape(6, -1)
        matrix = (equations @ equations.T).astype(np.float64)
        matrix[np.diag_indices(6)] += DAMPING * (1 + np.diag(matrix))  # where a term is nothing, or that of another
        errors = (wanted - np.float32(gain) * seen - np.float32(lightness)) * mask
        step = np.linalg.solve(matrix, equations @ errors.reshape(-1))
        gain, lightness = gain + step[0], lightness + step[1]
        shift = np.clip(step[2:], -MAX_SHIFT, MAX_SHIFT)
        left, width, top, height = (float(a + b) for a, b in zip((left, width, top, height), shift, strict=True))
        if min(width, height) < MIN_AREA or np.abs(shift).max() < PRECISION:
            break
    place = (left, top, width, height)
    rows, columns = _interpolate(top + height * CENTRES), _interpolate(left + width * CENTRES)
    seen, *colours = (rows @ channel @ columns.T for channel in large.pixels)
    mask = _find_known(known, seen, gain * seen + lightness, low, high, place)
    if np.count_nonzero(mask) < mask.size / 8:
        return Match(*place, 0, 1, np.inf, np.inf, guess.swapped)
    x, y = seen[mask] - seen[mask].mean(), wanted[mask] - wanted[mask].mean()
    gain = float(x @ y / max(float(x @ x), TINY))
    correlation = float(x @ y / max(float(x @ x) * float(y @ y), TINY) ** 0.5)
    errors = wanted - (gain * (seen - seen[mask].mean()) + wanted[mask].mean())
    colour = float(np.mean([np.abs(a - b)[mask].mean() for a, b in zip(colours, small.pixels[1:], strict=True)]))
    return Match(*place, correlation, gain, _measure_rest(errors, gain * seen, mask), colour, guess.swapped)


def _find_known(
    known: np.ndarray,
    seen: np.ndarray,
    shown: np.ndarray,
    low: float,
    high: float,
    place: tuple[float, float, float, float],
) -> np.ndarray:
    """Return where both images have what they showed: `shown` beyond the bounds was cut by an editor."""
    left, top, width, height = place
    inside = _is_inside(top + height * CENTRES, left + width * CENTRES)
    return known & inside & (np.minimum(seen, shown) > low) & (np.maximum(seen, shown) < high)


def _measure_rest(rest: np.ndarray, seen: np.ndarray, mask: np.ndarray) -> float:
    """Return the largest root mean square of a block's rest, over what encoding and resampling explain of it."""
    blocks = _cut_blocks(np.where(mask, rest, 0))
    used = np.maximum(_cut_blocks(mask.astype(np.float32)).mean(axis=1), 0.25)
    left = np.sqrt((blocks**2).mean(axis=1) / used)
    texture = _cut_blocks(seen).std(axis=1)
    return float((left / (5.0 + 0.35 * texture)).max())


def _cut_blocks(values: np.ndarray) -> np.ndarray:
    """Shapes: (64, 64) -> (64, 64), a row per block."""
    count = SIDE_PX // BLOCK_PX
    return values.reshape(count, BLOCK_PX, count, BLOCK_PX).transpose(0, 2, 1, 3).reshape(count * count, -1)


def _is_inside(down: np.ndarray, right: np.ndarray) -> np.ndarray:
    return ((down > 0) & (down < 1))[:, None] & ((right > 0) & (right < 1))[None]


def _interpolate(places: np.ndarray) -> np.ndarray:
    """Return the matrix that reads pixels at places, linearly. Shapes: (64,), 0..1 of a side -> float32 (64, 64)."""
    pixels = np.clip(places * SIDE_PX - 0.5, 0, SIDE_PX - 1)
    return np.maximum(0, 1 - np.abs(pixels[:, None] - np.arange(SIDE_PX)[None])).astype(np.float32)


@cache
def _average(size: int) -> np.ndarray:
    """Return the matrix that shrinks a side of 32 pixels to `size`, by area. Shapes: -> float32 (size, 32)."""
    edges = np.arange(size + 1) * (COARSE_PX / size)
    low, high = edges[:-1, None], edges[1:, None]
    pixels = np.arange(COARSE_PX)[None]
    return (np.clip(np.minimum(high, pixels + 1) - np.maximum(low, pixels), 0, 1) * (size / COARSE_PX)).astype(
        np.float32
    )


@cache
def _blur(sigma: float) -> np.ndarray:
    """Return the matrix that blurs a side by a Gaussian of so many pixels. Shapes: -> float32 (64, 64)."""
    distance = np.arange(SIDE_PX)[:, None] - np.arange(SIDE_PX)[None]
    weights = np.exp(-0.5 * (distance / sigma) ** 2)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def _blur_like(small: Sketch, width: float, height: float) -> Sketch:
    """Blur the sketch of a part as much as that of the whole is, in which it is so wide and high, once enlarged."""
    across, down = (_blur(round((BLUR_VARIANCE / side**2 - PIXEL_VARIANCE) ** 0.5, 2)) for side in (width, height))
    return Sketch(np.ascontiguousarray(down @ small.pixels @ across.T), small.aspect)


def _shrink(grey: np.ndarray) -> np.ndarray:
    """Shapes: (64, 64) -> (32, 32), the means of four."""
    return np.ascontiguousarray(grey.reshape(COARSE_PX, 2, COARSE_PX, 2).mean(axis=(1, 3)))


def _correlate(one: np.ndarray, other: np.ndarray) -> float:
    x, y = one - one.mean(), other - other.mean()
    return float((x * y).sum() / max(float(np.linalg.norm(x) * np.linalg.norm(y)), 1e-6))
