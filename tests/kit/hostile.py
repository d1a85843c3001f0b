"""A plugin of Pillow's that harms the process it decodes in, and its images. A file on PYTHONPATH brings it in."""

import os
from pathlib import Path

PLUGIN = """
import ctypes, os, time
from PIL import Image, ImageFile

class Hostile(ImageFile.ImageFile):
    format = "HOSTILE"

    def _open(self):
        self._size, self._mode, self.tile = (40, 30), "RGB", []
        _, self.when, self.deed = self.fp.read().decode().split()
        if self.when == "open":
            self.act()

    def load(self):
        if self.when == "load":
            self.act()
        self.im = Image.new("RGB", self.size).im
        return Image.Image.load(self)

    def act(self):
        if self.deed == "crash":
            ctypes.string_at(0)
        elif self.deed == "abort":
            os.abort()
        elif self.deed == "leave":
            os._exit(3)
        elif self.deed == "hang":
            if "CLIP_TEST_HANGS" in os.environ:
                open(os.environ["CLIP_TEST_HANGS"], "w").close()
            time.sleep(10_000)
        elif self.deed == "hang-with-the-lock":
            ctypes.PyDLL(None).sleep(1000)
        elif self.deed == "eat":
            self.eaten = [b"x" * 50_000_000 for _ in range(40)]  # 2 GB, which this machine has
        elif self.deed == "poison":  # no harm itself, but the next image in this process dies
            from clip.batch import decode as decoding
            decode = decoding.decode
            def deadly(item, *others):
                return decode(item, *others) if item.id.endswith("hostile") else os.abort()
            decoding.decode = deadly

Image.register_open("HOSTILE", Hostile, lambda prefix: prefix.startswith(b"HOSTILE"))
Image.register_extension("HOSTILE", ".hostile")
"""


def write_plugin(folder: Path, more: str = "") -> Path:
    """The folder, to be put on PYTHONPATH; `more` is executed too when a process starts."""
    (folder / "sitecustomize.py").write_text(PLUGIN + more)
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
