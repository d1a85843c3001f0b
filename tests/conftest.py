"""Settings for every test."""

import os

# Tiny models gain nothing from a second thread, and two cores are often shared: 11 s of work become 30 s.
# Read by torch at import, inherited by child processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# No test asks a server that is not its own; those that run one on loopback take this back.
os.environ["CLIP_OFFLINE"] = "1"
