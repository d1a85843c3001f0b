"""Files on servers, over fsspec: in parts, with patience, of one version.

It may import the ground floor.
"""
