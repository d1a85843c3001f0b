"""Search, index and classify over the vectors of a run.

It may import everything but cli.
"""
