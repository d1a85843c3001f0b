"""Which copies of 300 photos `clip duplicates` finds, and which other photos it takes for copies; beside known hashes.

Usage: python bench/duplicates.py [--photos 300] [--pairs 20000]

Photos are scikit-image's, mosaics of parts of them, and drawn scenes. Of each, eight edits are written: JPEG at quality
30, half the size, crops to 80 % of the sides (in the middle and off it), turns by 90 and 270 degrees, 15 % brighter and
15 % darker; and two bursts: another part of the same larger image, shifted by 2 to 6 % of the sides, with noise. Each
edit is compared with its photo, each burst with its photo, and pairs of different photos with each other; text pages,
of which any two look alike, are among them. Hashes are as imagededup (pHash, dHash, at most 10 of 64 bits) and
PDQ (at most 31 of 256 bits, of 8 orientations) have them. Prints a table and a JSON line.
"""

from __future__ import annotations

import argparse
import json
import time
from itertools import combinations
from random import Random
from typing import TYPE_CHECKING

import numpy as np
from kit.photos import EDITS, cut_photo, make_bursts, make_edits, make_wide_photos
from PIL import Image
from scipy.fft import dctn

from clip.images.edits import Sketch, find_edit, make_sketch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def orient(image: Image.Image) -> Iterator[Image.Image]:
    for turned in (image, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)):
        yield turned
        for turn in (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270):
            yield turned.transpose(turn)


def hash_p(image: Image.Image) -> np.ndarray:
    small = np.asarray(image.convert("L").resize((32, 32), Image.Resampling.LANCZOS), np.float64)
    low = dctn(small, norm="ortho")[:8, :8].reshape(-1)
    return low >= np.median(low[1:])


def hash_d(image: Image.Image) -> np.ndarray:
    small = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.LANCZOS), np.int16)
    return (small[:, 1:] > small[:, :-1]).reshape(-1)


def hash_pdq(image: Image.Image) -> np.ndarray:
    small = np.asarray(image.convert("L").resize((64, 64), Image.Resampling.BOX), np.float64)
    low = dctn(small, norm="ortho")[1:17, 1:17].reshape(-1)
    return low > np.median(low)


def compare_by(make_hash: Callable[[Image.Image], np.ndarray], most: int, *, turned: bool) -> Comparer:
    def describe(image: Image.Image) -> list[np.ndarray]:
        return [make_hash(one) for one in (orient(image) if turned else [image])]

    return describe, lambda a, b: min(np.count_nonzero(a[0] != other) for other in b) <= most


Comparer = tuple["Callable[[Image.Image], object]", "Callable[..., bool]"]
COMPARERS: dict[str, Comparer] = {
    "ours": (lambda image: Sketch.of(make_sketch(image), *image.size), lambda a, b: find_edit(a, b) is not None),
    "pHash <= 10": compare_by(hash_p, 10, turned=False),
    "dHash <= 10": compare_by(hash_d, 10, turned=False),
    "PDQ <= 31": compare_by(hash_pdq, 31, turned=False),
    "PDQ <= 31, 8 ways": compare_by(hash_pdq, 31, turned=True),
}


def measure(photos: int, pairs: int) -> dict[str, dict[str, float]]:
    rng = Random(1)
    wide = list(make_wide_photos(photos))
    table: dict[str, dict[str, float]] = {}
    originals = [cut_photo(one) for one in wide]
    edits = [dict(make_edits(photo, rng)) for photo in originals]
    bursts = [list(make_bursts(one, rng)) for one in wide]
    chosen = list(combinations(range(photos), 2))
    rng.shuffle(chosen)
    chosen = chosen[:pairs]
    for name, (describe, same) in COMPARERS.items():
        described = [describe(photo) for photo in originals]
        row = {
            edit: float(np.mean([same(described[n], describe(edits[n][edit])) for n in range(photos)]))
            for edit in EDITS
        }
        row["bursts"] = float(np.mean([same(described[n], describe(b)) for n in range(photos) for b in bursts[n]]))
        started = time.perf_counter()
        row["different"] = float(np.mean([same(described[a], described[b]) for a, b in chosen]))
        row["ms a pair"] = 1e3 * (time.perf_counter() - started) / len(chosen)
        table[name] = {key: round(value, 5) for key, value in row.items()}
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=300)
    parser.add_argument("--pairs", type=int, default=20_000)
    options = parser.parse_args()
    table = measure(options.photos, options.pairs)
    columns = list(next(iter(table.values())))
    print(f"{'':<18}" + "".join(f"{column:>14}" for column in columns))
    for name, row in table.items():
        print(f"{name:<18}" + "".join(f"{row[column]:>14.4f}" for column in columns))
    print(json.dumps({"photos": options.photos, "pairs": options.pairs, "table": table}))


if __name__ == "__main__":
    main()
