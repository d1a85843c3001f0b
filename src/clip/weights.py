"""A name or a path -> a verified local file -> a Checkpoint. Knows nothing about devices or pictures."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from clip.architecture import drop_archive_buffers, infer_architecture
from clip.errors import CheckpointError, UnknownModelError, WeightsMissingError
from clip.items import Architecture, Checkpoint, PreprocessSettings
from clip.model import CLIP
from clip.torch_archive import read_torch_file

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

HOST = "https://openaipublic.azureedge.net/clip/models"
CACHE = "~/.cache/clip"  # the reference's, shared with open_clip's and clip-as-service's copies
# Where training scripts put the state dict in what they save.
WRAPPERS = ("state_dict", "model_state_dict", "model")
PARALLEL_PREFIX = "module."  # DataParallel and DistributedDataParallel put it before every key


@dataclass(frozen=True)
class Release:
    """A model that OpenAI published."""

    file_name: str
    sha256: str  # of the archive; its identity, wherever it was fetched from
    size_bytes: int
    architecture: Architecture

    @property
    def url(self) -> str:
        """Where OpenAI published it."""
        return f"{HOST}/{self.sha256}/{self.file_name}"


def _vit(dim: int, px: int, layers: int, width: int, patch: int, text: int, heads: int) -> Architecture:
    return Architecture(dim, px, layers, width, patch, 77, 49408, text, heads, 12)


def _resnet(dim: int, px: int, layers: tuple[int, int, int, int], width: int, text: int, heads: int) -> Architecture:
    return Architecture(dim, px, layers, width, None, 77, 49408, text, heads, 12)


# Hashes from the URLs of openai/CLIP@d05afc4 clip/clip.py:30; sizes agree with the parameter counts to a megabyte.
RELEASES = {
    "RN50": Release(
        "RN50.pt",
        "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762",
        255_827_503,
        _resnet(1024, 224, (3, 4, 6, 3), 64, 512, 8),
    ),
    "RN101": Release(
        "RN101.pt",
        "8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599",
        291_791_292,
        _resnet(512, 224, (3, 4, 23, 3), 64, 512, 8),
    ),
    "RN50x4": Release(
        "RN50x4.pt",
        "7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd",
        421_854_225,
        _resnet(640, 288, (4, 6, 10, 6), 80, 640, 10),
    ),
    "RN50x16": Release(
        "RN50x16.pt",
        "52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa",
        661_125_706,
        _resnet(768, 384, (6, 8, 18, 8), 96, 768, 12),
    ),
    "RN50x64": Release(
        "RN50x64.pt",
        "be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c",
        1_353_500_174,
        _resnet(1024, 448, (3, 15, 36, 10), 128, 1024, 16),
    ),
    "ViT-B/32": Release(
        "ViT-B-32.pt",
        "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
        353_976_522,
        _vit(512, 224, 12, 768, 32, 512, 8),
    ),
    "ViT-B/16": Release(
        "ViT-B-16.pt",
        "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f",
        350_837_078,
        _vit(512, 224, 12, 768, 16, 512, 8),
    ),
    "ViT-L/14": Release(
        "ViT-L-14.pt",
        "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",
        932_768_134,
        _vit(768, 224, 24, 1024, 14, 768, 12),
    ),
    "ViT-L/14@336px": Release(
        "ViT-L-14-336px.pt",
        "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02",
        934_088_680,
        _vit(768, 336, 24, 1024, 14, 768, 12),
    ),
}
URLS = {name: release.url for name, release in RELEASES.items()}


def file_sha256(path: str | Path) -> str:
    """The sha256 of a file, in hexadecimal, read in pieces."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cached_file(url: str, root: str | os.PathLike[str] | None = None) -> str:
    """Path of the verified local copy of what a URL names; the sha256 is its last but one segment.

    Raises:  WeightsMissingError (a RuntimeError) where there is none, CheckpointError (a RuntimeError) where another
             file or a folder has its name.
    """
    *_, sha256, name = url.split("/")
    path = Path(root or CACHE).expanduser() / name
    if not path.exists():
        raise WeightsMissingError(
            f"{path}: not found, expected the weights with sha256 {sha256}. "
            f"Fetch {url} and put it there, or pass the path of another copy."
        )
    if not path.is_file():
        raise CheckpointError(f"{path}: not a regular file, expected weights. Move it away.")
    found = file_sha256(path)
    if found != sha256:
        raise CheckpointError(
            f"{path}: sha256 {found}, expected {sha256}. The file is incomplete or another one: remove it and "
            f"fetch {url} again."
        )
    return str(path)


