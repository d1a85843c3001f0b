"""Time and memory of the exact index: made, opened, searched by faiss and by numpy.

Usage: python bench/search.py --work DIR [--rows 1000000] [--dim 512] [--turns 3] [--queries 40]

Writes an output of random vectors around a few hundred centres, as those of images are, in parts of 10,000, and makes
its index in a separate process. Then, in turns, a process for each engine opens it and searches, alternately by a
centre and by a vector far from all. The hits of every query are compared between the engines, and of some queries with
a plain product of all vectors in float64. Prints a JSON line. DIR needs 7 KB per row of 512.
"""

import argparse
import hashlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np

from clip.records import Row, Shard
from clip.store.manifest import Manifest
from clip.store.writer import StoreWriter

PART, CENTRES, SPREAD = 10_000, 300, 0.8
PEAK = """
def resident(what):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(what + ":")) * 1024
"""
MAKE = f"""{PEAK}
import json, sys, time
import clip
report = clip.index(clip.IndexJob(output=sys.argv[1]))
print(json.dumps({{"seconds": report.seconds, "bytes": report.size_bytes, "peak": resident("VmHWM")}}))
"""
ASK = f"""{PEAK}
import hashlib, json, sys, time
import numpy as np
import clip
out, engine, queries, compared = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
started = time.perf_counter()
index = clip.Index(out, engine=engine)
load, after_load = time.perf_counter() - started, resident("VmRSS")
rng = np.random.default_rng(1)
vectors = rng.standard_normal((queries, index.store.dim))
vectors[::2] = np.random.default_rng(0).standard_normal((300, index.store.dim))[:len(vectors[::2])]
seconds, results = [], []
for vector in vectors:
    started = time.perf_counter()
    results.append(index.search(vector=vector, k=10))
    seconds.append(time.perf_counter() - started)
after = resident("VmRSS")
index.search(vector=vectors[0], k=10, where="width > 1000")
started = time.perf_counter()
index.search(vector=vectors[0], k=10, where="width > 1000")
where = time.perf_counter() - started
if compared:
    stored, ids = index.store.vectors(), index.store.table(["id"]).column("id")
    for vector, hits in list(zip(vectors, results))[:compared]:
        exact = np.concatenate([wide @ vector / np.linalg.norm(wide, axis=1) / np.linalg.norm(vector)
            for wide in (stored[s : s + 5000].astype(np.float64) for s in range(0, len(stored), 5000))])
        order = np.argsort(-exact, kind="stable")[:10]
        expected = sorted((-round(float(exact[place]), 9), ids[int(place)].as_py()) for place in order)
        assert expected == [(-hit.score, hit.id) for hit in hits]
digest = hashlib.sha256(json.dumps([[(h.id, h.score) for h in hits] for hits in results]).encode()).hexdigest()
print(json.dumps({{"load": load, "first": seconds[0], "seconds": sorted(seconds[1:])[len(seconds) // 2], "where": where,
                  "worst": max(seconds[1:]), "after_load": after_load, "after": after, "hits": digest}}))
"""


def write(out: Path, rows: int, dim: int) -> None:
    """Write an output as clip embed does."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((CENTRES, dim)).astype(np.float32)
    writer = StoreWriter(out, Manifest(dim=dim, model="none"))
    writer.begin("input")
    for index, start in enumerate(range(0, rows, PART)):
        count = min(PART, rows - start)
        vectors = centres[rng.integers(0, CENTRES, count)] + SPREAD * rng.standard_normal((count, dim), np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        names = [hashlib.md5(str(n).encode(), usedforsecurity=False).hexdigest() for n in range(start, start + count)]
        records = [Row(f"{n[:2]}/{n}.jpg", f"/photos/{n[:2]}/{n}.jpg", 1024, 768, "JPEG", 99_999) for n in names]
        writer.commit(Shard(index, [], "fingerprint"), records, vectors, [])


def run(script: str, *arguments: object) -> dict[str, float]:
    done = subprocess.run([sys.executable, "-c", script, *map(str, arguments)], stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--queries", type=int, default=40)
    parser.add_argument("--checked", type=int, default=5, help="Queries compared with a plain product.")
    arguments = parser.parse_args()
    out = arguments.work / "out"
    write(out, arguments.rows, arguments.dim)
    made = run(MAKE, out)
    turns: dict[str, list[dict[str, float]]] = {"faiss": [], "numpy": []}
    for turn in range(arguments.turns):
        for engine, results in turns.items():
            results.append(run(ASK, out, engine, arguments.queries, 0 if turn else arguments.checked))
    shutil.rmtree(out)
    if len({result["hits"] for results in turns.values() for result in results}) != 1:
        raise SystemExit("faiss and numpy found different hits")
    code_bytes = arguments.rows * arguments.dim * 2
    report: dict[str, object] = {
        "rows": arguments.rows,
        "dim": arguments.dim,
        "cores": os.cpu_count(),
        "cpu": platform.machine(),
    }
    report["make"] = {
        "s": round(made["seconds"], 1),
        "file MB": round(made["bytes"] / 1e6),
        "peak MB": round(made["peak"] / 1e6),
    }
    for engine, results in turns.items():
        middle = {name: statistics.median(result[name] for result in results) for name in results[0] if name != "hits"}
        report[engine] = {
            "load s": round(middle["load"], 2),
            "first ms": round(1e3 * middle["first"], 1),
            "median ms": round(1e3 * middle["seconds"], 1),
            "worst ms": round(1e3 * middle["worst"], 1),
            "where ms": round(1e3 * middle["where"], 1),
            "MB after load": round(middle["after_load"] / 1e6),
            "MB after queries": round(middle["after"] / 1e6),
            "MB over fp16 vectors": round(middle["after"] / code_bytes, 2),
        }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
