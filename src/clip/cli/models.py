"""The commands `clip models` and `clip fetch`. Knows nothing about how weights are had."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import click

from ..jobs.models import DeviceRow, FetchJob, ModelRow
from .signals import undisturbed

MODELS_HEAD = f"{'name':<16}{'dim':>5}{'pixels':>8}{'parameters':>13}{'GFLOPs':>9}{'MB':>7}  {'licence':<9}cached"
DEVICES_HEAD = f"{'device':<10}{'back end':<20}{'precisions':<24}name"


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.option("--devices", is_flag=True, help="List this machine's devices instead, and the precisions they have.")
@click.option("--download-root", metavar="DIR", help="The cache to look into.  [default: ~/.cache/clip]")
def models(*, as_json: bool, devices: bool, download_root: str | None) -> None:
    """List the models OpenAI released, which of them are here, and the one that comes along; or the devices."""
    with undisturbed():
        from ..engine.devices import list_devices
        from ..weights import catalog

    rows = list_devices() if devices else [*catalog.list_models(download_root), catalog.describe_sketch()]
    if as_json:
        for row in rows:
            click.echo(json.dumps(asdict(row)))
        return
    click.echo(DEVICES_HEAD if devices else MODELS_HEAD)
    for row in rows:
        click.echo(_device_line(row) if isinstance(row, DeviceRow) else _model_line(row))


def _device_line(row: DeviceRow) -> str:
    return f"{row.device:<10}{row.backend:<20}{', '.join(row.precisions):<24}{row.name}"


def _model_line(row: ModelRow) -> str:
    decimals = 1 if row.gflops >= 1 else 3
    line = (
        f"{row.name:<16}{row.dim:>5}{row.resolution_px:>8}{row.parameters:>13,}{row.gflops:>9.{decimals}f}"
        f"{row.size_bytes / 1e6:>7.0f}  {row.licence:<9}{row.cached or 'no'}"
    )
    return f"\n{line}\n{'':<16}{row.note}" if row.note else line


@click.command()
@click.argument("names", nargs=-1, metavar="NAME...")
@click.option("--download-root", metavar="DIR", help="The cache to fill.  [default: ~/.cache/clip]")
@click.option("--check", is_flag=True, help="Hash the files that are here again, instead of fetching.")
@click.option("--to", metavar="FILE.safetensors", help="Also write the one model's weights, with OpenAI's names.")
def fetch(**options: Any) -> None:
    """Get the weights of released names, or of hf-hub:ORG/NAME[@REVISION], and say where they are."""
    job = FetchJob(**options)
    with undisturbed():
        from ..weights import catalog

    for found in catalog.fetch(job):
        click.echo(f"{found.name}\t{found.path}\t{found.sha256 or ''}".rstrip())
    if job.to:
        click.echo(f"{job.names[0]}\t{job.to}")
