"""Measure the peak resident memory of processes that load a model and encode images on the CPU, and print a table.

Usage: python bench/memory.py [--model ViT-B/32] [--weights PATH] [--batches 32,32] [--openai FOLDER]

Each line is a process of its own: imports alone, an Encoder that reads images only, at each precision of this CPU, the
drop-in model under no_grad, and with --openai OpenAI's own code in that folder (pip install --no-deps --target FOLDER
clip-anytorch==2.6.0, and what it imports). Columns are the peaks (VmHWM, in MB of 10^6 bytes) that were reached after
imports, after loading, and after each batch; the first one folds and compiles. Weights are the bench's own by formula,
or those of --weights. Linux only.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import paths  # noqa: F401  before the others, so that they find what they import
import torch
from models import model_folder

from clip.engine.devices import usable_precisions

MB = 1e6
CHILD = """
import json, sys, warnings
from pathlib import Path

warnings.simplefilter("ignore")
way, weights, batches, side = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4])
if way == "openai":
    sys.path.insert(0, sys.argv[5])
peaks = []

def note():
    lines = Path("/proc/self/status").read_text().splitlines()
    peaks.append(next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")))

import torch, clip
if way == "model" or way == "openai":
    clip.load
else:
    from clip.engine.backend_openvino import usable_precisions
    clip.Encoder, usable_precisions()
note()
if way == "imports":
    pass
elif way == "model" or way == "openai":
    model = clip.load(weights, device="cpu")[0]
    encode = model.encode_image
else:
    encoder = clip.Encoder(weights, device="cpu", precision=way, batch_size=max(batches))
    encode = lambda images: encoder.encode_pixels(images.numpy())
note()
if way != "imports":
    with torch.no_grad():
        for batch in batches:
            shape = (batch, 3, side, side) if way == "model" or way == "openai" else (batch, side, side, 3)
            encode(torch.zeros(shape, dtype=torch.float32 if shape[1] == 3 else torch.uint8))
            note()
print(json.dumps(peaks))
"""


def peaks_of(way: str, options: argparse.Namespace, side: int) -> list[int]:
    """Peaks of a process, in bytes: after imports, after loading, after each batch."""
    command = [sys.executable, "-c", CHILD, way, str(options.weights), json.dumps(options.batches), str(side)]
    command += [options.openai] if way == "openai" else []
    ran = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(ran.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-B/32")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--batches", default=[32, 32], type=lambda text: [int(part) for part in text.split(",")])
    parser.add_argument("--openai", metavar="FOLDER")
    options = parser.parse_args()
    options.weights = options.weights or model_folder(options.model) / "openai.pt"
    ways = {"imports": "imports alone", "model": "model.encode_image"}
    ways |= {precision: f"Encoder, {precision}" for precision in usable_precisions(torch.device("cpu"))}
    ways |= {"openai": "OpenAI's code"} if options.openai else {}
    ways.pop("int8", None)  # it is calibrated first
    from clip.weights.releases import RELEASES

    print(f"| process | imports | loaded | {' | '.join(f'batch of {size}' for size in options.batches)} |")
    print("| --- " * (3 + len(options.batches)) + "|")
    for way, label in ways.items():
        peaks = [
            f"{peak / MB:,.0f}"
            for peak in peaks_of(way, options, RELEASES[options.model].architecture.image_resolution)
        ]
        print(
            f"| {label} | {' | '.join(peaks)} |"
            if way != "imports"
            else f"| {label} | {peaks[0]} |" + " |" * (1 + len(options.batches)),
            flush=True,
        )


if __name__ == "__main__":
    main()
