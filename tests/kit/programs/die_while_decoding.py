"""Decode an image that hangs in an isolated process, print that process's id, and die of SIGKILL."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

from clip.batch import isolate
from clip.batch.decode import Decoding
from clip.jobs import DecodeOptions, Limits
from clip.network.records import PreprocessSettings
from clip.records import Item
from clip.sources.source import Source

image = Path(sys.argv[1])
decoding = Decoding(Source((str(image.parent),)), PreprocessSettings(32), Limits(), DecodeOptions())
decoder = isolate.IsolatedDecoder(decoding, 1.5)


def report_and_die() -> None:
    while not decoder._processes:
        time.sleep(0.01)
    time.sleep(0.5)
    print(*(process._process.pid for process in decoder._processes), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


threading.Thread(target=report_and_die).start()
decoder(Item(image.name, str(image), 1))
