"""examine(): what the vectors of this machine depend on, and what is missing on it.

Whatever cannot be asked becomes a problem in the report: a machine that is broken is the one that it is for.
"""

from __future__ import annotations

import os
import platform
import sys
from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any, TypeVar

from .. import __version__
from ..errors import ClipError, quote
from ..foreign_distribution import FOREIGN_DISTRIBUTIONS
from ..jobs.health import ExtraRow, Health
from ..parallel import available_cores

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ..jobs.models import DeviceRow

Answer = TypeVar("Answer")
# What vectors depend on: numbers, pixels, repaired texts and words, and the libraries that read weights and inputs.
NEEDED = (
    "torch", "numpy", "pillow", "ftfy", "regex", "safetensors", "huggingface_hub", "filelock", "pyarrow", "click",
    "tqdm",
)  # fmt: skip
ON_X86 = "openvino"  # needed where there is a wheel of it
X86 = ("x86_64", "amd64")
EXTRAS: dict[str, tuple[tuple[str, ...], str]] = {
    "heic": (("pi-heif",), "HEIC files are counted and not read"),
    "int8": (("nncf",), "no precision int8"),
    "remote": (("fsspec", "aiohttp", "s3fs", "gcsfs", "obstore"), "nothing on s3://, gs://, az:// and https://"),
    "ray": (("ray",), "no --engine ray"),
    "search": (("faiss-cpu", "duckdb"), "search scans with numpy, several times slower, and has no --where"),
    "siglip": (("tokenizers",), "no texts for SigLIP and SigLIP 2"),
    "serve": (("starlette", "uvicorn", "h11", "prometheus-client", "python-multipart"), "no clip serve"),
}
# Libraries that are imported to see whether they can be: by the distribution's name, the module's.
IMPORTED = {"torch": "torch", "numpy": "numpy", "pillow": "PIL.Image", "openvino": "openvino", "pyarrow": "pyarrow"}
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "OMP_PROC_BIND", "KMP_AFFINITY", "KMP_BLOCKTIME",
                    "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "CLIP_FAST")  # fmt: skip
NETWORK_VARIABLES = ("CLIP_OFFLINE", "HF_HUB_OFFLINE", "HF_HOME", "HF_ENDPOINT")
SECRET_VARIABLES = ("HTTPS_PROXY", "HF_TOKEN")  # of which a report says only that they are set


def examine(download_root: str | None = None) -> Health:
    """Return the report of this machine. Only the cache is read: no weights are loaded and no server is asked."""
    problems: list[str] = []
    names = (*NEEDED, ON_X86) if platform.machine().lower() in X86 else NEEDED
    versions = {name: find_version(name) for name in names}
    problems += [f"{name} is not installed: pip install clip-turbo" for name, found in versions.items() if not found]
    for name, module in IMPORTED.items():
        if versions.get(name):
            _ask(problems, f"{name} cannot be imported", lambda module=module: import_module(module))
    for name in FOREIGN_DISTRIBUTIONS:
        if found := find_version(name):
            problems.append(f"{name} {found} installs a package called clip too: pip uninstall {name}")
    return Health(
        versions={"clip-turbo": __version__, "python": platform.python_version(), **versions},
        system=_describe_system(),
        devices=_ask(problems, "devices cannot be listed", _list_devices) or (),
        extras=tuple(_describe_extra(name) for name in EXTRAS),
        cache=_ask(problems, "the cache cannot be read", lambda: _describe_cache(download_root, problems)) or {},
        threads=_ask(problems, "threads cannot be counted", _describe_threads) or {},
        problems=tuple(problems),
    )


def find_version(distribution: str) -> str | None:
    """Return the version of an installed distribution; None for one that is not there."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _ask(problems: list[str], what: str, ask: Callable[[], Answer]) -> Answer | None:
    """Return an answer; where asking for it fails, in whatever way a library does, note that and return None."""
    try:
        return ask()
    except ClipError as exc:
        problems.append(f"{what}: {exc}")
    except Exception as exc:  # noqa: BLE001  a broken library raises anything, and the report has to be written
        problems.append(f"{what} ({type(exc).__name__}: {quote(str(exc))})")
    return None


def _describe_system() -> dict[str, str]:
    return {
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "cores": f"{available_cores()} of {os.cpu_count()}",
        "python": sys.executable,
        "encoding": f"{sys.getfilesystemencoding()}, stdout {sys.stdout.encoding if sys.stdout else None}",
    }


def _list_devices() -> tuple[DeviceRow, ...]:
    from ..engine.devices import list_devices  # here, as it imports torch, which may be what is broken

    return tuple(list_devices())


def _describe_extra(name: str) -> ExtraRow:
    distributions, lacks = EXTRAS[name]
    versions = {distribution: find_version(distribution) for distribution in distributions}
    return ExtraRow(name, versions, "" if all(versions.values()) else lacks)


def _describe_cache(download_root: str | None, problems: list[str]) -> dict[str, Any]:
    from ..weights import locate
    from ..weights.catalog import find_cached
    from ..weights.releases import RELEASES

    folder = locate.cache_path("", download_root)
    here = {name: path for name, release in RELEASES.items() if (path := find_cached(release, download_root))}
    if folder.is_dir() and not os.access(folder, os.W_OK):
        problems.append(f"{folder} cannot be written: weights are hashed again at each start")
    damaged = [path for release in RELEASES.values() if _is_cut(path := locate.cache_path(release.url, download_root),
                                                               release.size_bytes)]  # fmt: skip
    problems += [f"{path} has another size than OpenAI's: remove it and run clip fetch" for path in damaged]
    settings = {name: os.environ[name] for name in NETWORK_VARIABLES if name in os.environ}
    settings |= dict.fromkeys((name for name in SECRET_VARIABLES if name in os.environ), "set")
    return {"folder": str(folder), "released": here, "offline": locate.is_offline(), "environment": settings}


def _is_cut(path: Path, size_bytes: int) -> bool:
    return path.is_file() and path.stat().st_size != size_bytes


def _describe_threads() -> dict[str, str | None]:
    import torch

    own: dict[str, str | None] = {
        "torch": f"{torch.get_num_threads()} threads, {torch.get_num_interop_threads()} between"
    }
    own["torch's OpenMP"] = "yes" if torch.backends.openmp.is_available() else "no"
    own["torch's MKL"] = "yes" if torch.backends.mkl.is_available() else "no"
    own["torch's CPU code"] = torch.backends.cpu.get_cpu_capability()
    return own | {name: os.environ.get(name) for name in THREAD_VARIABLES}
