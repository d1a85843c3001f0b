"""A name or a path to a checkpoint: found, fetched, verified, and read without running it.

It may import network, text, jobs and `model`. With sources/remote the only room that uses the network.
"""
