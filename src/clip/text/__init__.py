"""Texts to the tokens a model reads.

It may import jobs and the ground floor.
"""
