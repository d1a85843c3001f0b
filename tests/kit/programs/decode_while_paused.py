"""Decode an image in an isolated process while all of the job is paused for longer than an image may take."""

import sys
from pathlib import Path

from clip.batch.decode import Decoding
from clip.batch.processes import isolate
from clip.jobs import DecodeOptions, Limits
from clip.network.records import PreprocessSettings
from clip.records import Item, Pixels
from clip.sources.source import Source

image, max_seconds = Path(sys.argv[1]), float(sys.argv[2])
decoding = Decoding(Source((str(image.parent),)), PreprocessSettings(32), Limits(), DecodeOptions())
with isolate(decoding, max_seconds, 100_000_000) as decode:
    (outcome,) = decode(Item(image.name, str(image), 1))
print("pixels" if isinstance(outcome, Pixels) else outcome)
