"""Print by how many bytes loading a file raises the peak of memory, after loading a small one."""

import sys
from pathlib import Path

import clip


def status_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


small, large = sys.argv[1:]
clip.load(small, device="cpu")
before = status_bytes("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
model, _ = clip.load(large, device="cpu")
print(status_bytes("VmHWM") - before)
