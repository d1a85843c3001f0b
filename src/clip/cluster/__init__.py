"""Runs on a Ray cluster: actors that hold a model write the shards that the driver names.

It may import batch and below; Ray is imported here only.
"""
