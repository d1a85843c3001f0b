"""Print the outcome of each member of an archive, and by how many MiB the peak of memory grew meanwhile."""

import sys
from collections import Counter
from pathlib import Path

from clip.records import Failure
from clip.sources.source import Source


def peak_kib() -> int:  # not ru_maxrss, which a process has from its parent
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])


before = peak_kib()
source = Source((sys.argv[1],))
for shard in source.shards(7, Counter()):
    for outcome in source.members(shard.entries[0], 10_000_000, Counter()):
        print(outcome.id if isinstance(outcome, Failure) else outcome.item.id, type(outcome).__name__)
print((peak_kib() - before) // 1024)
