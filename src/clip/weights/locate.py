"""Find the local file or folder of a model's name or path, and download it if need be.

A released name is looked up in our cache, in the Hugging Face Hub's cache, on OpenAI's host and on the Hub, in this
order; the first that has it wins. An archive of OpenAI's is identified by its sha256, a copy on the Hub by repository
and revision. The sketch model is in the package.
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
from ..tokenizer_file import TOKENIZER_CONFIG, TOKENIZER_FILE
from .configurations import MAX_JSON_BYTES
from .download import NOT_KNOWN, fetch, knows_host
from .folders import SENTENCE_MODULES, list_parts, name_clip_folder
from .published import META_NAMES, PUBLISHED, find_published
from .releases import RELEASES, Release
from .spellings import find_spelled, suggest

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping


CACHE = "~/.cache/clip"  # as in OpenAI's package, open_clip and clip-as-service, which share its files
MAX_SHOWN = 200  # characters of a name that an error repeats
OFFLINE = ("CLIP_OFFLINE", "HF_HUB_OFFLINE")
HUB_PREFIX = "hf-hub:"
VERIFIED = ".verified.json"  # in the cache: the files that were hashed, with their size, time and inode then
# The files of a repository that we read: a configuration, and the first of these weights that exists.
HUB_FILES = {
    "open_clip_config.json": ("open_clip_model.safetensors", "open_clip_pytorch_model.bin"),
    "config.json": (
        *("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"),
        *("model.fp16.safetensors", "pytorch_model.fp16.bin"),
    ),
}
HUB_EXTRAS = ("preprocessor_config.json", "processor_config.json")
HUB_VOCABULARY = (TOKENIZER_FILE, TOKENIZER_CONFIG)  # of a model whose configuration names SigLIP: 34 MB
# The model that comes with the package, made by training/sketch.py and described in docs/sketch.md. Its image side is a
# ResNet: after three minutes of training that had 0.99 of shapes right, a ViT 0.40 (LOG.md).
SKETCH, SKETCH_FILE = "sketch", Path(__file__).with_name("sketch.safetensors")
URLS = {name: release.url for name, release in RELEASES.items()}
_SIZES = {release.sha256: release.size_bytes for release in RELEASES.values()}

_log = logging.getLogger("clip")


def is_offline() -> bool:
    """Return whether the environment forbids the network."""
    return any(os.environ.get(name, "").lower() in ("1", "true", "yes", "on") for name in OFFLINE)


def file_sha256(path: str | Path) -> str:
    """Return the sha256 of a file, in hexadecimal. The file is read in pieces."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def locate(
    name: str | os.PathLike[str],
    download_root: str | os.PathLike[str] | None = None,
    *,
    urls: Mapping[str, str] = URLS,
    download: Callable[..., str] | None = None,
) -> Path:
    """Return the local file or folder of a released name, "sketch", `hf-hub:ORG/NAME[@REVISION]`, or a path.

    A name wins over a file of the same name, a file over another spelling of a name (`ViT-B-32`). `urls` and `download`
    are `_MODELS` and `_download` of `clip.clip`, which users of OpenAI's package replace.

    Raises:  UnknownModelError for any other name, WeightsMissingError if no source has the file, CheckpointError if
             the cache has a folder of its name, DownloadError for a repository that cannot be read; all RuntimeErrors.
    """
    if isinstance(name, str) and name in urls:
        return _locate_release(name, urls[name], download_root, download or ensure_cached)
    if name == SKETCH:
        if not SKETCH_FILE.is_file():
            raise WeightsMissingError(SKETCH_FILE, "not there", "it in the package", "Install clip-turbo again.")
        return SKETCH_FILE
    if isinstance(name, str) and name.startswith(HUB_PREFIX):
        repository, _, revision = name.removeprefix(HUB_PREFIX).partition("@")
        return _fetch_snapshot(repository, revision or None)
    if _is_there(name):
        return Path(os.fspath(name))
    if (published := find_published(os.fspath(name))) is not None:
        return _fetch_snapshot(PUBLISHED[published].repository, None)
    if (released := find_spelled(os.fspath(name), urls)) is not None:
        return _locate_release(released, urls[released], download_root, download or ensure_cached)
    raise _make_unknown(name, urls)


def check_name(name: str) -> None:
    """Raise UnknownModelError for what `locate` would not know, without looking for weights of what it would."""
    if name in URLS or name == SKETCH or name.startswith(HUB_PREFIX) or _is_there(name):
        return
    if find_published(name) or find_spelled(name, URLS):
        return
    raise _make_unknown(name, URLS)


