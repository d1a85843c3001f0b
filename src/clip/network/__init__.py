"""The architecture of a model: read from the shapes of its weights, built without memory, kept in records.

It may import the ground floor.
"""
