"""A sitecustomize.py: the command waits for hours after a first signal."""

import clip.cli.signals

clip.cli.signals.GRACE_S = 10_000.0
