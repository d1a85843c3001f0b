"""Runs over whole inputs: embed, verify, tune.

It may import everything but retrieval and cli.
"""
