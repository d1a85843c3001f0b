"""From an image in any form to the pixels that a model reads.

It may import network, jobs and the ground floor; only `preprocess` imports torch, and `fast` when it runs.
"""
