"""The command `clip embed`: make an EmbedJob of flags, run it, print a summary."""

from __future__ import annotations

from dataclasses import asdict, fields
from functools import partial
from typing import Any, get_args

import click

from ..errors import spell_arguments
from ..jobs.cluster import RayOptions, RunEngine
from ..jobs.embed import EmbedJob, EmbedReport, Estimate, Listing, Progress
from ..jobs.fields import nest
from ..jobs.options import FAST_COSINE, find_differences
from ..records import Kind
from .exit_codes import EXIT_WITH_FAILURES
from .failures import list_first
from .flags import GroupedCommand, grouped, job_option, spell_as_flags, split_names
from .progress import HOUR_S, Reporter, Style, describe_ignored, describe_listing, format_duration, say, summarise

PROGRESS_HELP = "Progress on stderr: a bar on a terminal and lines elsewhere (auto), lines, JSON lines, or none."
ESTIMATE_HELP = "With --dry-run: embed some of the images, and say how long all take on this machine."
PRICE_HELP = "With --estimate: what the machine costs in an hour; the estimate says what the run costs."
MAX_NAMED = 8  # parts in a line
TOLERATE_HELP = "Exit with 0, not 3, where images failed, but no more than --max-failures allows."
ENGINES = click.Choice(get_args(RunEngine))
ENGINE_HELP = "local: this process writes the vectors; ray: actors of a Ray cluster do, with the extra ray."
RAW_HELP = "Write features as the model gives them, instead of vectors of unit length."
EXAMPLES = (
    "clip embed photos/ -o out/",
    "clip embed photos/ -o out/ --update    # later: what is new",
    "clip embed captions.csv --text -o texts/",
)
READ = partial(job_option, EmbedJob, group="What to read")
DECODE = partial(job_option, EmbedJob, group="How to decode")
SPEED = partial(job_option, EmbedJob, group="Model and speed")
WRITE = partial(job_option, EmbedJob, group="What to write")
FAILURES = partial(job_option, EmbedJob, group="Failures")
REPORT = partial(grouped, "What to say")
CLUSTER = partial(job_option, RayOptions, group="Cluster")


