"""The peers, and a Python for each: an environment of its own, made on first use. Knows nothing about models."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

BENCH = Path(__file__).parent
ROOT = BENCH.parent
ENVIRONMENTS = BENCH / ".venvs"
REQUIREMENTS = BENCH / "requirements"
REFERENCE, OURS = "openai", "ours"
OURS_FAST = "ours-fast"  # with decode="fast", so other than ours only where there are files
OWN = (OURS, OURS_FAST)
CEILING = "ceiling"  # no peer, but a process like theirs: the machine's best matrix product
PIP = ("-m", "pip", "--quiet", "--disable-pip-version-check", "install")


class AbsentError(Exception):
    """A peer cannot run here; the message says why."""


@dataclass(frozen=True)
class Peer:
    """What a peer can be asked for."""

    precisions: dict[str, tuple[str, ...]]  # by device; a device that is missing is one it cannot use
    probe: str  # Python that fails where the peer is not importable
    torch: bool = True  # whether its environment has torch
    resnets: bool = True
    decodes: bool = False  # whether it has a preprocessing of its own
    encodes: bool = True  # whether it has an encoder of its own


_HALVES = {"cpu": ("fp32", "bf16"), "cuda": ("fp32", "bf16", "fp16")}
_OURS = {"cpu": ("fp32", "bf16", "int8"), "cuda": _HALVES["cuda"]}
PEERS = {
    # On CUDA this code is fp16 as it comes; on a CPU bf16 is torch's autocast around it.
    REFERENCE: Peer(
        {"cpu": ("fp32", "bf16"), "cuda": ("fp16",)},
        "import importlib.metadata as m; m.version('clip-anytorch')",  # `import clip` could be this repository's
        decodes=True,
    ),
    OURS: Peer(_OURS, "import clip, torch", decodes=True),
    OURS_FAST: Peer(_OURS, "import clip, torch", decodes=True, encodes=False),
    "transformers": Peer(_HALVES, "from transformers import CLIPModel", resnets=False, decodes=True),
    "open_clip": Peer(_HALVES, "import open_clip", decodes=True),
    "onnxruntime": Peer({"cpu": ("fp32",)}, "import onnxruntime", torch=False),  # its CPU kernels have no bf16
    "openvino-plain": Peer({"cpu": ("fp32", "bf16")}, "import openvino"),
}
REFERENCE_PRECISION = {"cpu": "fp32", "cuda": "fp16"}  # what OpenAI's own code computes in


@dataclass(frozen=True)
class Place:
    """The interpreter that a peer runs in, and folders that it looks for modules in first."""

    python: str
    paths: tuple[str, ...] = ()

    def environment(self) -> dict[str, str]:
        """Variables for its processes."""
        theirs = [path for path in (os.environ.get("PYTHONPATH"),) if path]
        return os.environ | {"PYTHONPATH": os.pathsep.join([*self.paths, *theirs])}


def place(peer: str, device: str) -> Place:
    """Where a peer runs: ours in this interpreter, the others in their own; on CUDA all in this one, beside its torch.

    Raises:  AbsentError where it cannot be installed or imported.
    """
    if peer in OWN:
        return Place(sys.executable, (str(ROOT / "src"),))
    if device != "cpu":
        return _beside(peer)
    folder = ENVIRONMENTS / peer
    requirements = _requirements(peer)
    wanted = hashlib.sha256(b"".join(file.read_bytes() for file in requirements)).hexdigest()
    stamp = folder / "installed"
    if not stamp.exists() or stamp.read_text() != wanted:
        _install(peer, folder)
        stamp.write_text(wanted)
    return Place(str(_python_of(folder)))


def _requirements(peer: str) -> list[Path]:
    names = [f"{peer}.txt"]
    if PEERS[peer].torch:
        names.insert(0, "torch.txt")
    if peer in ("open_clip", "transformers"):
        names.append("hub.txt")  # which theirs include
    return [REQUIREMENTS / name for name in names]


def _python_of(folder: Path) -> Path:
    return folder / "bin" / "python"


def _install(peer: str, folder: Path) -> None:
    """Install torch with its dependencies, the rest without, so that no other torch comes in."""
    sys.stderr.write(f"installing {peer} into {folder}\n")
    _run(peer, [sys.executable, "-m", "venv", "--clear", str(folder)])
    python = str(_python_of(folder))
    if PEERS[peer].torch:
        _run(peer, [python, *PIP, "--requirement", str(REQUIREMENTS / "torch.txt")])
    _run(peer, [python, *PIP, "--no-deps", "--requirement", str(REQUIREMENTS / f"{peer}.txt")])


def _beside(peer: str) -> Place:
    """Find a peer in this interpreter, or in bench/.venvs/PEER-site: `pip install --no-deps --target` fills that."""
    site = ENVIRONMENTS / f"{peer}-site"
    found = Place(sys.executable, (str(site),) if site.is_dir() else ())
    _run(peer, [found.python, "-c", PEERS[peer].probe], found.environment())
    return found


def _run(peer: str, command: list[str], environment: dict[str, str] | None = None) -> None:
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if ran.returncode:
        last = (ran.stderr.strip().splitlines() or [f"exit code {ran.returncode}"])[-1]
        raise AbsentError(
            f"{peer}: cannot be installed or imported ({last}), expected {PEERS[peer].probe!r} to work. "
            f"Install bench/requirements/{peer}.txt."
        )