def _is_there(name: str | os.PathLike[str]) -> bool:
    """Whether there is a file or a folder of that name; a pipe could make us wait for ever."""
    path = os.fspath(name)  # of os.path, which returns False where Path raises, for a name that is too long
    return bool(path) and (os.path.isfile(path) or os.path.isdir(path))  # noqa: PTH112, PTH113


def _make_unknown(name: str | os.PathLike[str], urls: Mapping[str, str]) -> UnknownModelError:
    expected = f"the path of weights, {HUB_PREFIX}ORG/NAME, {SKETCH!r}, or one of {list(urls)}"
    near = suggest(os.fspath(name)[:MAX_SHOWN], [*urls, *PUBLISHED])
    remedy = (f"Did you mean {near!r}? " if near else "") + "Use one of these names, or check the path."
    return UnknownModelError(f"model {os.fspath(name)[:MAX_SHOWN]!r}", "not found", expected, remedy)


def locate_here(name: str) -> str:
    """Return a name that a file of somebody else's may give, as `locate` takes it without asking a server for it.

    A released name stays, as its host and hash are known; a repository on the Hub becomes its folder in the cache.

    Raises:  WeightsMissingError for a repository that is not there, and for a path on another machine.
    """
    remedy = "Pass it as `model` to fetch it, or pass the path of a copy."
    if (published := find_published(name)) and not _is_there(name):
        name = HUB_PREFIX + PUBLISHED[published].repository
    if name.startswith(HUB_PREFIX):
        repository, _, revision = name.removeprefix(HUB_PREFIX).partition("@")
        try:
            return str(_fetch_snapshot(repository, revision or None, cached_only=True))
        except DownloadError as exc:
            raise WeightsMissingError(name, exc.found, "it on this machine", remedy) from exc
    if name.startswith(("\\\\", "//")):  # of a Windows network: even looking whether it exists would ask its host
        raise WeightsMissingError(name, "is on another machine", "it on this one", remedy)
    return name


def ensure_cached(url: str, root: str | os.PathLike[str] | None = None) -> str:
    """Download the file of a URL unless it is in the cache, and return its path. The URL's last folder is the sha256.

    Raises:  WeightsMissingError if it is missing and the network is forbidden, DownloadError if no server gives it,
             CheckpointError if a folder has its name; all RuntimeErrors.
    """
    *_, sha256, _file_name = url.split("/")
    path = cache_path(url, root)
    if path.exists() and not path.is_file():
        raise CheckpointError(path, "exists and is not a regular file", "weights", "Move it away.")
    if path.is_file():
        if is_verified(path, sha256):
            return str(path)
        warnings.warn(
            f"{path}: found another sha256, expected {sha256}. The file is downloaded again; move it away to keep it.",
            stacklevel=3,
        )
    if is_offline():
        found = f"not there, and {' or '.join(OFFLINE)} forbids a download"
        remedy = f"Fetch {url} elsewhere and put it there."
        raise WeightsMissingError(path, found, f"the file with sha256 {sha256}", remedy)
    fetch(url, path, sha256=sha256, size_bytes=_SIZES.get(sha256), is_whole=lambda: is_verified(path, sha256))
    remember(path, sha256)
    return str(path)


def cache_path(url: str, root: str | os.PathLike[str] | None = None) -> Path:
    """Return the path in the cache of the file of a URL, whether it exists or not."""
    return Path(root or CACHE).expanduser() / url.rpartition("/")[2]


def is_verified(path: Path, sha256: str) -> bool:
    """Return whether a file has this hash. It is read once; the result is remembered by size, time and inode."""
    if not path.is_file():
        return False
    if _read_verified(path).get(path.name) == [*_identify(path), sha256]:
        return True
    if path.stat().st_size != _SIZES.get(sha256, path.stat().st_size) or file_sha256(path) != sha256:
        return False
    remember(path, sha256)
    return True


def remember(path: Path, sha256: str) -> None:
    """Remember the hash of a file. In a cache that cannot be written the file is hashed again each time."""
    verified = _read_verified(path) | {path.name: [*_identify(path), sha256]}
    note = path.with_name(VERIFIED)
    temporary = note.with_name(f"{VERIFIED}.{os.getpid()}.tmp")
    with suppress(OSError):
        temporary.write_text(json.dumps(verified, indent=1))
        temporary.replace(note)


def _read_verified(path: Path) -> dict[str, list[object]]:
    try:
        verified = json.loads(path.with_name(VERIFIED).read_bytes())
    except (OSError, ValueError):
        return {}  # not there, or cut short by a crash: hash again
    return verified if isinstance(verified, dict) else {}


def _identify(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino]