@click.command(cls=GroupedCommand, short_help="Turn images and texts into files of vectors.", examples=EXAMPLES)
@click.argument("source", metavar="INPUT...", nargs=-1, required=True)
@READ("globs", "--glob", "--globs", metavar="PATTERN", multiple=True)
@READ("columns.entry", "--column", metavar="NAME")
@READ("columns.delimiter", "--delimiter", metavar="C")
@READ("columns.quoting", "--quoting")
@READ("columns.id", "--id-column", metavar="NAME")
@READ("columns.texts", "--text", "--texts")
@READ("columns.text", "--text-column", metavar="NAME")
@READ("long_text", "--long-text")
@READ("columns.keep", "--keep", metavar="A,B", multiple=True, callback=split_names)
@READ("root", "--root", metavar="DIR")
@READ("duplicate_ids", "--duplicate-ids")
@READ("limit", "--limit", metavar="N")
@DECODE("decode.pixels", "--decode")
@DECODE("decode.orient", "--orient")
@DECODE("decode.background", "--background")
@DECODE("decode.sixteen_bit", "--sixteen-bit")
@DECODE("decode.frames", "--frames")
@DECODE("decode.raw_previews", "--raw-previews")
@DECODE("limits.max_frames", "--max-frames", metavar="N")
@DECODE("limits.max_bytes", "--max-bytes", metavar="N")
@DECODE("limits.max_pixels", "--max-pixels", metavar="N")
@DECODE("limits.max_aspect", "--max-aspect", metavar="X")
@SPEED("model.name", "-m", "--model", metavar="MODEL")
@SPEED("model.device", "--device", metavar="DEVICE")
@SPEED("devices", "--devices", metavar="all|A,B")
@SPEED("model.precision", "--precision")
@SPEED("min_cosine", "--min-cosine", metavar="X")
@grouped("Model and speed", "--fast", is_flag=True, help=f"Short for --min-cosine {FAST_COSINE}.")
@SPEED("calibration", "--calibration", metavar="DIR")
@SPEED("model.untrained", "--untrained", metavar="SEED")
@SPEED("model.architecture", "--architecture", metavar="NAME|FILE")
@SPEED("model.batch_size", "--batch-size", metavar="N")
@SPEED("model.threads", "--threads", metavar="N")
@SPEED("workers", "--workers", metavar="N")
@SPEED("readers", "--readers", metavar="N")
@SPEED("decoders", "--decoders")
@SPEED("resize", "--resize")
@SPEED("read_budget_bytes", "--read-budget-bytes", metavar="N")
@SPEED("decode_budget_bytes", "--decode-budget-bytes", metavar="N")
@grouped(
    "What to write",
    "-o",
    "--output",
    metavar="OUT",
    required=True,
    help="Folder to write, here or at s3://, gs://, az://.",
)
@WRITE("policy.update", "--update")
@WRITE("policy.overwrite", "--overwrite")
@grouped("What to write", "--raw", "--no-normalize", "raw", is_flag=True, help=RAW_HELP)
@WRITE("policy.dtype", "--dtype")
@WRITE("policy.hashes", "--hash", "--hashes")
@WRITE("policy.shard_size", "--shard-size", metavar="N")
@WRITE("policy.save_seconds", "--save-seconds", metavar="S")
@WRITE("part", "--part", metavar="I/N|auto")
@FAILURES("max_failures", "--max-failures", metavar="N|P%")
@grouped("Failures", "--tolerate", is_flag=True, help=TOLERATE_HELP)
@FAILURES("on_failure", "--on-failure")
@FAILURES("isolate", "--isolate")
@FAILURES("max_seconds", "--max-seconds", metavar="S")
@grouped("Cluster", "--engine", type=ENGINES, default="local", show_default=True, help=ENGINE_HELP)
@CLUSTER("address", "--address", metavar="ADDRESS")
@CLUSTER("actors", "--actors", metavar="N")
@CLUSTER("cpus_per_actor", "--cpus-per-actor", metavar="X")
@CLUSTER("gpus_per_actor", "--gpus-per-actor", metavar="X")
@CLUSTER("stall_seconds", "--stall-seconds", metavar="S")
@REPORT("--dry-run", is_flag=True, help="List the input, and stop.")
@REPORT("--estimate", is_flag=True, help=ESTIMATE_HELP)
@REPORT("--price-per-hour", metavar="X", type=float, help=PRICE_HELP)
@REPORT("--progress", type=click.Choice(get_args(Style)), default="auto", show_default=True, help=PROGRESS_HELP)
@REPORT("--json", "as_json", is_flag=True, help="Write the summary as one JSON object, also to stdout.")
def embed(
    *,
    raw: bool,
    fast: bool,
    dry_run: bool,
    tolerate: bool,
    estimate: bool,
    price_per_hour: float | None,
    progress: Style,
    as_json: bool,
    engine: RunEngine,
    **options: Any,
) -> int:
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
    if (estimate and not dry_run) or (price_per_hour is not None and not estimate):
        missing = "--dry-run" if estimate else "--estimate"
        raise click.UsageError(f"found {'--estimate' if estimate else '--price-per-hour'} without {missing}. Add it.")
    if price_per_hour is not None and not price_per_hour >= 0:
        raise click.UsageError(f"found --price-per-hour {price_per_hour}, expected 0 or more. Pass another.")
    if fast and options["min_cosine"] is not None:
        raise click.UsageError("found --fast and --min-cosine, expected one of them. Leave one out.")
    if tolerate and options["max_failures"] is None:
        raise click.UsageError("found --tolerate without --max-failures, expected both. Pass --max-failures 1%, say.")
    options["min_cosine"] = FAST_COSINE if fast else options["min_cosine"]
    cluster = _take_cluster(engine, options)
    job = EmbedJob(**nest(EmbedJob, {**options, "policy__normalize": not raw}))
    if not dry_run:  # which needs no weights
        from ..batch.finished import find_finished
        from ..batch.opening import refuse_early

        if (finished := find_finished(job)) is not None:
            code = _end(finished, job.kind, progress, as_json=as_json, words="nothing to do: ")
            return _forgive(job, finished, code, tolerate=tolerate)
        refuse_early(job)
    if dry_run:
        return _count(job, price_per_hour, estimate=estimate, as_json=as_json)
    report = _run(job, cluster, progress)
    if report.written > report.resumed and not as_json and progress not in ("json", "none"):
        from ..store.reader import Store
        from .sketch import warn_of_photographs

        warn_of_photographs(Store(report.output))
    return _forgive(job, report, _end(report, job.kind, progress, as_json=as_json), tolerate=tolerate)


