"""Time and memory of loading an archive of ViT-L/14's shape, beside reading the file and converting its tensors.

Usage: python bench/load.py [--pairs 5]

Makes a TorchScript archive by tracing our own model, fp16 and fp32 mixed as OpenAI's are (933 MB). In turn, each in a
process of its own, it runs `clip.load` on the CPU, and the least a loader must do: read the file's bytes and make
an fp32 copy of each tensor. Prints one JSON line: medians, their ratio, and the growth of the peak resident memory.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import torch

from clip.model import convert_weights, load_weights
from clip.weights.checkpoints import draw_checkpoint

CHILD = """
import json, os, sys, time
import torch, clip, clip.clip, clip.weights.checkpoints
from clip.weights.torch_file import ScriptState, read_torch_file
from pathlib import Path

def resident(what):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(what + ":")) * 1024

before, started = resident("VmRSS"), time.perf_counter()
if sys.argv[1] == "load":
    model, _ = clip.load(sys.argv[2], device="cpu")
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    largest = max(p.numel() * p.element_size() for p in model.parameters())
else:
    data = Path(sys.argv[2]).read_bytes()
    del data
    value = read_torch_file(Path(sys.argv[2]))
    views = (value.tensors if isinstance(value, ScriptState) else value).values()
    tensors = [t.to(torch.float32, copy=True) for t in views if t.is_floating_point()]
    size = largest = 0
print(json.dumps({"seconds": time.perf_counter() - started, "grown": resident("VmHWM") - before,
                  "model": size, "largest": largest}))
"""


def trace(path: Path) -> None:
    """An archive of ViT-L/14's shape, as OpenAI's are."""
    checkpoint = draw_checkpoint("ViT-L/14", 0)
    model = load_weights(checkpoint.state_dict, checkpoint.architecture, mixed_fp16=False)
    del model.context_length, model.vocab_size
    for name, value in (("input_resolution", 224), ("context_length", 77), ("vocab_size", 49408)):
        model.register_buffer(name, torch.tensor(value))
    image, text = torch.zeros(1, 3, 224, 224), torch.zeros(1, 77, dtype=torch.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is deprecated, and remarks on shapes
        inputs = {"encode_image": image, "encode_text": text, "forward": (image, text)}
        traced = torch.jit.trace_module(model, inputs, check_trace=False)
        convert_weights(model)  # the traced module shares its tensors
        torch.jit.save(traced, str(path))


def run(what: str, path: Path) -> dict[str, float]:
    ran = subprocess.run([sys.executable, "-c", CHILD, what, str(path)], check=True, capture_output=True, text=True)
    return json.loads(ran.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    pairs = parser.parse_args().pairs
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "archive.pt"
        trace(path)
        run("read", path)  # into the page cache
        loads, reads = [], []
        for _ in range(pairs):
            loads.append(run("load", path))
            reads.append(run("read", path))
        size = path.stat().st_size
    load_s = statistics.median(row["seconds"] for row in loads)
    read_s = statistics.median(row["seconds"] for row in reads)
    line = {
        "bench": "load",
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "torch": torch.__version__,
        "archive_mb": round(size / 1e6),
        "load_s": round(load_s, 2),
        "read_and_convert_s": round(read_s, 2),
        "ratio": round(load_s / read_s, 2),
        "model_mb": round(loads[0]["model"] / 1e6),
        "largest_tensor_mb": round(loads[0]["largest"] / 1e6),
        "peak_grown_mb": round(max(row["grown"] for row in loads) / 1e6),
        "pairs": pairs,
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
