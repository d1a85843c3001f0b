"""Read what a user names as input: list its images and texts, and read their bytes.

It may import images, network and jobs; never torch, never the store.
"""
