"""The folder a run writes: manifest, plan, parts; atomic, locked, verifiable.

It may import jobs and the ground floor; never torch, never the sources.
"""
