"""The IVF index on vectors drawn like real ones: made, searched; beside the exact index, faiss's IVF and its HNSW.

Usage: python bench/ivf.py --work DIR [--rows 2000000] [--codes sq8] [--recall 0.99] [--peers ivf,hnsw] [--queries 200]
       python bench/ivf.py --work DIR --rows 20000000 --synthetic

Writes an output of vectors drawn from the statistics of OpenAI's ViT-B/32 (tests/kit/lopsided.py), photos for the rows,
in parts of 10,000. Its IVF index is made in a process of its own, whose text queries are drawn prompts; its memory
is what is resident and no page of a file. Queries drawn anew, photos and prompts apart, are then put to the exact index
and to this one, and to faiss's IVF and HNSW with their defaults: 4 sqrt(N) lists of which 1 is read; 32 links, 16
candidates. The recall@10 is by the exact search. Prints a table and a JSON line. DIR needs 7 KB per row, and faiss's
own indexes 3 KB of memory. With --synthetic no output is written: rows are drawn whenever they are read, so that only
the index is on the disk (132 bytes per row, twice while it is made); it fails where the build takes more than --memory.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from kit import lopsided

import clip
from clip.records import Row, Shard
from clip.retrieval import indexing
from clip.retrieval.ivf_build import build
from clip.retrieval.ivf_file import IvfIndex
from clip.retrieval.recall import measure
from clip.store.manifest import Manifest
from clip.store.rows_file import open_derived
from clip.store.writer import StoreWriter

PART, K, SEEDS = 10_000, 10, {"rows": 0, "measured": 1, "photo": 2, "text": 3}
KINDS = ("photo", "text")


def write(out: Path, rows: int) -> None:
    """Write an output as clip embed does."""
    writer = StoreWriter(out, Manifest(dim=lopsided.DIM, model="none"))
    writer.begin("input")
    rng = np.random.default_rng(SEEDS["rows"])
    for shard, start in enumerate(range(0, rows, PART)):
        count = min(PART, rows - start)
        records = [
            Row(f"{n:09}.jpg", f"photos/{n:09}.jpg", 1024, 768, "JPEG", 99_999) for n in range(start, start + count)
        ]
        writer.commit(Shard(shard, [], "fingerprint"), records, lopsided.draw("photo", count, rng), [])


class Memory:
    """The most memory of this process that is no page of a file, looked at twenty times a second."""

    def __init__(self) -> None:
        self.peak = 0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            with open("/proc/self/status") as status:  # noqa: PTH123
                found = next(int(line.split()[1]) for line in status if line.startswith("RssAnon:"))
            self.peak = max(self.peak, 1024 * found)
            time.sleep(0.05)


def make(out: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    memory = Memory()
    base = memory.peak
    prompts = draw_prompts(200)
    indexing._encode_texts = lambda *_: prompts
    job = clip.IndexJob(output=out, type="ivf", codes=arguments.codes, recall=arguments.recall, memory=arguments.memory)
    stages: dict[str, float] = {}
    began = last = time.perf_counter()

    def tell(what: str, _done: int, _total: int) -> None:
        nonlocal last
        now = time.perf_counter()
        stages[what] = stages.get(what, 0.0) + now - last
        last = now

    report = clip.index(job, tell)
    return {
        "s": round(time.perf_counter() - began, 1),
        "stages s": {what: round(seconds, 1) for what, seconds in stages.items()},
        "MB": round(report.size_bytes / 1e6),
        "peak MB": round((memory.peak - base) / 1e6),
        "lists": report.lists,
        "measured": [[r.queries, r.recall, r.lists, r.again, r.share, r.milliseconds] for r in report.recall],
    }


class SyntheticRows:
    """Rows that are drawn whenever they are read, in place of a RowsFile."""

    dim, block = lopsided.DIM, 64

    def __init__(self, count: int) -> None:
        self._count = count
        self.parts = [("drawn", 0, 0, count)]
        self.stamp = {"parts": "drawn", "rows": count}

    def __len__(self) -> int:
        return self._count

    def read_span(self, start: int, stop: int) -> np.ndarray:
        """Return successive rows."""
        first = start // self.block
        blocks = [
            lopsided.draw("photo", self.block, np.random.default_rng(n)) for n in range(first, -(-stop // self.block))
        ]
        return np.concatenate(blocks)[start - first * self.block : stop - first * self.block]

    def read_vectors(self, places: np.ndarray) -> np.ndarray:
        """Return rows at some places."""
        return np.concatenate([self.read_span(place, place + 1) for place in places.tolist()])

    def take(self, places: list[int], _columns: list[str]) -> pa.Table:
        """Return the ids of rows."""
        return pa.table({"id": [f"{place:09}" for place in places]})

    def release(self, _places: np.ndarray) -> None:
        """Do nothing: no memory is held."""


def build_synthetic(arguments: argparse.Namespace) -> dict[str, Any]:
    """Build and measure an index of drawn rows. Raises: SystemExit where it takes more memory than it may."""
    rows: Any = SyntheticRows(arguments.rows)
    rows.read_span(0, 1)
    memory, began = Memory(), time.perf_counter()
    time.sleep(0.2)
    base = memory.peak
    stage = ""

    def tell(what: str, _done: int, _total: int) -> None:
        nonlocal stage
        if what != stage:
            stage = what
            print(
                f"{time.perf_counter() - began:8.0f} s  {memory.peak / 1e6:6.0f} MB  {what}",
                file=sys.stderr,
                flush=True,
            )

    path, _ = build(arguments.work / "ivf", rows, arguments.codes, arguments.memory, None, tell)
    built = time.perf_counter() - began
    file = open_derived(path)
    if file is None:
        raise SystemExit(f"{path} is not there")
    prompts = draw_prompts(arguments.queries)
    measured = measure(IvfIndex(file, rows), prompts, arguments.recall, tell)
    peak = memory.peak - base
    if peak > arguments.memory:
        raise SystemExit(f"took {peak:,} bytes, of {arguments.memory:,}")
    size_bytes = path.stat().st_size
    shutil.rmtree(arguments.work / "ivf")
    return {
        "rows": arguments.rows,
        "s": round(built),
        "peak MB": round(peak / 1e6),
        "MB": round(size_bytes / 1e6),
        **measured,
    }


def ask(out: Path, arguments: argparse.Namespace, *, exact: bool) -> dict[str, Any]:
    index = clip.Index(out, exact=exact)
    found: dict[str, Any] = {}
    for kind, queries in (("photo", "rows"), ("text", "texts")):
        hits, seconds = [], []
        for query in draw_queries(kind, arguments.queries).astype(np.float64):
            unit = query / np.linalg.norm(query)
            began = time.perf_counter()
            hits.append([place for place, _ in index.rank(unit, K, queries=queries)])
            seconds.append(time.perf_counter() - began)
        found[kind] = {"hits": hits, "ms": 1e3 * float(np.median(seconds))}
    return found


def ask_peer(name: str, out: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    import faiss

    lists = int(4 * arguments.rows**0.5)
    spelt = f"IVF{lists},Flat" if name == "ivf" else "HNSW32,Flat"
    index = faiss.index_factory(lopsided.DIM, spelt, faiss.METRIC_INNER_PRODUCT)
    vectors = clip.Store(out).vectors()
    began = time.perf_counter()
    if not index.is_trained:
        index.train(np.array(vectors[:: max(1, arguments.rows // (50 * lists))], np.float32))
    for start in range(0, arguments.rows, PART):
        index.add(np.array(vectors[start : start + PART], np.float32))
    found: dict[str, Any] = {"make s": round(time.perf_counter() - began, 1)}
    for kind in KINDS:
        hits, seconds = [], []
        for query in draw_queries(kind, arguments.queries):
            began = time.perf_counter()
            hits.append(index.search(query[None], K)[1][0].tolist())
            seconds.append(time.perf_counter() - began)
        found[kind] = {"hits": hits, "ms": 1e3 * float(np.median(seconds))}
    return found


def draw_prompts(count: int) -> np.ndarray:
    """Return the text queries of a measurement. Shapes: -> float64 (count, 512), of unit length."""
    prompts = lopsided.draw("text", count, np.random.default_rng(SEEDS["measured"])).astype(np.float64)
    return prompts / np.linalg.norm(prompts, axis=1, keepdims=True)


def draw_queries(kind: Any, count: int) -> np.ndarray:
    return lopsided.draw(kind, count, np.random.default_rng(SEEDS[kind]))


def compute_recall(hits: list[list[int]], truth: list[list[int]]) -> float:
    return float(np.mean([len(set(some) & set(best)) / K for some, best in zip(hits, truth, strict=True)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--codes", default="sq8")
    parser.add_argument("--recall", type=float, default=0.99)
    parser.add_argument("--memory", type=int, default=2**30)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--peers", default="ivf,hnsw")
    parser.add_argument("--keep", action="store_true", help="Leave the output, and take one that is there.")
    parser.add_argument("--synthetic", action="store_true", help="Draw rows whenever they are read.")
    parser.add_argument("--step", help="What a process of its own does.")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.synthetic:
        print(json.dumps(build_synthetic(arguments)))
        return
    out = arguments.work / "out"
    steps = {
        "make": lambda: make(out, arguments),
        "exact": lambda: ask(out, arguments, exact=True),
        "clip": lambda: ask(out, arguments, exact=False),
        **{name: lambda name=name: ask_peer(name, out, arguments) for name in ("ivf", "hnsw")},
    }
    if arguments.step:
        print(json.dumps(steps[arguments.step]()))
        return
    if not (arguments.keep and out.exists()):
        write(out, arguments.rows)
    found: dict[str, dict[str, Any]] = {}
    for step in ("make", "exact", "clip", *filter(None, arguments.peers.split(","))):
        command = [sys.executable, __file__, *sys.argv[1:], "--step", step]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        found[step] = json.loads(done.stdout.splitlines()[-1])
        print(
            step, {name: value for name, value in found[step].items() if name not in KINDS}, file=sys.stderr, flush=True
        )
    if not arguments.keep:
        shutil.rmtree(out)
    report: dict[str, Any] = {"rows": arguments.rows, "cores": os.cpu_count(), "codes": arguments.codes, **found}
    for name in ("exact", "clip", *filter(None, arguments.peers.split(","))):
        for kind in KINDS:
            of = report[name][kind]
            of["recall"] = round(compute_recall(of["hits"], found["exact"][kind]["hits"]), 4)
            of["times the exact"] = round(of["ms"] / found["exact"][kind]["ms"], 4)
            print(f"{name:6} {kind:6} recall@10 {of['recall']:.4f}  {of['ms']:8.2f} ms  {of['times the exact']:.3f}")
    for name in ("exact", "clip", *filter(None, arguments.peers.split(","))):
        for kind in KINDS:
            del report[name][kind]["hits"]
    print(json.dumps(report))


if __name__ == "__main__":
    main()
