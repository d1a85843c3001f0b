"""The command `clip models`: list the models, or the devices of this machine."""

from __future__ import annotations

from dataclasses import asdict

import click

from ..errors import InputError
from ..jobs.health import CheckRow
from ..jobs.models import DeviceRow, ModelRow
from .exit_codes import EXIT_FAILED
from .flags import GroupedCommand
from .json_lines import to_json

DEVICES_HELP = "List this machine's devices instead, with libraries and precisions; the first is what reference means."
FIGURES_HEAD = f"{'dim':>5}{'pixels':>8}{'parameters':>15}{'GFLOPs':>9}{'MB':>8}{'ImageNet':>10}"
MODELS_HEAD = f"{'name':<33}{FIGURES_HEAD}  {'licence':<32}cached"
CHECK_HELP = (
    "Check the model NAME on this machine instead: pixels, tokens, each precision beside the network in float64, and "
    "what OpenAI's ViT-B/32 gave where published; exit code 1 where something differs."
)
ARCHITECTURE_HELP = "With --check: the network of weights that do not show theirs, as of embed."
PASSED = {True: "ok", False: "DIFFERS", None: "-"}
DEVICES_HEAD = f"{'device':<10}{'back end':<20}{'precisions':<24}name"
EXAMPLES = ("clip models", "clip models --check ViT-B/32")


@click.command(cls=GroupedCommand, short_help="List models, or this machine's devices.", examples=EXAMPLES)
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object per line.")
@click.option("--devices", is_flag=True, help=DEVICES_HELP)
@click.option("--check", metavar="NAME", help=CHECK_HELP)
@click.option("--architecture", metavar="NAME|FILE", help=ARCHITECTURE_HELP)
@click.option("--download-root", metavar="DIR", help="Folder with cached weights.  [default: ~/.cache/clip]")
def models(
    *, as_json: bool, devices: bool, check: str | None, architecture: str | None, download_root: str | None
) -> int:
    """List the models that OpenAI released, others that have a short name, and the small one that is included.

    ImageNet is the zero-shot accuracy that is published, in percent; --json has its source, and repositories.

    The last column has the path of the weights, where they are on this machine.
    """
    if check is not None:
        return _check(check, download_root, architecture, as_json=as_json)
    if architecture is not None:
        raise InputError("`architecture`", f"found {architecture!r}", "`check` with it", "Pass `check` too.")
    from ..engine.devices import list_devices
    from ..weights import catalog

    known = [] if devices else [*catalog.list_models(download_root), *catalog.list_published()]
    rows = list_devices() if devices else [*known, catalog.describe_sketch()]
    if as_json:
        for row in rows:
            click.echo(to_json(asdict(row)))
        return 0
    click.echo(DEVICES_HEAD if devices else MODELS_HEAD)
    for row in rows:
        click.echo(_format_device(row) if isinstance(row, DeviceRow) else _format_model(row))
    return 0


def _check(name: str, download_root: str | None, architecture: str | None, *, as_json: bool) -> int:
    from ..health.check import check_model

    rows = check_model(name, download_root, architecture)
    for row in rows:
        if as_json:
            click.echo(to_json(asdict(row)))
    if not as_json:
        click.echo("\n".join(_tabulate_checks(rows)))
    return EXIT_FAILED if any(row.passed is False for row in rows) else 0


def _tabulate_checks(rows: list[CheckRow]) -> list[str]:
    cells = [("check", "found", "expected", "")] + [(r.check, r.found, r.expected, PASSED[r.passed]) for r in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(3)]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)) + f"  {row[3]}"
            for row in cells]  # fmt: skip


def _format_device(row: DeviceRow) -> str:
    return f"{row.device:<10}{row.backend:<20}{', '.join(row.precisions):<24}{row.name}"


def _format_model(row: ModelRow) -> str:
    gflops = "-" if row.gflops is None else f"{row.gflops:.{1 if row.gflops >= 1 else 3}f}"
    imagenet = "-" if row.imagenet is None else f"{row.imagenet:.1f}"
    line = (
        f"{row.name:<33}{row.dim:>5}{row.resolution_px:>8}{row.parameters:>15,}{gflops:>9}"
        f"{row.size_bytes / 1e6:>8.0f}{imagenet:>10}  {row.licence:<32}{row.cached or 'no'}"
    )
    return f"\n{line}\n{'':<33}{row.note}" if row.note else line
