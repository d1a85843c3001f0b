"""The command `clip embed`: flags in, a job to `batch.embed`, a summary out. Knows nothing about images."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any, get_args

import click

from ..jobs.embed import EmbedJob, EmbedReport
from ..jobs.options import (
    FAST_COSINE,
    Background,
    DuplicateIds,
    Frames,
    LongText,
    OnFailure,
    Orient,
    PixelMode,
    Precision,
    SixteenBit,
    VectorDtype,
)
from ..records import Kind
from .exit_codes import EXIT_WITH_FAILURES
from .progress import UNITS, Reporter, Style, listed, say, summarise, told_ignored
from .signals import undisturbed

GLOB_HELP = (
    "Take the files whose path below a folder matches, instead of those with an image's extension; "
    "** crosses folders. May be repeated."
)
ON_FAILURE_HELP = "Write a failure row and go on, or stop at the first."
FAILURES_HELP = "Stop when more images fail than a number, or than a part of the input."
PRECISION_HELP = "What vectors are computed in; reference is OpenAI's: fp32 on a CPU, fp16 on CUDA."
COSINE_HELP = "Measure on some images first, and take the fastest setting whose vectors stay within this."
CALIBRATION_HELP = "Images for int8 to quantise by.  [default: the first of the input]"
BATCH_HELP = "Images the model reads at a time.  [default: as suits model and device]"
ROOT_HELP = "Where relative paths in lists start.  [default: the current folder]"
DUPLICATES_HELP = "Refuse an input in which an id stands twice, or keep both rows."
PAIRS_HELP = "Of lists and tables: texts that go with the images, embedded as a second vector of each row."
LONG_HELP = "Of a text of more tokens than the model reads make a failure row, or drop its tail."
KEEP_HELP = "Columns of lists and tables to copy into the rows."
DECODE_HELP = "Pixels of OpenAI's code bit for bit, or nearly those: large JPEGs decoded small, resized by SIMD code."
ORIENT_HELP = "Pixels as stored, as OpenAI's code has them, or turned as EXIF says."
BACKGROUND_HELP = "Drop the alpha of transparent images, or lay them on a colour."
SIXTEEN_HELP = "White in grey images of 16 bits: 255 and more, as OpenAI's code has it, or 65535."
FRAMES_HELP = "Of animations and files of several pages."
PROGRESS_HELP = "A bar on a terminal and lines elsewhere (auto), lines, JSON lines, or nothing, on stderr."
UPDATE_HELP = "Bring OUT up to date: embed what is new or changed, drop what is gone."
ISOLATE_HELP = "Decode in processes: an image that crashes, hangs or eats memory becomes a failure row."
SECONDS_HELP = "For an image to decode, with --isolate.  [default: 60]"
BUDGET_HELP = "Decoded images that threads may hold at a time."
DEFAULTS = {field.name: field.default for field in fields(EmbedJob)}


def _option(*names: str, field: str, **settings: Any) -> Any:
    """A flag that mirrors a field of EmbedJob and has its default."""
    default = DEFAULTS[field]
    shown = default not in (None, (), "") and not isinstance(default, bool)
    return click.option(*names, field, default=default, show_default=shown, **settings)


def _names(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:  # noqa: ARG001
    return tuple(name for value in values for name in value.split(",") if name)


@click.command()
@click.argument("source", metavar="INPUT...", nargs=-1, required=True)
@click.option("-o", "--output", metavar="OUT", required=True, help="Folder to write; made where there is none.")
@_option(
    "-m", "--model", field="model", metavar="MODEL", help="A released name, sketch, or the path of a weights file."
)
@_option("--untrained", field="untrained", metavar="SEED", type=int, help="Draw the named model's weights at random.")
@_option("--device", field="device", help="cpu, cuda, cuda:1 or mps; auto takes CUDA where there is one.")
@_option("--precision", field="precision", type=click.Choice(get_args(Precision)), help=PRECISION_HELP)
@_option("--min-cosine", field="min_cosine", metavar="X", type=float, help=COSINE_HELP)
@click.option("--fast", is_flag=True, help=f"The same as --min-cosine {FAST_COSINE}.")
@_option("--calibration", field="calibration", metavar="DIR", help=CALIBRATION_HELP)
@_option("--batch-size", field="batch_size", metavar="N", type=int, help=BATCH_HELP)
@_option("--workers", field="workers", metavar="N", type=int, help="Threads that decode.  [default: one a core]")
@_option("--readers", field="readers", metavar="N", type=int, help="Images asked of servers at a time.")
@_option("--threads", field="threads", metavar="N", type=int, help="Threads of the model on a CPU, likewise.")
@click.option("--raw", is_flag=True, help="Write features as the model gives them, not scaled to unit length.")
@_option("--dtype", field="dtype", type=click.Choice(get_args(VectorDtype)), help="Of the vectors in OUT.")
@_option("--glob", field="globs", metavar="PATTERN", multiple=True, help=GLOB_HELP)
@_option("--column", field="column", metavar="NAME", help="Of lists and tables: images, their paths, or texts.")
@_option("--id-column", field="id_column", metavar="NAME", help="Of lists and tables: the ids.  [default: paths]")
@_option("--text", field="texts", is_flag=True, help="INPUT holds texts: lists and tables of captions, a line each.")
@_option("--text-column", field="text_column", metavar="NAME", help=PAIRS_HELP)
@_option("--long-text", field="long_text", type=click.Choice(get_args(LongText)), help=LONG_HELP)
@_option("--keep", field="keep", metavar="A,B", multiple=True, callback=_names, help=KEEP_HELP)
@_option("--root", field="root", metavar="DIR", help=ROOT_HELP)
@_option("--duplicate-ids", field="duplicate_ids", type=click.Choice(get_args(DuplicateIds)), help=DUPLICATES_HELP)
@_option("--limit", field="limit", metavar="N", type=int, help="Only the first N images.")
@_option("--shard-size", field="shard_size", metavar="N", type=int, help="Images per Parquet part.")
@_option("--decode-budget-bytes", field="decode_budget_bytes", metavar="N", type=int, help=BUDGET_HELP)
@_option("--max-bytes", field="max_bytes", metavar="N", type=int, help="Of a file; larger ones are failure rows.")
@_option("--max-pixels", field="max_pixels", metavar="N", type=int, help="Of an image, before decoding; likewise.")
@_option("--max-aspect", field="max_aspect", metavar="X", type=float, help="Longer side over shorter; likewise.")
@_option("--decode", field="decode", type=click.Choice(get_args(PixelMode)), help=DECODE_HELP)
@_option("--orient", field="orient", type=click.Choice(get_args(Orient)), help=ORIENT_HELP)
@_option("--background", field="background", type=click.Choice(get_args(Background)), help=BACKGROUND_HELP)
@_option("--sixteen-bit", field="sixteen_bit", type=click.Choice(get_args(SixteenBit)), help=SIXTEEN_HELP)
@_option("--frames", field="frames", type=click.Choice(get_args(Frames)), help=FRAMES_HELP)
@_option("--max-frames", field="max_frames", metavar="N", type=int, help="Of a file, with --frames all.")
@_option("--on-failure", field="on_failure", type=click.Choice(get_args(OnFailure)), help=ON_FAILURE_HELP)
@_option("--max-failures", field="max_failures", metavar="N|P%", help=FAILURES_HELP)
@_option(
    "--overwrite", field="overwrite", is_flag=True, help="Replace an earlier run in OUT, instead of going on with it."
)
@_option("--update", field="update", is_flag=True, help=UPDATE_HELP)
@_option("--hash", field="hashes", is_flag=True, help="Store each file's sha256; with --update, compare by it.")
@_option("--isolate", field="isolate", is_flag=True, help=ISOLATE_HELP)
@_option("--max-seconds", field="max_seconds", metavar="S", type=float, help=SECONDS_HELP)
@click.option("--dry-run", is_flag=True, help="List what would be read, and stop.")
@click.option("--progress", type=click.Choice(get_args(Style)), default="auto", show_default=True, help=PROGRESS_HELP)
@click.option("--json", "as_json", is_flag=True, help="The summary as one JSON object, on stdout too.")
def embed(*, raw: bool, fast: bool, dry_run: bool, progress: Style, as_json: bool, **options: Any) -> int:
    """Turn images, texts, or pairs of them into Parquet files of vectors.

    INPUT is a folder, a quoted pattern, a list (.txt, .csv, .tsv, .ndjson, - for stdin), an archive (.tar, .tar.gz,
    .zip) or a table (.parquet), here or at s3://, gs://, https://; {000..127} stands for its numbers. There may be
    several.

    OUT gets embeddings/part-*.parquet (id, path, embedding, width, height, format, size_bytes; of texts id, path,
    embedding, text), failures/part-*.parquet (id, path, stage, error, message) and manifest.json. Every image becomes
    a row of one or the other. The same command again goes on with a run that was interrupted. Exit code 0: all have
    vectors; 3: some are failure rows; 1: the run failed; 2: it did not begin.
    """
    if fast and options["min_cosine"] is not None:
        raise click.UsageError("found --fast and --min-cosine, expected one. Pass one.")
    options["min_cosine"] = FAST_COSINE if fast else options["min_cosine"]
    job = EmbedJob(normalize=not raw, **options)
    with undisturbed():
        from ..batch import embed as embed_module  # here, because it brings torch, which `--help` can do without

    if dry_run:
        found = embed_module.count(job)
        summarise(asdict(found) if as_json else listed(found, job.kind))
        return 0
    if job.untrained is not None:
        say(f"{job.model} is untrained (random weights of seed {job.untrained}): alike vectors mean nothing yet")
    reporter = Reporter(progress, job.kind)
    try:
        report = embed_module.embed(job, reporter.update)
    finally:
        reporter.close()
    summarise(asdict(report) if as_json else _summary(report, job.kind))
    return EXIT_WITH_FAILURES if report.failed else 0


def _summary(report: EmbedReport, kind: Kind) -> str:
    rate = f"{(report.read - report.resumed) / report.seconds:.1f} {UNITS[kind]}/s"
    failed = f", failed {report.failed:,} (see {report.output}/failures)" if report.failed else ", failed 0"
    resumed = f"{report.resumed:,} by an earlier run; " if report.resumed else ""
    removed = f"{report.removed:,} removed; " if report.removed else ""
    if not report.read:
        return f"found no {kind} in the source{told_ignored(report.ignored)}; {report.output}"
    return (
        f"read {report.read:,} = written {report.written:,}{failed}; "
        f"{resumed}{removed}{report.seconds:.1f} s, {rate}; {report.output}{told_ignored(report.ignored)}"
    )
