"""Decoders that hand on ready crops after a while; in a module of its own, as their processes need no torch."""

from __future__ import annotations

import time
from dataclasses import dataclass

from clip.batch.decode import Answer, Chunk, Decoding
from clip.records import Row


@dataclass(frozen=True)
class SleepingDecoding(Decoding):
    """Hands on ready crops, a chunk after the time that decoding it would take."""

    sleep_s: float = 0.0

    def decode_chunk(self, chunk: Chunk, reserve: object = None) -> Answer:
        """Do as the class says; nothing is reserved."""
        del reserve
        time.sleep(self.sleep_s * len(chunk.entries))
        chunk.crops[:] = 128
        rows = [Row(entry.id, entry.path, 1, 1, "JPEG", 1) for entry in chunk.entries]
        return Answer([*rows], [1] * len(rows))
