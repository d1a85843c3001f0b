"""Search, index and classify the vectors of a run.

It may import everything but cli.
"""
