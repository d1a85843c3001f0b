"""Turn texts into the tokens that a model reads.

It may import jobs and the ground floor.
"""