def locate(
    name: str | os.PathLike[str],
    download_root: str | os.PathLike[str] | None = None,
    *,
    urls: Mapping[str, str] = URLS,
    fetch: Callable[..., str] = cached_file,
) -> Path:
    """The local file of a released model's name, or of a path. A name wins over a file of the same name.

    Raises:  UnknownModelError (a RuntimeError) for neither, and what `fetch` raises.
    """
    if isinstance(name, str) and name in urls:
        return Path(fetch(urls[name], download_root or os.path.expanduser(CACHE)))  # noqa: PTH111  a str, as users patch it
    path = Path(os.fspath(name))
    if not path.is_file():
        raise UnknownModelError(
            f"model {os.fspath(name)!r}: not found, expected the path of a weights file or one of {list(urls)}. "
            "Use one of these names, or check the path."
        )
    return path


def read_checkpoint(path: Path) -> Checkpoint:
    """The CLIP in a local file, its architecture read off the shapes of its weights.

    Takes a TorchScript archive as OpenAI published, a state dict saved by torch.save in any version (alone, or under
    "state_dict", with or without "module." before its keys), and safetensors with OpenAI's names.

    Raises:  UnsafeCheckpointError for a file that carries more than tensors and plain values, CheckpointError
             (a RuntimeError) for one that is damaged or no CLIP.
    """
    content = _read_safetensors(path) if _is_safetensors(path) else read_torch_file(path)
    try:
        state_dict = drop_archive_buffers(_select_state_dict(content))
        _check_aliases(state_dict, path.stat().st_size)
        architecture = infer_architecture(state_dict)
    except CheckpointError as exc:
        raise type(exc)(f"{path}: {exc}") from exc
    return Checkpoint(architecture, state_dict, PreprocessSettings(architecture.image_resolution), source=str(path))


def untrained(name: str, seed: int) -> Checkpoint:
    """A released architecture with weights drawn at random, the same for the same seed and version of torch.

    Raises:  UnknownModelError (a RuntimeError) for a name that was not released.
    """
    if name not in RELEASES:
        raise UnknownModelError(
            f"model {name!r}: not found, expected one of {list(RELEASES)}. Untrained weights need a name."
        )
    architecture = RELEASES[name].architecture
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIP(*vars(architecture).values())
    return Checkpoint(
        architecture,
        model.state_dict(),
        PreprocessSettings(architecture.image_resolution),
        source=f"untrained:{seed}",
    )


def _is_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"  # eight bytes of length, then a JSON object


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  it is no dict
    except SafetensorError as exc:
        raise CheckpointError(f"{path}: {exc}, expected safetensors. Fetch the file again.") from exc


def _select_state_dict(content: Any) -> dict[str, torch.Tensor]:
    if isinstance(content, dict):
        for wrapper in WRAPPERS:
            if isinstance(content.get(wrapper), dict):
                content = content[wrapper]
                break
    if not isinstance(content, dict) or not content:
        raise CheckpointError(
            f"found {type(content).__name__} of no entries, expected a state dict. Save the model's state_dict()."
        )
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise CheckpointError(
                f"entry {str(key)[:80]!r} is a {type(value).__name__}, expected a tensor in a state dict, or the state "
                f"dict under one of {WRAPPERS}. Save the model's state_dict()."
            )
    if all(key.startswith(PARALLEL_PREFIX) for key in content):
        return {key.removeprefix(PARALLEL_PREFIX): value for key, value in content.items()}
    return content


def _check_aliases(state_dict: dict[str, torch.Tensor], file_bytes: int) -> None:
    total = sum(tensor.numel() * tensor.element_size() for tensor in state_dict.values())
    if total > file_bytes:
        raise CheckpointError(
            f"its tensors take {total:,} bytes and the file {file_bytes:,}, expected tensors that do not share memory. "
            "Save the state dict with each tensor cloned."
        )
