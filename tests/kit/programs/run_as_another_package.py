"""Encode and embed an image with the package under another name, given as the first argument. Print what it gives."""

import importlib
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image


def main() -> None:
    package = importlib.import_module(sys.argv[1])
    model, preprocess = package.load("sketch", device="cpu")
    image = Image.fromarray(np.arange(64 * 64 * 3, dtype=np.uint32).astype(np.uint8).reshape(64, 64, 3))
    features = model.encode_image(preprocess(image)[None])
    folder = Path(tempfile.mkdtemp())
    image.save(folder / "a.png")
    embed = importlib.import_module(f"{sys.argv[1]}.batch.embed").embed
    job_class = importlib.import_module(f"{sys.argv[1]}.jobs").EmbedJob
    # In processes of their own, which import the package by its name again.
    job = job_class(source=folder, output=folder / "out", model="sketch", isolate=True)
    report = embed(job)
    loaded = sorted({name for name in sys.modules if name == "clip" or name.startswith("clip.")})
    print(tuple(features.shape), report.written, package.__name__, loaded)


if __name__ == "__main__":
    main()
