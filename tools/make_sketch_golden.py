"""Write tests/golden/sketch: twenty small images and captions, and their features by the sketch model.

    python tools/make_sketch_golden.py

Run it again only after the model was trained again.
"""

import io
import json
from pathlib import Path
from random import Random

import numpy as np
import torch

import clip
from clip.demo.drawing import draw
from clip.demo.scenes import compose_distinct

FOLDER = Path(__file__).parent.parent / "tests" / "golden" / "sketch"
SCENES = 20
MAX_BYTES = 6_000  # of a PNG; those with noise are larger and are left out
SIDE_PX = (128, 160)


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    rng = Random("golden")
    model, preprocess = clip.load("sketch", device="cpu")
    captions: list[str] = []
    inputs: list[torch.Tensor] = []
    for scene, caption in compose_distinct(rng, 10 * SCENES):
        if len(captions) == SCENES:
            break
        image = draw(rng, scene, SIDE_PX)
        stream = io.BytesIO()
        image.save(stream, "PNG", optimize=True)
        if stream.tell() <= MAX_BYTES:
            (FOLDER / f"{len(captions):02}.png").write_bytes(stream.getvalue())
            captions.append(caption)
            inputs.append(preprocess(image))
    with torch.no_grad():
        images, texts = model.encode_image(torch.stack(inputs)), model.encode_text(model.tokenize(captions))
    np.savez_compressed(FOLDER / "features.npz", images=images.numpy(), texts=texts.numpy())
    (FOLDER / "captions.json").write_text(json.dumps(captions, indent=1) + "\n")


if __name__ == "__main__":
    main()
