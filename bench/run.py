"""Ours beside its peers, on the same weights and images, in turns: JSON lines, and the README's table of them.

Usage: python bench/run.py [--rows encode,latency,jpeg-web,jpeg-12mp,start,memory] [--models all]
                           [--precisions fp32,bf16] [--device cpu] [--peers all] [--pairs 5]
                           [--output bench/results.jsonl]
       python bench/run.py --table bench/results.jsonl [--write README.md]

Each peer runs in an environment of its own below bench/.venvs, made on first use (bench/requirements has the
versions); with --device cuda in this interpreter, or not at all. Weights and images by formula go to bench/.cache.
The reference is OpenAI's own code in fp32 (fp16 on CUDA), at the thread count that is best for it; ratios are to it.
Progress goes to stderr.
"""

import argparse
import sys
import time
from pathlib import Path

import paths  # noqa: F401  before the others, so that they find what they import
import rows
import table
from fresh import memory, start
from models import BATCHES
from peers import PEERS, ROOT
from records import Log
from session import Options, Session

ROWS = {
    "encode": [rows.encode],
    "latency": [rows.latency],
    "jpeg-web": [rows.jpeg_web],
    "jpeg-12mp": [rows.jpeg_12mp],
    "start": [start],
    "memory": [memory],
}
PRECISIONS = {"cpu": ("fp32", "bf16"), "cuda": ("fp16",)}


def chosen(asked: str, known: list[str], what: str) -> tuple[str, ...]:
    """Names from a list with commas; "all" for all that are known."""
    names = known if asked == "all" else asked.split(",")
    for name in names:
        if name not in known:
            raise SystemExit(f"--{what}: found {name!r}, expected some of {','.join(known)}, or all. Pass these.")
    return tuple(names)


def parsed(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="all", help=",".join(ROWS))
    parser.add_argument("--models", default="all", help=",".join(BATCHES["cpu"]))
    parser.add_argument("--precisions", default=None, help="fp32,bf16 (and int8, asked for) on a CPU, fp16 on CUDA")
    parser.add_argument("--device", default="cpu", choices=tuple(BATCHES))
    parser.add_argument("--peers", default="all", help=",".join(PEERS))
    parser.add_argument("--pairs", type=int, default=5, help="turns of each")
    parser.add_argument("--pictures", type=int, help="JPEGs in a folder; fewer for larger models without")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results.jsonl")
    parser.add_argument("--table", type=Path, metavar="RESULTS", help="print the table of a file of results, and stop")
    parser.add_argument(
        "--write", type=Path, metavar="FILE", help="put it, without the bar, between the bench markers of a file"
    )
    return parser.parse_args(arguments)


def main() -> None:
    asked = parsed(sys.argv[1:])
    if asked.table is not None:
        lines = table.read(asked.table)
        if asked.write is None:
            sys.stdout.write(table.markdown(lines))
        else:
            shown = table.markdown(lines, judged=False)
            asked.write.write_text(table.replaced(asked.write.read_text(encoding="utf-8"), shown), encoding="utf-8")
        return
    options = Options(
        device=asked.device,
        rows=chosen(asked.rows, list(ROWS), "rows"),
        models=chosen(asked.models, list(BATCHES[asked.device]), "models"),
        precisions=chosen(
            asked.precisions or ",".join(PRECISIONS[asked.device]), ["fp32", "bf16", "fp16", "int8"], "precisions"
        ),
        peers=chosen(asked.peers, list(PEERS), "peers"),
        pairs=asked.pairs,
        pictures=asked.pictures,
        output=asked.output,
    )
    session, log, began = Session(options), Log(options.output, ROOT), time.monotonic()
    for row in options.rows:
        for model in options.models:
            sys.stderr.write(f"{time.monotonic() - began:6.0f} s  {row} {model}\n")
            for measure in ROWS[row]:
                measure(session, log, model)


if __name__ == "__main__":
    main()
