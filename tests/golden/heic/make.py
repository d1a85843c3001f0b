"""Makes the HEIC files beside this file. Needs pillow_heif (tried: 1.8.1), whose wheels hold x265, under GPL 2.

Run:  python tests/golden/heic/make.py
"""

import io
import sys
from pathlib import Path

import pillow_heif
from PIL import Image

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent.parent))

from kit import formula  # noqa: E402

SIZE = (47, 31)
FRAME_SIZES = [(20, 16), (24, 20), (28, 20)]
PRIMARY = 1


def exif(orientation: int) -> bytes:
    found = Image.Exif()
    found[274] = orientation
    return found.tobytes()


def encoded(images: list[Image.Image], orientation: int) -> bytes:
    file = pillow_heif.from_pillow(images[0])
    for image in images[1:]:
        file.add_from_pillow(image)
    buffer = io.BytesIO()
    # The encoder writes the boxes irot and imir that the orientation asks for, and leaves the pixels as they are.
    file.save(buffer, quality=80, exif=exif(orientation), primary_index=PRIMARY if len(images) > 1 else 0)
    return buffer.getvalue()


if __name__ == "__main__":
    for number in range(1, 9):
        (HERE / f"orientation-{number}.heic").write_bytes(encoded([formula.quarters(*SIZE)], number))
    frames = [formula.picture(i, *size) for i, size in enumerate(FRAME_SIZES)]
    (HERE / "three-pictures.heic").write_bytes(encoded(frames, 6))
    (HERE / "alpha.heic").write_bytes(encoded([formula.picture_in_mode(1, 40, 30, "RGBA")], 1))