def _locate_release(name: str, url: str, root: str | os.PathLike[str] | None, download: Callable[..., str]) -> Path:
    """Try the archive in our cache, a copy in the Hub's cache, the archive on OpenAI's host, a copy on the Hub."""
    release = RELEASES.get(name)
    copies = release.hub if release and release.url == url else ()
    if copies and not cache_path(url, root).exists() and (snapshot := find_cached_copy(RELEASES[name])):
        return snapshot
    problems: list[str] = []
    try:
        return Path(download(url, root or os.path.expanduser(CACHE)))  # noqa: PTH111  a str, for users' own functions
    except (DownloadError, WeightsMissingError) as exc:
        if not copies or is_offline():
            raise
        problems.append(f"{exc.item}: {exc.found}")
    for copy in copies:
        _log.warning("%s: %s; trying %s on the Hugging Face Hub", name, problems[-1], copy.repository)
        try:
            return _fetch_snapshot(copy.repository, copy.revision)
        except DownloadError as exc:
            problems.append(f"{exc.item}: {exc.found}")
    lines = "".join(f"\n  {problem}" for problem in problems)
    remedy = (
        f"Put the file with sha256 {url.split('/')[-2]} at {cache_path(url, root)}, or pass the path of a copy. "
        f"The model {SKETCH!r} needs no download: clip demo shows it."
    )
    raise WeightsMissingError(name, f"no source has the weights:{lines}", remedy=remedy)


def find_repository(repository: str) -> Path | None:
    """Return the folder of a repository in the Hub's own cache, without using the network."""
    with suppress(DownloadError):
        return _fetch_snapshot(repository, None, cached_only=True)
    return None


def find_cached_copy(release: Release) -> Path | None:
    """Return the folder of a released model in the Hub's own cache, without using the network."""
    for copy in release.hub:
        with suppress(DownloadError):
            return _fetch_snapshot(copy.repository, copy.revision, cached_only=True)
    return None


def _fetch_snapshot(repository: str, revision: str | None, *, cached_only: bool = False) -> Path:
    """Return the folder of the Hub's own cache with a repository's configuration and weights, downloaded if need be.

    Of one of Meta's PE-Cores it is the file.

    Raises:  DownloadError if that fails, or if the repository has nothing that we read.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import constants, hf_hub_download  # here, because most loads need no Hub, and it takes 0.3 s
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    only_local = cached_only or is_offline()
    if not only_local and not knows_host(constants.ENDPOINT):  # whose client would try for half a minute
        raise DownloadError(repository, NOT_KNOWN, "its files", "Check the network and HF_ENDPOINT.")

    def get(file_name: str) -> Path | None:
        try:
            with _quiet("huggingface_hub"):
                path = hf_hub_download(
                    repository, file_name, revision=revision, local_files_only=only_local, library_name="clip-turbo"
                )
            return Path(path)
        except LocalEntryNotFoundError as exc:
            if only_local:
                return None
            raise _unreachable(repository, exc) from exc
        except EntryNotFoundError:
            return None  # the repository has no such file
        # The Hub's client passes on the exceptions of its HTTP library, which changed with each major version.
        except Exception as exc:
            raise _unreachable(repository, exc) from exc

    owner, _, name = repository.partition("/")
    if owner == "facebook" and name in META_NAMES and (path := get(f"{name}.pt")):
        return path  # Meta's file has no configuration and needs none
    if (path := _fetch_files(get, "")) or (
        # a repository of sentence-transformers
        (path := get(SENTENCE_MODULES)) and _fetch_files(get, f"{name_clip_folder(path)}/")
    ):
        return path.parent
    where = "the local cache" if only_local else "the Hugging Face Hub"
    found = f"{where} has no open_clip model and no CLIPModel of this name"
    raise DownloadError(repository, found, remedy="Check the name.")


def _fetch_files(get: Callable[[str], Path | None], folder: str) -> Path | None:
    """Get the files of a model in a folder of a repository, and return the configuration's path; None without any."""
    for config, weights in HUB_FILES.items():
        if path := get(folder + config):
            for file in filter(None, (get(folder + name) for name in weights)):
                if file.suffix == ".json":
                    for part in list_parts(file):
                        get(folder + part)
                own_vocabulary = b"siglip" in path.read_bytes()[:MAX_JSON_BYTES].lower()
                for extra in (*HUB_EXTRAS, *(HUB_VOCABULARY if own_vocabulary else ())):
                    get(folder + extra)
                return path
    return None


@contextmanager
def _quiet(library: str) -> Generator[None]:
    """Silence a library's log of its retries; our errors say how they ended."""
    logger = logging.getLogger(library)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _unreachable(repository: str, exc: Exception) -> DownloadError:
    found = f"the Hugging Face Hub did not give it ({type(exc).__name__}: {str(exc).splitlines()[0]})"
    return DownloadError(repository, found, "its files", "Check the name, the network and HF_ENDPOINT.")
