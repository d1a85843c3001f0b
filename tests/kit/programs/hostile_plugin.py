"""A sitecustomize.py: a plugin of Pillow that harms the process it decodes in."""

import ctypes
import os
import time
from typing import Any

from PIL import Image, ImageFile


class Hostile(ImageFile.ImageFile):
    format = "HOSTILE"

    def _open(self) -> None:
        self._size, self._mode, self.tile = (40, 30), "RGB", []
        _, self.when, self.deed = self.fp.read().decode().split()
        if self.when == "open":
            self.act()

    def load(self) -> Any:
        if self.when == "load":
            self.act()
        self.im = Image.new("RGB", self.size).im
        return Image.Image.load(self)

    def act(self) -> None:
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
        elif self.deed.startswith("pause"):  # of this process and its parent, as of the whole machine
            pids = f"{os.getppid()} {os.getpid()}"
            begin, seconds = time.monotonic(), float(self.deed.removeprefix("pause"))
            os.posix_spawn("/bin/sh", ["sh", "-c", f"kill -STOP {pids}; sleep {seconds}; kill -CONT {pids}"], {})
            while time.monotonic() - begin < seconds:
                time.sleep(0.01)  # until it is stopped
        elif self.deed == "poison":  # no harm itself, but the next image in this process dies
            from clip.batch import decode as decoding

            decode = decoding.decode

            def deadly(item: Any, *others: Any) -> Any:
                return decode(item, *others) if item.id.endswith("hostile") else os.abort()

            decoding.decode = deadly


Image.register_open("HOSTILE", Hostile, lambda prefix: prefix.startswith(b"HOSTILE"))
Image.register_extension("HOSTILE", ".hostile")
