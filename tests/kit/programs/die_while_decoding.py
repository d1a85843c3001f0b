"""Decode an image that hangs in another process, print that process's id, and die of SIGKILL."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

from clip.batch.crops import CropRing
from clip.batch.decode import Chunk, Decoding
from clip.batch.processes import DecoderProcesses
from clip.jobs import DecodeOptions, Limits
from clip.network.records import PreprocessSettings
from clip.records import Item
from clip.sources.source import Source

image = Path(sys.argv[1])
decoding = Decoding(Source((str(image.parent),)), PreprocessSettings(32), Limits(), DecodeOptions())
ring = CropRing(1, 32)
decoder = DecoderProcesses(decoding, ring, workers=1, budget_bytes=10_000_000)


def report_and_die() -> None:
    while not decoder._processes:
        time.sleep(0.01)
    time.sleep(0.5)
    print(*(process._process.pid for process in decoder._processes), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


threading.Thread(target=report_and_die).start()
decoder(Chunk([Item(image.name, str(image), 1)], ring.crops))
