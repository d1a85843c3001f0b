"""The command `clip embed`: make an EmbedJob of flags, run it, print a summary."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Any, get_args

import click

from ..errors import spell_arguments
from ..jobs.embed import EmbedJob, EmbedReport, Progress
from ..jobs.fields import nest
from ..jobs.options import FAST_COSINE
from ..records import Kind
from .exit_codes import EXIT_WITH_FAILURES
from .failures import list_first
from .flags import job_option, spell_as_flags, split_names
from .progress import Reporter, Style, describe_ignored, describe_listing, say, summarise

PROGRESS_HELP = "Progress on stderr: a bar on a terminal and lines elsewhere (auto), lines, JSON lines, or none."
MAX_NAMED = 8  # parts in a line
_option = partial(job_option, EmbedJob)


@click.command(short_help="Turn images and texts into files of vectors.")
@click.argument("source", metavar="INPUT...", nargs=-1, required=True)
@click.option("-o", "--output", metavar="OUT", required=True, help="Folder to write.")
@_option("model.name", "-m", "--model", metavar="MODEL")
@_option("model.untrained", "--untrained", metavar="SEED")
@_option("model.architecture", "--architecture", metavar="NAME|FILE")
@_option("model.device", "--device", metavar="DEVICE")
@_option("model.precision", "--precision")
@_option("min_cosine", "--min-cosine", metavar="X")
@click.option("--fast", is_flag=True, help=f"Short for --min-cosine {FAST_COSINE}.")
@_option("calibration", "--calibration", metavar="DIR")
@_option("model.batch_size", "--batch-size", metavar="N")
@_option("workers", "--workers", metavar="N")
@_option("readers", "--readers", metavar="N")
@_option("model.threads", "--threads", metavar="N")
@click.option("--raw", is_flag=True, help="Write features as the model gives them, instead of vectors of unit length.")
@_option("policy.dtype", "--dtype")
@_option("globs", "--glob", metavar="PATTERN", multiple=True)
@_option("columns.entry", "--column", metavar="NAME")
@_option("columns.delimiter", "--delimiter", metavar="C")
@_option("columns.quoting", "--quoting")
@_option("columns.id", "--id-column", metavar="NAME")
@_option("columns.texts", "--text")
@_option("columns.text", "--text-column", metavar="NAME")
@_option("long_text", "--long-text")
@_option("columns.keep", "--keep", metavar="A,B", multiple=True, callback=split_names)
@_option("root", "--root", metavar="DIR")
@_option("duplicate_ids", "--duplicate-ids")
@_option("limit", "--limit", metavar="N")
@_option("policy.shard_size", "--shard-size", metavar="N")
@_option("policy.save_seconds", "--save-seconds", metavar="S")
@_option("read_budget_bytes", "--read-budget-bytes", metavar="N")
@_option("decode_budget_bytes", "--decode-budget-bytes", metavar="N")
@_option("limits.max_bytes", "--max-bytes", metavar="N")
@_option("limits.max_pixels", "--max-pixels", metavar="N")
@_option("limits.max_aspect", "--max-aspect", metavar="X")
@_option("decode.pixels", "--decode")
@_option("decode.orient", "--orient")
@_option("decode.background", "--background")
@_option("decode.sixteen_bit", "--sixteen-bit")
@_option("decode.frames", "--frames")
@_option("decode.raw_previews", "--raw-previews")
@_option("limits.max_frames", "--max-frames", metavar="N")
@_option("part", "--part", metavar="I/N|auto")
@_option("on_failure", "--on-failure")
@_option("max_failures", "--max-failures", metavar="N|P%")
@_option("policy.overwrite", "--overwrite")
@_option("policy.update", "--update")
@_option("policy.hashes", "--hash")
@_option("decoders", "--decoders")
@_option("isolate", "--isolate")
@_option("max_seconds", "--max-seconds", metavar="S")
@click.option("--dry-run", is_flag=True, help="List the input, and stop.")
@click.option("--progress", type=click.Choice(get_args(Style)), default="auto", show_default=True, help=PROGRESS_HELP)
@click.option("--json", "as_json", is_flag=True, help="Write the summary as one JSON object, also to stdout.")
def embed(*, raw: bool, fast: bool, dry_run: bool, progress: Style, as_json: bool, **options: Any) -> int:
    """Turn images, texts, or pairs of them into Parquet files of vectors.

    INPUT is a folder, a quoted pattern, a list (.txt, .csv, .tsv, .ndjson, - for stdin), an archive (.tar, .tar.gz,
    .zip) or a table (.parquet), on this machine or at s3://, gs://, https://; {000..127} means each of these numbers.
    There may be several.

    Writes into OUT: embeddings/part-*.parquet (id, path, embedding, width, height, format, size_bytes, warning; for
    texts id, path, embedding, text), failures/part-*.parquet (id, path, stage, error, message) and
    manifest.json. Every image becomes a row of embeddings or of failures. The same command again resumes a run that was
    interrupted, at most a minute before its end. Exit code 0: all images have vectors; 3: some are failure rows, or
    HEIC, RAW photos or videos that are not read; 1: the run failed; 2: it did not begin.
    """
    if fast and options["min_cosine"] is not None:
        raise click.UsageError("found --fast and --min-cosine, expected one of them. Leave one out.")
    options["min_cosine"] = FAST_COSINE if fast else options["min_cosine"]
    job = EmbedJob(**nest(EmbedJob, {**options, "policy__normalize": not raw}))
    if not dry_run:  # which needs no weights
        from ..batch.opening import refuse_early

        refuse_early(job)
    from ..batch import embed as embed_module  # here, because it brings torch, which a refusal can do without
    from ..batch import planning

    if dry_run:
        listing = planning.count(job)
        summarise(asdict(listing) if as_json else describe_listing(listing, job.kind))
        return 0
    model = job.model_options
    if model.untrained is not None:
        say(f"{model.name} is untrained (random weights of seed {model.untrained}): similar vectors mean nothing yet")
    reporter = Reporter(progress, job.kind)
    try:
        report = embed_module.embed(job, reporter.update)
    except BaseException as exc:
        if reporter.kept is not None:
            exc.add_note(f"{reporter.kept} are kept; the same command goes on from there")
        raise
    finally:
        reporter.close()
    for line in report.advice:
        reporter.update(Progress(0, 0, 0, message=spell_arguments(line, spell_as_flags(embed))))
    if report.failed and not as_json and progress not in ("json", "none"):
        for line in list_first(report.output, report.failed):
            say(line)
    summarise(asdict(report) if as_json else _describe_report(report, job.kind))
    return EXIT_WITH_FAILURES if report.failed or report.unread else 0


def _describe_report(report: EmbedReport, kind: Kind) -> str:
    rate = f"{(report.read - report.resumed) / report.seconds:.1f} {kind}/s"
    failed = f", failed {report.failed:,} (see {report.output}/failures)" if report.failed else ", failed 0"
    resumed = f"{report.resumed:,} by an earlier run; " if report.resumed else ""
    removed = f"{report.removed:,} removed; " if report.removed else ""
    removed = (f"{report.renamed:,} renamed; " if report.renamed else "") + removed
    warned = f"{report.warned:,} with a warning; " if report.warned else ""
    part = f"part {report.part}: " if report.part else ""
    unfinished = _describe_parts(report.unfinished) if part else ""
    if not report.read:
        nothing = "no shard of the run" if part else f"no {kind} in the source"
        return f"{part}{nothing}{describe_ignored(report.ignored)}; {report.output}{unfinished}"
    return (
        f"{part}read {report.read:,} = written {report.written:,}{failed}; "
        f"{resumed}{removed}{warned}{report.seconds:.1f} s, {rate}; {report.output}{describe_ignored(report.ignored)}"
        f"{unfinished}"
    )


def _describe_parts(unfinished: tuple[str, ...]) -> str:
    more = f" and {len(unfinished) - MAX_NAMED:,} more" if len(unfinished) > MAX_NAMED else ""
    return f"; not finished: {', '.join(unfinished[:MAX_NAMED])}{more}" if unfinished else "; all parts are finished"
