"""List the models, download their weights, and check the hashes of those that are here."""

from __future__ import annotations

import json
from pathlib import Path

from ..errors import CheckpointError, WeightsMissingError
from ..jobs.models import Fetched, FetchJob, ModelRow
from ..network.records import HEADER_KEY
from . import locate
from .published import PUBLISHED, RESTRICTED, RESULTS
from .releases import IMAGENET, LICENCE, RELEASES, Release
from .spellings import find_spelled

BYTES_A_PARAMETER = 4  # in the files of others, which are fp32
SKETCH_NOTE = "knows drawn shapes only; for photographs use ViT-B/32"


def list_models(download_root: str | None = None) -> list[ModelRow]:
    """Return OpenAI's nine models, in its order. Of cached files only the size is compared: see `fetch`."""
    return [
        ModelRow(
            name=name,
            dim=release.architecture.embed_dim,
            resolution_px=release.architecture.image_resolution,
            parameters=release.parameters,
            gflops=release.gflops,
            size_bytes=release.size_bytes,
            licence=LICENCE,
            cached=find_cached(release, download_root),
            imagenet=IMAGENET[name],
            source=RESULTS,
        )
        for name, release in RELEASES.items()
    ]


def list_published() -> list[ModelRow]:
    """Return the models of others that have a short name here. Of the Hub's cache only the folder is looked for."""
    rows: list[ModelRow] = []
    for name, model in PUBLISHED.items():
        folder = locate.find_repository(model.repository)
        restriction = RESTRICTED.get(model.licence)
        rows.append(
            ModelRow(
                name=name,
                dim=model.dim,
                resolution_px=model.resolution_px,
                parameters=model.parameters,
                gflops=model.gflops,
                size_bytes=BYTES_A_PARAMETER * model.parameters,
                licence=f"{model.licence} ({restriction})" if restriction else model.licence,
                cached=str(folder) if folder else None,
                imagenet=model.imagenet,
                source=model.source if model.imagenet else "",
                repository=model.repository,
            )
        )
    return rows


def describe_sketch() -> ModelRow:
    """Return the model that comes with the package, as the header of its file describes it."""
    from safetensors import safe_open

    with safe_open(locate.locate(locate.SKETCH), framework="np") as file:
        metadata = file.metadata()
    architecture, card = json.loads(metadata[HEADER_KEY])["architecture"], json.loads(metadata["card"])
    return ModelRow(
        name=locate.SKETCH,
        dim=architecture["embed_dim"],
        resolution_px=architecture["image_resolution"],
        parameters=card["parameters"],
        gflops=card["gflops"],
        size_bytes=locate.SKETCH_FILE.stat().st_size,
        licence=LICENCE,
        cached=str(locate.SKETCH_FILE),
        note=SKETCH_NOTE,
    )


def fetch(job: FetchJob) -> list[Fetched]:
    """Download the weights of each name, and with `to` export them; with `check` hash those that are here instead.

    Raises:  WeightsMissingError, DownloadError or UnknownModelError for weights that cannot be got, CheckpointError for
             a file that has another hash or cannot be exported.
    """
    if job.check:
        return _check(job)
    fetched = [_describe(name, locate.locate(name, job.download_root)) for name in job.names]
    if job.to is not None:
        from .checkpoints import export, read_checkpoint  # here, because they import torch

        export(read_checkpoint(fetched[0].path, job.architecture), Path(job.to))
    return fetched


def _describe(name: str, path: Path) -> Fetched:
    release = RELEASES.get(find_spelled(name, RELEASES) or name)
    archive = release is not None and path.name == release.file_name
    return Fetched(name, path, release.sha256 if release and archive else None)


def _check(job: FetchJob) -> list[Fetched]:
    checked: list[Fetched] = []
    for name in job.names or RELEASES:
        released = find_spelled(name, RELEASES)
        if released is None:
            remedy = "Leave it out: the Hub checks its own files."
            raise WeightsMissingError(name, "not a released name", f"one of {list(RELEASES)}", remedy)
        release = RELEASES[released]
        path = locate.cache_path(release.url, job.download_root)
        if not path.is_file():
            if name in job.names:
                raise WeightsMissingError(path, "not there", f"the weights of {name}", f"Run: clip fetch {name}")
            continue
        sha256 = locate.file_sha256(path)
        if sha256 != release.sha256:
            remedy = f"Remove the file and run: clip fetch {name}"
            raise CheckpointError(path, f"sha256 {sha256}", release.sha256, remedy)
        locate.remember(path, sha256)
        checked.append(Fetched(name, path, sha256))
    return checked


def find_cached(release: Release, download_root: str | None) -> str | None:
    """Return where a released model is on this machine: in the cache, or in the Hub's own."""
    path = locate.cache_path(release.url, download_root)
    if path.is_file() and path.stat().st_size == release.size_bytes:
        return str(path)
    snapshot = locate.find_cached_copy(release)
    return str(snapshot) if snapshot else None
