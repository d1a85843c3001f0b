"""A plugin of Pillow's that harms the process it decodes in, and its images. A file on PYTHONPATH brings it in."""

import os
from pathlib import Path

from kit.programs import FOLDER


def write_plugin(folder: Path, *more: str) -> Path:
    """The folder, to be put on PYTHONPATH; more programs are run too when a process starts."""
    names = ("hostile_plugin", *more)
    (folder / "sitecustomize.py").write_text("\n".join((FOLDER / f"{name}.py").read_text() for name in names))
    return folder


def environment(plugin: Path, hangs: Path | None = None) -> dict[str, str]:
    """What processes need to have the plugin; an image that hangs makes the file `hangs` when it begins to."""
    return {
        **os.environ,
        **({} if hangs is None else {"CLIP_TEST_HANGS": str(hangs)}),
        "PYTHONPATH": os.pathsep.join([str(plugin), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]),
    }


def picture(deed: str, when: str = "load") -> bytes:
    """An image that does something to its decoder, when it is opened or when its pixels are asked for."""
    return f"HOSTILE {when} {deed}".encode()
