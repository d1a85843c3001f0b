"""The command `clip`: flags in, jobs to the verbs, progress and summaries out.

It may import everything; nothing imports it.
"""
