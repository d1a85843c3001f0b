"""The models: which there are, which are here, and how to get one here. Knows nothing about running them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import CheckpointError, WeightsMissingError
from ..jobs.models import Fetched, FetchJob, ModelRow
from ..network.records import HEADER_KEY
from . import locate
from .releases import LICENCE, RELEASES

if TYPE_CHECKING:
    from .releases import Release

SKETCH_NOTE = "knows drawn shapes only; for photographs use ViT-B/32"


def models(download_root: str | None = None) -> list[ModelRow]:
    """The nine models OpenAI released, in its order. Sizes of cached files are compared, hashes not: see `fetch`."""
    return [
        ModelRow(
            name=name,
            dim=release.architecture.embed_dim,
            resolution_px=release.architecture.image_resolution,
            parameters=release.parameters,
            gflops=release.gflops,
            size_bytes=release.size_bytes,
            licence=LICENCE,
            cached=_cached(release, download_root),
        )
        for name, release in RELEASES.items()
    ]


def sketch() -> ModelRow:
    """The model that comes with the package, as its file's own notes tell."""
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
    """Get the weights of each name, or with `check` hash those that are here; with `to` export them as well.

    Raises:  WeightsMissingError, DownloadError or UnknownModelError for what cannot be had, CheckpointError for a file
             with another hash, or that cannot be exported.
    """
    if job.check:
        return _check(job)
    fetched = [_fetched(name, locate.locate(name, job.download_root)) for name in job.names]
    if job.to is not None:
        from .checkpoints import export, read_checkpoint  # here, because they bring torch

        export(read_checkpoint(fetched[0].path), Path(job.to))
    return fetched


def _fetched(name: str, path: Path) -> Fetched:
    release = RELEASES.get(name)
    archive = release is not None and path.name == release.file_name
    return Fetched(name, path, release.sha256 if release and archive else None)


def _check(job: FetchJob) -> list[Fetched]:
    checked: list[Fetched] = []
    for name in job.names or RELEASES:
        if name not in RELEASES:
            raise WeightsMissingError(
                name,
                "not a released name",
                f"one of {list(RELEASES)}",
                "The Hub's cache checks its own files.",
            )
        release = RELEASES[name]
        path = locate.cache_path(release.url, job.download_root)
        if not path.is_file():
            if name in job.names:
                raise WeightsMissingError(
                    path,
                    "not there",
                    f"the weights of {name}",
                    f"Run: clip fetch {name}",
                )
            continue
        found = locate.file_sha256(path)
        if found != release.sha256:
            raise CheckpointError(
                path,
                f"sha256 {found}",
                f"{release.sha256}",
                f"Remove the file and run: clip fetch {name}",
            )
        locate.remember(path, found)
        checked.append(Fetched(name, path, found))
    return checked


def _cached(release: Release, download_root: str | None) -> str | None:
    path = locate.cache_path(release.url, download_root)
    if path.is_file() and path.stat().st_size == release.size_bytes:
        return str(path)
    snapshot = locate.cached_copy(release)
    return str(snapshot) if snapshot else None
