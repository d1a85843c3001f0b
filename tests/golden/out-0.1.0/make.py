"""Make the OUT of version 0.1.0 that tests/unit/store/test_old_out.py opens; at commit b7724f7, in an empty folder."""

import io
import tarfile
from pathlib import Path
from random import Random

from clip.drawing import draw
from clip.scenes import compose, plain_words

rng = Random("out of 0.1.0")
Path("photos").mkdir()


def jpeg(scene):
    file = io.BytesIO()
    draw(rng, scene, (48, 64)).save(file, "JPEG", quality=85)
    return file.getvalue()


for number in range(5):
    scene = compose(rng)
    Path(f"photos/{number}-{plain_words(scene).replace(' ', '-')}.jpg").write_bytes(jpeg(scene))
Path("photos/broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
with tarfile.open("more.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
    for number in range(3):
        scene = compose(rng)
        data = jpeg(scene)
        header = tarfile.TarInfo(f"{number}-{plain_words(scene).replace(' ', '-')}.jpg")
        header.size = len(data)
        tar.addfile(header, io.BytesIO(data))
