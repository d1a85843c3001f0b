"""The command `clip export`: write the vectors of an output as files for other programs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, get_args

import click

from ..jobs.export import ExportJob
from ..jobs.options import ExportFormat
from .flags import GroupedCommand
from .progress import summarise

OVERWRITE_HELP = "Replace an earlier export in TARGET; files that it did not write are never removed."
EXAMPLES = ("clip export out/ to/ --format npy",)


@click.command(cls=GroupedCommand, short_help="Write vectors as files for other programs.", examples=EXAMPLES)
@click.argument("output", metavar="OUT...", nargs=-1, required=True)
@click.argument("target", metavar="TARGET")
@click.option(
    "--format", type=click.Choice(get_args(ExportFormat)), required=True, help="Format of the files in TARGET."
)
@click.option("--overwrite", is_flag=True, help=OVERWRITE_HELP)
@click.option("--json", "as_json", is_flag=True, help="Write the summary as one JSON object, also to stdout.")
def export(*, as_json: bool, output: tuple[str, ...], **options: Any) -> None:
    """Write the vectors of OUT into the folder TARGET, as files for other programs.

    DuckDB, pandas, polars and whatever else reads Parquet need none of it: they read OUT/embeddings/*.parquet.

    OUT is a folder that `clip embed` wrote; several are exported as the one that `clip merge` would make of them. The
    formats are npy (vectors.npy and ids.parquet), clip-retrieval (img_emb/img_emb_*.npy, metadata/metadata_*.parquet,
    in float16 and of unit length), csv (vectors.csv), safetensors (vectors.safetensors and ids.parquet) and pgvector
    (pgvector.csv and pgvector.sql, for psql). Rows keep the order of OUT; export.json describes the export. Exit code
    0: done; 1: the export failed, and nothing is left of it; 2: it did not begin.
    """
    from .outputs import choose_output

    job = ExportJob(output=tuple(map(choose_output, output)), **options)
    from ..store import export as export_module

    report = export_module.export(job)
    files = f"{len(report.files):,} files in {report.target}"
    summarise(asdict(report) if as_json else f"exported {report.rows:,} rows as {job.format}; {files}")
