"""One peer with one model in a process of its own, which answers requests until told to close. Knows no other peer.

Usage: worker.py TASK, a JSON object with the fields of `runners.Task`. processes.py starts it with the peer's own
Python, so it imports nothing of this repository but what `ours` is. Requests come on stdin and answers go to stdout,
one JSON object a line; whatever a library prints goes to stderr. A request that fails ends the process: traceback.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from ceiling import Ceiling
from runners import OnnxRuntime, Ours, OursFast, Runner, Task
from torch_runners import OpenAI, OpenClip, OpenVinoPlain, Transformers

RUNNERS = {
    "openai": OpenAI,
    "ours": Ours,
    "ours-fast": OursFast,
    "transformers": Transformers,
    "open_clip": OpenClip,
    "onnxruntime": OnnxRuntime,
    "openvino-plain": OpenVinoPlain,
    "ceiling": Ceiling,
}
SETTLE_TURNS = 6  # calls of each way and thread count; the shortest counts, as the first is long and others disturbed
FEWER_THREADS = (
    1.2  # how much faster fewer threads must be: where another program is busy, they seem better than they are
)


class Worker:
    """Carries out requests on a runner."""

    def __init__(self, runner: Runner, task: Task) -> None:
        self._runner = runner
        pixels = np.load(task.pixels)  # uint8 (N, R, R, 3)
        self._pixels = pixels[np.arange(task.batch) % len(pixels)]
        self._settled = {"way": task.way or runner.ways[0], "threads": task.threads}
        self._use(**self._settled)

    def settle(self, *, threads: list[int]) -> dict[str, Any]:
        """Take the fastest of the runner's ways and of these thread counts."""
        counts = threads if self._runner.counts_threads else [None]
        best: dict[tuple[str, int | None], float] = {}
        for way in self._runner.ways:
            for count in counts * SETTLE_TURNS:
                self._use(way, count)
                seconds = self.encode(repeat=1)["seconds"][0]
                best[way, count] = min(seconds, best.get((way, count), seconds))
        most = max(counts, key=lambda count: count or 0)
        self._use(*min(best, key=lambda trial: best[trial] * (1 if trial[1] == most else FEWER_THREADS)))
        return self._settled

    def encode(self, *, repeat: int) -> dict[str, Any]:
        """Seconds of each of so many batches, from preprocessed images in memory to vectors."""
        seconds = []
        for _ in range(repeat):
            started = time.perf_counter()
            self._runner.encode(self._images)
            seconds.append(time.perf_counter() - started)
        return {"seconds": seconds}

    def vectors(self, *, path: str) -> dict[str, Any]:
        """Write the batch's vectors, float32 (B, D), to a .npy file."""
        np.save(path, self._runner.to_numpy(self._runner.encode(self._images)))
        return {}

    def embed(self, *, folder: str, loaders: int, path: str, limit: int | None = None) -> dict[str, Any]:
        """Seconds from files to vectors; these go to a .npy file, in the order of the files' names."""
        files = sorted(str(file) for file in Path(folder).iterdir())[:limit]
        started = time.perf_counter()
        vectors = self._runner.embed(files, loaders)
        seconds = time.perf_counter() - started
        np.save(path, vectors)
        return {"seconds": seconds, "images": len(files)}

    def export(self, *, path: str) -> dict[str, Any]:
        """Write the image tower as ONNX."""
        self._runner.export(path)
        return {}

    def gflops(self, *, seconds: float) -> dict[str, Any]:
        """The best matrix product's rate, measured for so many seconds."""
        return self._runner.gflops(seconds)

    def peak(self) -> dict[str, Any]:
        """The most memory this process has had, in bytes; with a GPU's."""
        return {"peak_bytes": peak_resident_bytes(), "peak_device_bytes": self._runner.peak_device_bytes()}

    def _use(self, way: str, threads: int | None) -> None:
        self._runner.use(way, threads)
        self._settled = {"way": way, "threads": self._runner.threads()}
        self._images = self._runner.prepare(self._pixels)


def peak_resident_bytes() -> int:
    """The peak since this program began; `getrusage` would count its parent's before that."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status: found no VmHWM, expected one. Run the row `memory` on Linux.")


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")

    task = Task(**json.loads(sys.argv[1]))
    runner_class = RUNNERS[task.peer]
    say({"imported": runner_class.import_libraries()})
    runner = runner_class(task)
    say({"loaded": runner.device_name()})
    worker = Worker(runner, task)
    for line in sys.stdin:
        request = json.loads(line)
        say(getattr(worker, request.pop("do"))(**request))


if __name__ == "__main__":
    main()
