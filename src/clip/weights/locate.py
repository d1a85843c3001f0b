"""A name or a path -> a local file or folder that is whole. The only module that fetches weights.

A released name resolves through the caches, OpenAI's host and the Hugging Face Hub, in this order; the first that has
it wins. An archive of OpenAI's is known by its sha256, a copy on the Hub by repository and revision. The sketch model
lies in the package.

Knows nothing about devices, images, or what is in the files.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import warnings
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import CheckpointError, DownloadError, UnknownModelError, WeightsMissingError
from .download import fetch
from .releases import RELEASES

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

    from .releases import Release

CACHE = "~/.cache/clip"  # the reference's, shared with open_clip's and clip-as-service's copies
MAX_SHOWN = 200  # characters of a name that an error repeats
OFFLINE = ("CLIP_OFFLINE", "HF_HUB_OFFLINE")
HUB_PREFIX = "hf-hub:"
VERIFIED = ".verified.json"  # in the cache: the files that were hashed, as they were then
# What a repository may hold that we read: a configuration, and weights of which one will do.
HUB_FILES = {
    "open_clip_config.json": ("open_clip_model.safetensors", "open_clip_pytorch_model.bin"),
    "config.json": ("model.safetensors", "pytorch_model.bin"),
}
HUB_EXTRAS = ("preprocessor_config.json",)
# The model that comes with the package: training/sketch.py made it, docs/sketch.md tells of it.
SKETCH, SKETCH_FILE = "sketch", Path(__file__).with_name("sketch.safetensors")
URLS = {name: release.url for name, release in RELEASES.items()}
_SIZES = {release.sha256: release.size_bytes for release in RELEASES.values()}

_log = logging.getLogger("clip")


def offline() -> bool:
    """Whether the environment forbids the network."""
    return any(os.environ.get(name, "").lower() in ("1", "true", "yes", "on") for name in OFFLINE)


def file_sha256(path: str | Path) -> str:
    """The sha256 of a file, in hexadecimal, read in pieces."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def locate(
    name: str | os.PathLike[str],
    download_root: str | os.PathLike[str] | None = None,
    *,
    urls: Mapping[str, str] = URLS,
    download: Callable[..., str] | None = None,
) -> Path:
    """The local file or folder of a released name, "sketch", `hf-hub:ORG/NAME[@REVISION]`, or a path.

    A name wins over a file of the same name. `urls` and `download` are what users of OpenAI's package put in place of
    `_MODELS` and `_download`.

    Raises:  UnknownModelError for none of these, WeightsMissingError where no source has the file, CheckpointError
             where something else has its name, DownloadError where a repository cannot be had; all RuntimeErrors.
    """
    if isinstance(name, str) and name in urls:
        return _released(name, urls[name], download_root, download or cached_file)
    if name == SKETCH:
        if not SKETCH_FILE.is_file():
            raise WeightsMissingError(
                SKETCH_FILE,
                "not there",
                "it in the package",
                "Install it again.",
            )
        return SKETCH_FILE
    if isinstance(name, str) and name.startswith(HUB_PREFIX):
        repository, _, revision = name.removeprefix(HUB_PREFIX).partition("@")
        return _hub_snapshot(repository, revision or None)
    path = Path(os.fspath(name))
    # os.path answers False where Path raises, for a name that is too long; a pipe could make us wait for ever.
    if not os.fspath(name) or not (os.path.isfile(path) or os.path.isdir(path)):  # noqa: PTH112, PTH113
        raise UnknownModelError(
            f"model {os.fspath(name)[:MAX_SHOWN]!r}",
            "not found",
            f"the path of weights, {HUB_PREFIX}ORG/NAME, {SKETCH!r}, or one of {list(urls)}",
            "Use one of these names, or check the path.",
        )
    return path


def cached_file(url: str, root: str | os.PathLike[str] | None = None) -> str:
    """Path of the verified copy of what a URL names, fetched if need be. Its last segment but one is the sha256.

    Raises:  WeightsMissingError where it is missing and the network forbidden, DownloadError where no server gives it,
             CheckpointError where a folder has its name; all RuntimeErrors.
    """
    *_, sha256, _file_name = url.split("/")
    path = cache_path(url, root)
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{path} exists and is not a regular file, expected weights. Move it away.")
    if path.is_file():
        if is_verified(path, sha256):
            return str(path)
        warnings.warn(
            f"{path}: found another sha256, expected {sha256}. The file is fetched again; move it away to keep it.",
            stacklevel=3,
        )
    if offline():
        raise WeightsMissingError(
            f"{path}: not there, and {' or '.join(OFFLINE)} forbids to fetch it, expected the file with sha256 "
            f"{sha256}. Fetch {url} elsewhere and put it there."
        )
    fetch(url, path, sha256=sha256, size_bytes=_SIZES.get(sha256), is_whole=lambda: is_verified(path, sha256))
    remember(path, sha256)
    return str(path)


