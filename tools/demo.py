"""The main job on real photos, from nothing: `make demo`.

Embeds the photos that the scikit-image package carries into demo-out/ with `clip embed`, reads the Parquet file back,
and prints a row for each photo with its nearest other photo. The weights are untrained, as nothing is downloaded.
"""

import subprocess
import sys
from importlib import resources
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

OUT = Path("demo-out")


def main() -> None:
    photos = resources.files("skimage") / "data"
    command = ["clip", "embed", str(photos), "-o", str(OUT), "--untrained", "0", "--overwrite"]
    print("$", *command, flush=True)
    code = subprocess.run([sys.executable, "-m", *command], check=False).returncode
    print(f"exit code {code}" + (" (done, and what could not be decoded is in failures/)" if code == 3 else ""))
    if code not in (0, 3):
        sys.exit(code)

    table = pq.read_table(OUT / "embeddings")
    vectors = np.stack(table["embedding"].to_numpy())  # (N, D)
    cosines = vectors @ vectors.T - 2 * np.eye(len(vectors))  # a photo's own place put below all others
    nearest = cosines.argmax(axis=1)
    print(f"\n{'path':<26}{'size':>12}{'dim':>6}{'norm':>8}  {'nearest other photo':<26}{'cosine':>7}")
    for i, row in enumerate(table.select(["id", "width", "height"]).to_pylist()):
        size = f"{row['width']} x {row['height']}"
        other = table["id"][int(nearest[i])].as_py()
        norm = float(np.linalg.norm(vectors[i]))
        print(f"{row['id']:<26}{size:>12}{vectors.shape[1]:>6}{norm:>8.4f}  {other:<26}{cosines[i, nearest[i]]:>7.4f}")
    for failure in pq.read_table(OUT / "failures").to_pylist():
        print(f"{failure['id']:<26}no vector: {failure['stage']}: {failure['message']}")
    print(
        f"\n{len(table)} vectors in {OUT}/embeddings. The weights are untrained until real ones are fetched: the\n"
        "model is ViT-B/32 with random numbers in it, so near means alike in brightness and pattern, not in meaning."
    )


if __name__ == "__main__":
    main()
