"""Photos of many kinds, edits of them, and bursts: what duplicates are found among."""

from __future__ import annotations

import io
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import numpy as np
import skimage.data
from PIL import Image, ImageDraw, ImageEnhance, ImageFont

from clip.demo.drawing import draw
from clip.demo.scenes import compose

if TYPE_CHECKING:
    from collections.abc import Iterator

NAMES = (
    *("astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "clock_motion.png", "coffee.png"),
    *("coins.png", "color.png", "grass.png", "gravel.png", "horse.png", "hubble_deep_field.jpg", "ihc.png"),
    *("logo.png", "microaneurysms.png", "moon.png", "motorcycle_left.png", "page.png", "phantom.png", "retina.jpg"),
    *("rocket.jpg", "text.png"),
)
BURST_MARGIN = 0.08  # of a side, around a photo, from which bursts take theirs
EDITS = ("quality 30", "half size", "crop 80 %", "crop 80 % off", "turn 90", "turn 270", "brighter", "darker")


def load_photos() -> list[Image.Image]:
    folder = Path(skimage.data.__file__).parent
    return [Image.open(folder / name).convert("RGB") for name in NAMES]


def make_wide_photos(count: int, seed: int = 0) -> Iterator[Image.Image]:
    """Yield photos with a margin around them: some of each kind."""
    rng = Random(seed)
    photos = [photo for photo in load_photos() if min(photo.size) >= 200]
    for number in range(count):
        kind = number % 4
        if kind == 0 and number // 4 < len(photos):
            yield photos[number // 4]
        elif kind == 3 and number % 12 == 3:
            yield make_page(rng)
        elif kind == 2:
            yield draw(rng, compose(rng), (260, 420))
        else:
            yield make_mosaic(rng, photos)


def make_mosaic(rng: Random, photos: list[Image.Image]) -> Image.Image:
    """Lay 2 x 2 to 4 x 3 parts of photos side by side."""
    columns, rows = rng.randint(2, 4), rng.randint(2, 3)
    width, height = rng.choice(((640, 480), (480, 640), (600, 400), (512, 512), (900, 600)))
    image = Image.new("RGB", (width, height))
    for column in range(columns):
        for row in range(rows):
            photo = rng.choice(photos)
            side = rng.randint(90, min(photo.size) - 1)
            left, top = rng.randint(0, photo.width - side), rng.randint(0, photo.height - side)
            tile = photo.crop((left, top, left + side, top + side)).resize((width // columns + 1, height // rows + 1))
            image.paste(tile, (column * width // columns, row * height // rows))
    return image


def make_page(rng: Random) -> Image.Image:
    """A page of text, of which any two look alike when they are small."""
    image = Image.new("RGB", (620, 877), (250, 250, 246))
    canvas, font = ImageDraw.Draw(image), ImageFont.load_default(14)
    for line in range(38):
        words = " ".join("".join(rng.choices("aeinrstlomdu", k=rng.randint(2, 11))) for _ in range(12))
        canvas.text((60, 60 + 20 * line), words[: 68 if line % 9 != 8 else rng.randint(10, 50)], (25, 25, 25), font)
    return image


def cut_photo(wide: Image.Image, shift: tuple[float, float] = (0.0, 0.0)) -> Image.Image:
    """Cut the photo out of a larger one, or what a camera that moved by `shift` of its sides would take."""
    margin = BURST_MARGIN
    inner = (wide.width / (1 + 2 * margin), wide.height / (1 + 2 * margin))
    left, top = (round(side * (margin + by)) for side, by in zip(inner, shift, strict=True))
    return wide.crop((left, top, left + round(inner[0]), top + round(inner[1])))


def make_bursts(wide: Image.Image, rng: Random) -> Iterator[Image.Image]:
    for _ in range(2):
        shift = [rng.choice((-1, 1)) * rng.uniform(0.02, 0.06), rng.choice((-1, 1)) * rng.uniform(0.0, 0.06)]
        rng.shuffle(shift)
        pixels = np.asarray(cut_photo(wide, (shift[0], shift[1])), np.float64)
        noise = np.random.default_rng(rng.randrange(2**31)).normal(0, 5, pixels.shape)
        yield Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8))


def make_edits(photo: Image.Image, rng: Random) -> Iterator[tuple[str, Image.Image]]:
    width, height = photo.size
    yield EDITS[0], recode(photo, 30)
    yield EDITS[1], recode(photo.resize((width // 2, height // 2), Image.Resampling.LANCZOS), 85)
    box = (round(width * 0.1), round(height * 0.1), round(width * 0.9), round(height * 0.9))
    yield EDITS[2], recode(photo.crop(box), 90)
    left, top = round(width * rng.uniform(0, 0.2)), round(height * rng.uniform(0, 0.2))
    yield EDITS[3], recode(photo.crop((left, top, left + round(width * 0.8), top + round(height * 0.8))), 80)
    yield EDITS[4], recode(photo.transpose(Image.Transpose.ROTATE_90), 90)
    yield EDITS[5], recode(photo.transpose(Image.Transpose.ROTATE_270), 75)
    yield EDITS[6], recode(ImageEnhance.Brightness(photo).enhance(1.15), 90)
    yield EDITS[7], recode(ImageEnhance.Brightness(photo).enhance(0.85), 90)


def recode(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")
