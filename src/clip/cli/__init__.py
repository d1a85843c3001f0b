"""The command `clip`: make jobs of flags, call the verbs, print progress and summaries.

It may import everything; nothing imports it.
"""