def _count(job: EmbedJob, price_per_hour: float | None, *, estimate: bool, as_json: bool) -> int:
    """Say what a run would read, and how long it would take."""
    from ..batch import planning

    listing = planning.count(job)
    estimated = _estimate(job, listing) if estimate else None
    if as_json:
        summarise(asdict(listing) | (_price(estimated, job, price_per_hour) if estimated else {}))
        return 0
    words = f"; {_describe_estimate(estimated, job, price_per_hour)}" if estimated else ""
    summarise(f"{describe_listing(listing, job.kind)}{words}")
    return 0


def _take_cluster(engine: RunEngine, options: dict[str, Any]) -> RayOptions | None:
    """Take the options of a cluster out of a run's; None for a run on this machine."""
    cluster = RayOptions(**{field.name: options.pop(field.name) for field in fields(RayOptions)})
    if engine == "ray":
        return cluster
    if differences := find_differences(cluster, RayOptions()):
        flag = differences[0].replace("_", "-")
        raise click.UsageError(f"found --{flag} without --engine ray, expected both. Add it.")
    return None


def _run(job: EmbedJob, cluster: RayOptions | None, progress: Style) -> EmbedReport:
    from ..batch.embed import embed as embed_here  # here, because it brings torch, which a refusal can do without

    model = job.model_options
    if model.untrained is not None:
        say(f"{model.name} is untrained (random weights of seed {model.untrained}): similar vectors mean nothing yet")
    reporter = Reporter(progress, job.kind)
    try:
        if cluster is None:
            return embed_here(job, reporter.update)
        from ..cluster.embed import embed_on_ray

        return embed_on_ray(job, cluster, reporter.update)
    except BaseException as exc:
        if reporter.kept is not None:
            exc.add_note(f"{reporter.kept} are kept; the same command goes on from there")
        raise
    finally:
        reporter.close()


def _forgive(job: EmbedJob, report: EmbedReport, code: int, *, tolerate: bool) -> int:
    """Return 0 for a run whose failures the user allowed, else its exit code; kinds that are not read still count."""
    allowed = tolerate and not report.unread and report.failed <= job.allowed_failures(report.read)
    return 0 if allowed else code


def _end(report: EmbedReport, kind: Kind, progress: Style, *, as_json: bool, words: str = "") -> int:
    """Say what came of a run, and return the exit code."""
    reporter = Reporter(progress, kind)
    for line in report.advice:
        reporter.update(Progress(0, 0, 0, message=spell_arguments(line, spell_as_flags(embed))))
    reporter.close()
    if report.failed and not as_json and progress not in ("json", "none"):
        for line in list_first(report.output, report.failed):
            say(line)
    summarise(asdict(report) if as_json else words + _describe_report(report, kind))
    return EXIT_WITH_FAILURES if report.failed or report.unread else 0


def _estimate(job: EmbedJob, listing: Listing) -> Estimate:
    from ..batch.estimate import estimate

    return estimate(job, listing)


def _price(estimate: Estimate, job: EmbedJob, price_per_hour: float | None) -> dict[str, Any]:
    """Return an estimate as a record; the price is that of all parts."""
    if price_per_hour is None or estimate.seconds is None:
        return asdict(estimate)
    parts = job.share.count if job.share else 1
    return asdict(estimate) | {"price": round(estimate.seconds * parts / HOUR_S * price_per_hour, 4)}


def _describe_estimate(estimate: Estimate, job: EmbedJob, price_per_hour: float | None) -> str:
    rate = f"{estimate.images_per_s:,.1f} images/s, measured on {estimate.measured:,}"
    if estimate.seconds is None:
        return f"{rate}; how many images there are is not known"
    price = _price(estimate, job, price_per_hour).get("price")
    parts = f" for each of {job.share.count:,} parts" if job.share else ""
    words = f"about {format_duration(round(estimate.seconds))}{parts} at {rate}"
    return words if price is None else f"{words}, for {price:,.2f} at {price_per_hour:g} an hour"


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
