"""The architecture of a model: read from the shapes of its weights, built without memory, kept in records.

Apart from model.py, as reading shapes has other reasons to change than the network. It may import the ground floor.
"""
