"""Read files on servers, over fsspec.

It may import the ground floor.
"""