def cache_path(url: str, root: str | os.PathLike[str] | None = None) -> Path:
    """Where the file that a URL names lies, or would lie."""
    return Path(root or CACHE).expanduser() / url.rpartition("/")[2]


def is_verified(path: Path, sha256: str) -> bool:
    """Whether a file has this hash; it is read once, and the result remembered by size, time and inode."""
    if not path.is_file():
        return False
    if _memory(path).get(path.name) == [*_identity(path), sha256]:
        return True
    if path.stat().st_size != _SIZES.get(sha256, path.stat().st_size) or file_sha256(path) != sha256:
        return False
    remember(path, sha256)
    return True


def remember(path: Path, sha256: str) -> None:
    """Note that a file was hashed; in a cache that cannot be written it is hashed again each time."""
    memory = _memory(path) | {path.name: [*_identity(path), sha256]}
    note = path.with_name(VERIFIED)
    temporary = note.with_name(f"{VERIFIED}.{os.getpid()}.tmp")
    with suppress(OSError):
        temporary.write_text(json.dumps(memory, indent=1))
        temporary.replace(note)


def _memory(path: Path) -> dict[str, list[object]]:
    try:
        memory = json.loads(path.with_name(VERIFIED).read_bytes())
    except (OSError, ValueError):
        return {}  # not there, or cut short by a crash: hash again
    return memory if isinstance(memory, dict) else {}


def _identity(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino]


def _released(name: str, url: str, root: str | os.PathLike[str] | None, download: Callable[..., str]) -> Path:
    """The archive in our cache, a copy in the Hub's cache, the archive from OpenAI's host, a copy from the Hub."""
    release = RELEASES.get(name)
    copies = release.hub if release and release.url == url else ()
    if copies and not cache_path(url, root).exists() and (snapshot := cached_copy(RELEASES[name])):
        return snapshot
    problems: list[str] = []
    try:
        return Path(download(url, root or os.path.expanduser(CACHE)))  # noqa: PTH111  a str, as users' own take it
    except (DownloadError, WeightsMissingError) as exc:
        if not copies or offline():
            raise
        problems.append(_what_happened(exc))
    for copy in copies:
        _log.warning("%s: %s; trying %s on the Hugging Face Hub", name, problems[-1], copy.repository)
        try:
            return _hub_snapshot(copy.repository, copy.revision)
        except DownloadError as exc:
            problems.append(_what_happened(exc))
    raise WeightsMissingError(
        f"{name}: no source has the weights ({'; '.join(problems)}), expected one to. Put the file with sha256 "
        f"{url.split('/')[-2]} at {cache_path(url, root)}, or pass the path of another copy."
    )


def _what_happened(exc: Exception) -> str:
    """An error of ours without what was expected and what to do."""
    return str(exc).partition(", expected")[0]


def cached_copy(release: Release) -> Path | None:
    """The folder of a released model in the Hub's own cache; nothing is asked of the network."""
    for copy in release.hub:
        with suppress(DownloadError):
            return _hub_snapshot(copy.repository, copy.revision, cached_only=True)
    return None


def _hub_snapshot(repository: str, revision: str | None, *, cached_only: bool = False) -> Path:
    """The folder with a repository's configuration and weights, in the Hub's own cache.

    Raises:  DownloadError where it cannot be had, or holds nothing we read.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import hf_hub_download  # here, because most loads need no Hub, and it takes 0.3 s
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    def get(file_name: str) -> Path | None:
        try:
            with _quiet("huggingface_hub"):
                only_local = cached_only or offline()
                found = hf_hub_download(
                    repository, file_name, revision=revision, local_files_only=only_local, library_name="clip-turbo"
                )
            return Path(found)
        except LocalEntryNotFoundError as exc:
            if cached_only or offline():
                return None
            raise DownloadError(_unreachable(repository, exc)) from exc
        except EntryNotFoundError:
            return None  # the repository has no such file
        # The Hub's client lets through what its HTTP library raises, and took another library in each major version.
        except Exception as exc:
            raise DownloadError(_unreachable(repository, exc)) from exc

    for config, weights in HUB_FILES.items():
        if found := get(config):
            for file_name in weights:
                if get(file_name):
                    for extra in HUB_EXTRAS:
                        get(extra)
                    return found.parent
    where = "the local cache" if cached_only or offline() else "the Hugging Face Hub"
    raise DownloadError(
        repository,
        f"{where} has no open_clip model and no CLIPModel of this name",
        "one",
        "Check the name.",
    )


@contextmanager
def _quiet(library: str) -> Generator[None]:
    """Keep what a library logs of its retries from between our lines; what came of them is in our errors."""
    logger = logging.getLogger(library)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _unreachable(repository: str, exc: Exception) -> str:
    return (
        f"{repository}: the Hugging Face Hub did not give it ({type(exc).__name__}: {str(exc).splitlines()[0]}), "
        "expected its files. Check the name, the network and HF_ENDPOINT."
    )
