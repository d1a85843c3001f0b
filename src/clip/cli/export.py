"""The command `clip export`. Knows nothing about file formats."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, get_args

import click

from ..jobs.export import ExportJob
from ..jobs.options import (
    ExportFormat,
)
from .progress import summarise
from .signals import undisturbed


@click.command()
@click.argument("output", metavar="OUT")
@click.argument("target", metavar="TARGET")
@click.option("--format", type=click.Choice(get_args(ExportFormat)), required=True, help="Of the files in TARGET.")
@click.option("--overwrite", is_flag=True, help="Replace an earlier export in TARGET.")
@click.option("--json", "as_json", is_flag=True, help="The summary as one JSON object, on stdout too.")
def export(*, as_json: bool, **options: Any) -> None:
    """Write the vectors that `clip embed` left in OUT into the folder TARGET, as files for other programs.

    npy: vectors.npy and ids.parquet. clip-retrieval: img_emb/img_emb_*.npy and metadata/metadata_*.parquet, float16 of
    unit length. csv: vectors.csv. safetensors: vectors.safetensors and ids.parquet. All in the order of OUT, and with
    export.json. Exit code 0: done; 1: the export failed, and nothing is left of it; 2: it did not begin.
    """
    job = ExportJob(**options)
    with undisturbed():
        from ..store import export as exporting

    report = exporting.export(job)
    files = f"{len(report.files):,} files in {report.target}"
    summarise(asdict(report) if as_json else f"exported {report.rows:,} rows as {job.format}; {files}")
