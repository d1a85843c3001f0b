"""What a job of a million inputs costs: its listing, its memory, and what each stage adds to the time of an image.

Usage: python bench/scale.py --work DIR [--inputs 1000000] [--folders 1] [--sample 20000] [--turns 3]
                             [--parts list,run,stages] [--model ViT-B/32 --untrained] [--json FILE]

Makes a tree of small JPEGs below DIR, hard links to 200 distinct ones, and keeps it for the next time. The model is a
tiny one by formula. With --model it is a real one on photos of 0.2 megapixels, and only the stages are measured, over
400 of them. Each measurement has a fresh process (scale_worker.py):

  list    seconds and growth of the peak resident memory of a listing: counted, and written into a plan
  run     clip.embed, its resident memory looked at each second; a line is fitted over the second half
  stages  reading, decoding, encoding and writing, each alone over a sample, and the whole pipeline over the same. All
          cores busy with nothing else would make 1 / (sum of the stages' core-seconds an image / cores) images/s;
          how near the pipeline comes to that is the ratio. Medians of some turns. "cores" is how many were busy with
          it, and "others" how many with other programs meanwhile, which should be none.

Linux only: memory is read from /proc. Files are in the page cache unless there are more than it holds.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import paths  # before what it finds below tests/
from kit.checkpoints import write as write_checkpoint  # pyright: ignore[reportMissingImports]
from kit.formula import picture as drawn  # pyright: ignore[reportMissingImports]
from models import whole_folder
from pictures import jpeg
from PIL import Image
from records import Log, cores, rounded
from scale_stages import STAGES
from scale_worker import Task

PARTS = ("list", "run", "stages")
DISTINCT = {"small": 200, "photo": 64}  # images that differ, of each kind
FEW = 64  # images that processes warm up on
SMALL_PX, SOFT = (40, 30), 4  # drawn on a grid so much coarser, which makes a file of 0.8 kB
SAMPLES = {"small": 20_000, "photo": 400}
# Of small images more than they ever take, and so little that the bar on memory means something.
BUDGET_BYTES = {"small": 10_000_000, "photo": 100_000_000}
SEED = 0
MB = 1e6
LISTING_MB = 50  # the most a listing may grow by, for up to a million inputs and for each further million
RUN_MB = 300  # the most a run may have beside its engine and its budget of decoded bytes
RATIO = 0.05  # how far the pipeline may be from what its stages predict


def picture(kind: str, i: int) -> bytes:
    """The i-th image of a kind, encoded."""
    if kind == "photo":
        return jpeg("web", i)
    buffer = io.BytesIO()
    coarse = drawn(i, SMALL_PX[0] // SOFT, SMALL_PX[1] // SOFT)
    coarse.resize(SMALL_PX, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=50)
    return buffer.getvalue()


def tree(work: Path, kind: str, inputs: int, folders: int = 1) -> Path:
    """A tree with so many images, made on first use: distinct ones first, then links to them."""
    root = work / f"{kind}-{inputs}-in-{folders}"
    if root.exists():
        return root
    with whole_folder(root) as part:
        for number in range(folders):
            (part / f"{number:05}").mkdir()
        distinct: list[Path] = []
        for i in range(inputs):
            path = part / f"{i * folders // inputs:05}" / f"{i:08}.jpg"
            if len(distinct) < DISTINCT[kind]:
                path.write_bytes(picture(kind, i))
                distinct.append(path)
                continue
            try:
                os.link(distinct[i % len(distinct)], path)
            except OSError:  # a file system without links, or with fewer to a file
                shutil.copyfile(distinct[i % len(distinct)], path)
    return root


class Measurements:
    """Processes that measure, one after the other, with the same model."""

    def __init__(self, work: Path, kind: str, model: dict[str, Any]) -> None:
        self._work = work
        self._few = tree(work, kind, FEW)
        self._job = {**model, "device": "cpu", "decode_budget_bytes": BUDGET_BYTES[kind]}
        self.decode_budget_bytes = BUDGET_BYTES[kind]

    def measure(self, what: str, source: Path) -> dict[str, Any]:
        """What a fresh process finds; its output is removed."""
        sys.stderr.write(f"{time.strftime('%H:%M:%S')}  {what}\n")
        with tempfile.TemporaryDirectory(dir=self._work) as scratch:
            job = {**self._job, "source": str(source), "output": f"{scratch}/out"}
            task = json.dumps(asdict(Task(what, job, str(self._few))))
            worker = str(Path(__file__).with_name("scale_worker.py"))
            ran = subprocess.run([sys.executable, worker, task], stdout=subprocess.PIPE, text=True, check=False)
        if ran.returncode:
            raise SystemExit(f"{what}: ended with code {ran.returncode}, expected 0. Its last words are above.")
        return json.loads(ran.stdout)


def listing(measurements: Measurements, source: Path, inputs: int) -> dict[str, Any]:
    """How long listing takes, and by how much memory grows."""
    found: dict[str, Any] = {"bar_mb": LISTING_MB * max(1.0, inputs / 1e6)}
    for what in ("count", "plan"):
        measured = measurements.measure(what, source)
        if measured["images"] != inputs:
            raise SystemExit(f"{source}: {measured['images']} were listed, expected {inputs}. Remove the folder.")
        found[what] = {
            "seconds": rounded(measured["seconds"]),
            "files_per_s": rounded(inputs / measured["seconds"]),
            "grown_mb": rounded(measured["grown_bytes"] / MB),
            "before_mb": rounded(measured["before_bytes"] / MB),
            "held": measured["grown_bytes"] / MB < found["bar_mb"],
        }
    return found


def whole_run(measurements: Measurements, source: Path) -> dict[str, Any]:
    """How long a run takes, and whether its memory grows with the input."""
    engine, run = measurements.measure("engine", source), measurements.measure("run", source)
    peak, alone, budget = run["peak_bytes"], engine["peak_bytes"], measurements.decode_budget_bytes
    slope = run["slope_kb_per_1000"]
    return {
        "seconds": rounded(run["seconds"]),
        "images_per_s": rounded(run["images"] / run["seconds"]),
        "read": run["images"],
        "written": run["written"],
        "failed": run["failed"],
        "rss_mb": {part: rounded(size / MB) for part, size in run["at_bytes"].items()},
        "slope_kb_per_1000": None if slope is None else rounded(slope),
        "looks_in_second_half": run["looks_in_second_half"],
        "peak_mb": rounded(peak / MB),
        "engine_mb": rounded(alone / MB),
        "decode_budget_mb": rounded(budget / MB),
        "beside_mb": rounded((peak - alone - budget) / MB),
        "bar_mb": RUN_MB,
        "held": (peak - alone - budget) / MB < RUN_MB and run["images"] == run["written"] + run["failed"],
    }


def stages(measurements: Measurements, source: Path, turns: int) -> dict[str, Any]:
    """What each stage costs alone, and the pipeline beside what that predicts. Stages take turns."""
    costs: dict[str, list[dict[str, Any]]] = {what: [] for what in (*STAGES, "pipeline")}
    for _ in range(turns):
        for what, measured in costs.items():
            measured.append(measurements.measure(what, source))
    found: dict[str, Any] = {"images": costs["read"][0]["images"], "turns": turns, "cores": cores()}
    for what, measured in costs.items():
        rates = [one["images"] / one["seconds"] for one in measured]
        found[what] = {
            "images_per_s": rounded(statistics.median(rates)),
            "spread": rounded((max(rates) - min(rates)) / statistics.median(rates)),
            "threads": measured[0]["threads"],
            "core_ms": rounded(statistics.median(map(core_ms, measured))),
            "cores": rounded(statistics.median(one["core_s"] / one["seconds"] for one in measured)),
            "others_cores": rounded(statistics.median(one["others_core_s"] / one["seconds"] for one in measured)),
        }
    sums = [sum(map(core_ms, turn)) for turn in zip(*(costs[what] for what in STAGES), strict=True)]
    predicted = [1000 * cores() / of_turn for of_turn in sums]
    pairs = list(zip(costs["pipeline"], predicted, strict=True))
    ratios = [one["images"] / one["seconds"] / rate for one, rate in pairs]
    # The same with the cores that other programs left alone while the pipeline ran.
    left = [one["images"] / rate / (one["seconds"] - one["others_core_s"] / cores()) for one, rate in pairs]
    return found | {
        "batch_size": costs["encode"][0]["batch_size"],
        "sum_core_ms": rounded(statistics.median(sums)),
        "predicted_images_per_s": rounded(statistics.median(predicted)),
        "ratio": rounded(statistics.median(ratios)),
        "ratio_range": [rounded(min(ratios)), rounded(max(ratios))],
        "ratio_of_cores_left": rounded(statistics.median(left)),
        "held": abs(statistics.median(ratios) - 1) <= RATIO,
    }


def core_ms(cost: dict[str, Any]) -> float:
    """Milliseconds of one core that an image took."""
    return 1000 * cost["core_s"] / cost["images"]


def table(found: dict[str, Any]) -> str:
    """All of it for people to read."""
    lines = [found["model"] + (" untrained" if found["untrained"] else "")]
    if "inputs" in found:
        lines.append(f"{found['inputs']:,} inputs in {found['folders']:,} folder(s)")
    if "list" in found:
        lines += ["", f"{'listing':<12}{'seconds':>10}{'files/s':>12}{'MB more':>10}   less than {LISTING_MB} MB"]
        for what in ("count", "plan"):
            row = found["list"][what]
            numbers = f"{row['seconds']:>10.2f}{row['files_per_s']:>12,.0f}{row['grown_mb']:>10.1f}"
            lines.append(f"{what:<12}{numbers}   {verdict(row)}")
    if "run" in found:
        row = found["run"]
        memory = ", ".join(f"{size:.0f} MB at {part}" for part, size in row["rss_mb"].items())
        slope = "too short to tell" if row["slope_kb_per_1000"] is None else f"{row['slope_kb_per_1000']:.1f} KB"
        lines += [
            "",
            f"run         {row['seconds']:.1f} s, {row['images_per_s']:,.0f} images/s; {row['read']:,} read = "
            f"{row['written']:,} written + {row['failed']:,} failed",
            f"memory      {memory}",
            f"slope       {slope} a thousand inputs, over the second half ({row['looks_in_second_half']} looks)",
            f"peak        {row['peak_mb']:.0f} MB - engine alone {row['engine_mb']:.0f} - decode budget "
            f"{row['decode_budget_mb']:.0f} = {row['beside_mb']:.0f} MB, less than {RUN_MB}: {verdict(row)}",
        ]
    if "stages" in found:
        row = found["stages"]
        title = f"{'stage':<12}{'images/s':>10}{'spread':>9}{'threads':>9}{'core-ms':>10}{'cores':>8}{'others':>8}"
        lines += ["", f"{title}   {row['images']:,} images, batches of {row['batch_size']}"]
        for what in (*STAGES, "pipeline"):
            one = row[what]
            numbers = f"{one['images_per_s']:>10,.0f}{one['spread']:>9.1%}{one['threads'] or 'all':>9}"
            busy = f"{one['core_ms']:>10.4f}{one['cores']:>8.2f}{one['others_cores']:>8.2f}"
            lines.append(f"{what:<12}{numbers}{busy}")
        low, high = row["ratio_range"]
        lines += [
            f"predicted   {row['predicted_images_per_s']:>10,.0f}{row['sum_core_ms']:>28.4f}{row['cores']:>8.2f}",
            f"ratio       {row['ratio']:>10.3f}   ({low:.3f} to {high:.3f}) within {RATIO:.0%}: {verdict(row)}; "
            f"{row['ratio_of_cores_left']:.3f} of what other programs left",
        ]
    return "\n".join(lines) + "\n"


def verdict(row: dict[str, Any]) -> str:
    return "held" if row["held"] else "MISSED"


def parsed(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="a folder for the inputs, which stay")
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--folders", type=int, default=1, help="the inputs are spread over so many")
    parser.add_argument("--sample", type=int, help=f"images for the stages; {SAMPLES['small']}, or 400 with --model")
    parser.add_argument("--turns", type=int, default=3, help="of each stage")
    parser.add_argument("--parts", help=f"{','.join(PARTS)}; with --model only stages")
    parser.add_argument("--model", help="a released name or a weights file, instead of the tiny model")
    parser.add_argument("--untrained", action="store_true", help="draw the model's weights at random")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append the figures, one object a line")
    asked = parser.parse_args(arguments)
    asked.parts = (asked.parts or ("stages" if asked.model else ",".join(PARTS))).split(",")
    if wrong := [part for part in asked.parts if part not in PARTS]:
        parser.error(f"--parts: found {wrong[0]!r}, expected some of {','.join(PARTS)}. Pass these.")
    if asked.untrained and asked.model is None:
        parser.error("--untrained: found no --model, expected a released name. Pass one, as --model ViT-B/32.")
    return asked


def main() -> None:
    asked = parsed(sys.argv[1:])
    work, kind = asked.work.resolve(), "photo" if asked.model else "small"
    work.mkdir(parents=True, exist_ok=True)
    if asked.model is None:
        model = {"model": str(write_checkpoint(work, "tiny-vit"))}
    else:
        model = {"model": asked.model} | ({"untrained": SEED} if asked.untrained else {})
    measurements = Measurements(work, kind, model)
    found: dict[str, Any] = {"bench": "scale", "model": asked.model or "tiny-vit", "untrained": asked.untrained}
    if "list" in asked.parts or "run" in asked.parts:
        found |= {"inputs": asked.inputs, "folders": asked.folders}
        source = tree(work, kind, asked.inputs, asked.folders)
        if "list" in asked.parts:
            found["list"] = listing(measurements, source, asked.inputs)
        if "run" in asked.parts:
            found["run"] = whole_run(measurements, source)
    if "stages" in asked.parts:
        sample = tree(work, kind, asked.sample or SAMPLES[kind])
        found["stages"] = stages(measurements, sample, asked.turns)
    sys.stdout.write(table(found))
    if asked.json is not None:
        Log(asked.json, paths.ROOT).write(found)


if __name__ == "__main__":
    main()
