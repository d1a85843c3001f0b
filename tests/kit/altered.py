"""A small output that no model made, and what every reader of ours makes of it."""

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import clip
from clip.batch.verify import verify
from clip.errors import ClipError
from clip.jobs.export import ExportJob
from clip.jobs.verify import VerifyJob
from clip.records import Failure, Item, Row, Shard
from clip.store.export import export
from clip.store.manifest import Manifest
from clip.store.plan import write_plan
from clip.store.writer import StoreWriter

DIM, ROWS, SHARDS = 8, 9, 2
QUERY = np.arange(1, DIM + 1)


def write_output(out: Path, dtype: str = "float32") -> Path:
    """Two shards of nine rows and a failure each, an index and mapped vectors."""
    out.mkdir()
    items = [
        [Item(f"{shard}/{n}.jpg", f"in/{shard}/{n}.jpg", 9, 1) for n in range(ROWS + 1)] for shard in range(SHARDS)
    ]
    plan = write_plan(out, (Shard(index, [*some]) for index, some in enumerate(items)), Counter()).adopt()
    writer = StoreWriter(out, Manifest(dim=DIM, dtype=dtype, model="sketch", shard_size=ROWS + 1))
    writer.begin(plan.fingerprint)
    rng = np.random.default_rng(0)
    for shard in plan:
        vectors = rng.standard_normal((ROWS, DIM)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        rows = [Row(entry.id, entry.path, 640, 480, "JPEG", 9) for entry in shard.entries[:-1]]
        last = shard.entries[-1]
        with writer.part(shard) as part:
            part.add(rows, {"embedding": vectors}, [Failure(last.id, last.path, "decode", "OSError", "broken")])
            part.note(ROWS + 1, {})
    counts = {"read": SHARDS * (ROWS + 1), "written": SHARDS * ROWS, "failed": SHARDS}
    writer.finish({**counts, "ignored": {}})
    clip.Store(out).vectors()
    clip.Index(out)
    return out


class Results(dict[str, Any]):
    """Results by reader, whose representation leaves a report of a failing test readable."""

    def __repr__(self) -> str:
        return str({name: str(value)[:80] for name, value in self.items()})


def read_all(out: Path, scratch: Path) -> Results:
    """What each reader gives: its result, or the ClipError that it raised. Any other exception is the test's."""

    def exported() -> dict[str, bytes]:
        report = export(ExportJob(output=out, target=scratch, format="npy"))
        return {name: (scratch / name).read_bytes() for name in report.files}

    def store() -> clip.Store:
        return clip.Store(out)

    readers: dict[str, Callable[[], Any]] = {
        "verify": lambda: verify(VerifyJob(output=out)).problems,
        "table": lambda: store().table().to_pylist(),
        "ids": lambda: store().table(["id"]).to_pylist(),
        "failures": lambda: store().failures().to_pylist(),
        "vectors": lambda: store().vectors().tobytes(),
        "search": lambda: clip.Index(out).search(vector=QUERY, k=2 * ROWS),
        "export": exported,
    }
    found = Results()
    for name, read in readers.items():
        try:
            found[name] = read()
        except ClipError as exc:
            str(exc)
            found[name] = exc
    shutil.rmtree(scratch, ignore_errors=True)
    return found


def find_wrong(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """The readers that gave another result and no error; a problem is an error of verify."""
    return [
        name
        for name, value in found.items()
        if value != expected[name] and not isinstance(value, ClipError) and not (name == "verify" and value)
    ]
